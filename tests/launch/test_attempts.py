"""What a supervisor notes of an attempt and how it tells the end of one."""

from pathlib import Path

from launch.attempts import Attempt, explain, history, is_over, newest_step, read_attempt, reported_ends, sick, without_a_word
from launch.job_folder import new_folder
from olmo_train.attempt import EndKind, RankEnd


def attempt(folder: Path) -> Attempt:
    """One of 2 nodes with 2 ranks each."""
    return Attempt(str(new_folder(folder / "attempts")), ["n1", "n2"], 2, 10)


def end(rank: int, kind: EndKind, message: str = "", **more: object) -> RankEnd:
    return RankEnd(rank, f"n{rank // 2 + 1}", kind, 1, 12, message, **more)  # type: ignore[arg-type]


def test_what_was_written_is_read_and_what_is_broken_is_passed_over(tmp_path: Path) -> None:
    first, second = attempt(tmp_path), attempt(tmp_path)
    first.bad_nodes, first.ended = ["n2"], 5.0
    first.write()
    Path(second.folder, "attempt.json").write_text('{"nodes": [')
    assert history(tmp_path) == [first]
    assert read_attempt(Path(second.folder)) is None
    assert [first.node_of(rank) for rank in range(first.n_ranks)] == ["n1", "n1", "n2", "n2"]


def test_only_finished_steps_count(tmp_path: Path) -> None:
    assert newest_step(tmp_path) == -1
    for step in (0, 5, 9):
        (tmp_path / f"steps/step{step:08d}").mkdir(parents=True)
    (tmp_path / "steps/step00000000/manifest.json").touch()
    (tmp_path / "steps/step00000005/manifest.json").touch()
    assert newest_step(tmp_path) == 5


def test_an_attempt_is_over_when_only_ranks_of_silent_nodes_are_missing(tmp_path: Path) -> None:
    this = attempt(tmp_path)
    peers = [end(0, EndKind.PEER), end(1, EndKind.PEER)]
    assert not is_over(this, [], set())
    assert not is_over(this, peers, set())
    assert is_over(this, peers, {2, 3})
    assert not is_over(this, peers, {2})
    assert without_a_word(this, peers, {2}) == [3]
    peers[0].bad_nodes = ["n2"]
    assert is_over(this, peers, set())
    assert is_over(this, [end(rank, EndKind.COMPLETE) for rank in range(4)], set())
    assert not is_over(this, [end(rank, EndKind.COMPLETE) for rank in range(3)], set())


def test_the_ends_that_srun_tells_are_understood() -> None:
    said = [
        "srun: error: node2: task 1: Killed",
        "srun: error: node[3-4]: tasks 4-6,9: Exited with exit code 1",
        "srun: launch/slurm: _step_signal: Terminating StepId=6.1",
        "srun: error: Node failure on node2",
        "task 77: Killed",
    ]
    assert reported_ends(said) == {1, 4, 5, 6, 9}


def test_the_first_error_comes_first_with_its_traceback(tmp_path: Path) -> None:
    ends = [
        end(0, EndKind.PEER, "rank 3 failed", traceback="of the waiting"),
        end(1, EndKind.PEER, "rank 3 failed"),
        end(3, EndKind.EXCEPTION, "KeyError: 'x'", traceback="Traceback ...\nKeyError: 'x'", order=1),
        end(2, EndKind.FAILED, "disk full", order=2),
    ]
    lines = explain(attempt(tmp_path), ends, [])
    assert lines[:3] == [
        "FIRST ERROR: rank 3 on n2, at step 12, exception: KeyError: 'x'",
        "    Traceback ...",
        "    KeyError: 'x'",
    ]
    assert lines[3].endswith("rank-00003.log")
    assert lines[4] == "the other ranks that ended badly: 2 peer, 1 failed"
    assert "of the waiting" not in "".join(lines)


def test_a_rank_that_was_killed_is_the_first_error_and_its_log_is_shown(tmp_path: Path) -> None:
    this = attempt(tmp_path)
    Path(this.folder, "rank-00002.log").write_text("".join(f"line {i}\n" for i in range(50)))
    Path(this.folder, "rank-00000.stacks.txt").write_text("stack")
    Path(this.folder, "rank-00001.stacks.txt").touch()
    ends = [end(rank, EndKind.PEER, "rank 2 is gone") for rank in (0, 1, 3)]
    lines = explain(this, ends, ["srun: error: n2: task 2: Killed"])
    assert lines[0] == "FIRST ERROR: ended without a word (killed, or the node is lost): rank 2 (n2)"
    assert lines[1] == "    srun: error: n2: task 2: Killed"
    assert lines[2:14] == [f"    line {i}" for i in range(38, 50)]
    assert "first to notice: rank 0 on n1, at step 12, peer: rank 2 is gone" in lines
    assert lines[-1].startswith("stacks of 1 ranks: ")


def test_ranks_that_could_not_write_their_word_are_not_called_killed(tmp_path: Path) -> None:
    this = attempt(tmp_path)
    Path(this.folder, "rank-00000.log").write_text("error: metrics.jsonl: No space left on device\n")
    lines = explain(this, [], ["srun: error: n1: tasks 0-1: Exited with exit code 1"])
    assert lines[0].startswith("FIRST ERROR: ended without a word (left, and could write no word: see their logs): ranks 0 (n1)")
    assert "    error: metrics.jsonl: No space left on device" in lines


def test_ranks_that_never_began_show_what_srun_said(tmp_path: Path) -> None:
    lines = explain(attempt(tmp_path), [], ["srun: error: Unable to create step for job 1: Requested nodes are busy"])
    assert lines[0] == "FIRST ERROR: ended without a word (killed, or the node is lost): ranks 0 (n1), 1 (n1), 2 (n2), 3 (n2)"
    assert lines[1] == "    srun: error: Unable to create step for job 1: Requested nodes are busy"


def test_a_good_end_needs_no_words(tmp_path: Path) -> None:
    assert explain(attempt(tmp_path), [end(rank, EndKind.COMPLETE) for rank in range(4)], []) == []


def test_only_wrong_results_make_a_node_sick() -> None:
    ends = [end(0, EndKind.HUNG, bad_nodes=["n1"]), end(2, EndKind.UNHEALTHY, bad_nodes=["n2"])]
    assert sick(ends) == {"n2"}


def test_a_killed_rank_is_called_killed_though_others_left_by_themselves(tmp_path: Path) -> None:
    this = attempt(tmp_path)
    peers = [end(rank, EndKind.PEER, "rank 1 ended without a word") for rank in (0, 2, 3)]
    said = ["srun: error: n1: task 1: Killed", "srun: error: n2: tasks 2-3: Exited with exit code 1"]
    assert "(killed, or the node is lost): rank 1" in explain(this, peers, said)[0]
    lost = ["srun: error: n2: tasks 2-3: Exited with exit code 76"]  # of rank 1, on a node that hangs, srun knows nothing
    assert "(killed, or the node is lost): rank 1" in explain(this, peers, lost)[0]
