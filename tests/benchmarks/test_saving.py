"""The table of the saving benchmark: medians after the first save, and ours over the best of theirs."""

from benchmarks.saving import report


def save(call_s: float, all_s: float, done_s: float) -> dict[str, float]:
    return {"step_s": 0.5, "call_s": call_s, "all_s": all_s, "done_s": done_s, "n_steps_beside": 2}


def test_the_first_call_stands_by_itself_and_the_best_peer_is_compared_with() -> None:
    saves = {
        "ours": [save(0.9, 1.0, 2.0), save(0.1, 0.2, 1.0)],
        "dcp async_save": [save(0.4, 0.4, 2.0), save(0.4, 0.5, 2.0)],
        "dcp async_save, kept buffers": [save(0.4, 0.4, 2.0), save(0.2, 0.8, 4.0)],
    }
    lines = report({"bytes": 2_000_000_000, "saves": saves}).splitlines()
    assert lines[0] == "2.00 GB a save, 0.500 s a quiet step"
    assert lines[3].split() == ["ours", "0.900", "0.100", "0.20", "0.200", "0.40", "1.00", "2.00"]
    assert lines[-1] == "ours / best of theirs: call_s 0.50, all_s 0.40, done_s 0.50"
