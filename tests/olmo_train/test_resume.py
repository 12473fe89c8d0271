"""A run that stops goes on as if it had not, and never as another run."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from olmo_train.checkpoint import read_manifest, read_state
from olmo_train.step_folder import list_steps
from tests.distributed import spawn
from tests.runs import losses, metrics, run_training, small, train_here, weights, without_times

# ---- stop and resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_ten_steps_are_five_and_five_bit_for_bit(shards: Path, tmp_path: Path, n_ranks: int) -> None:
    common = [
        "eval.eval_every=5",
        "optim.skip={window: 4, min_history: 2, sigma: 6}",
        "model.moe.bias_update_rate=1e-2",
        "metrics.log_every=1",
    ]
    run_training(small(shards, tmp_path / "whole", *common), n_ranks)
    run_training(small(shards, tmp_path / "cut", *common, "stop_at_step=5"), n_ranks)
    assert [step for step, _ in list_steps(tmp_path / "cut" / "steps")] == [5]
    run_training(small(shards, tmp_path / "cut", *common), n_ranks)
    assert weights(tmp_path / "cut", 10) == weights(tmp_path / "whole", 10)
    assert without_times(metrics(tmp_path / "cut")) == without_times(metrics(tmp_path / "whole"))
    assert (tmp_path / "cut/data.jsonl").read_text() == (tmp_path / "whole/data.jsonl").read_text()
    states = [read_state(tmp_path / name / "steps/step00000010") for name in ("cut", "whole")]
    assert states[0] == states[1]
    assert len(json.loads((tmp_path / "cut/provenance.json").read_text())["starts"]) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, []), (1, [])), ((1, []), (4, ["parallel.shard_size=2"])), ((4, ["parallel.shard_size=2"]), (2, []))],
)
def test_a_run_goes_on_with_other_ranks(shards: Path, tmp_path: Path, before: Any, after: Any) -> None:
    run_training(small(shards, tmp_path / "whole", "data.micro_batch_size=64"), 1)
    run_training(small(shards, tmp_path / "cut", "data.micro_batch_size=64", "stop_at_step=5", *before[1]), before[0])
    run_training(small(shards, tmp_path / "cut", "data.micro_batch_size=64", *after[1]), after[0])
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    ledgers = [
        [json.loads(x)["checksum"] for x in (tmp_path / n / "data.jsonl").read_text().splitlines()] for n in ("cut", "whole")
    ]
    assert ledgers[0] == ledgers[1]
    assert len(metrics(tmp_path / "cut")) == 10  # no step twice, none missing


def test_a_finished_run_stays_as_it_is(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run"))
    before = (weights(tmp_path / "run", 10), (tmp_path / "run/metrics.jsonl").read_text())
    run_training(small(shards, tmp_path / "run"))
    assert (weights(tmp_path / "run", 10), (tmp_path / "run/metrics.jsonl").read_text()) == before


def test_an_anneal_begins_where_a_checkpoint_ended_and_goes_to_zero(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "base"))
    folder = tmp_path / "base/steps/step00000005"
    anneal = ["experiment=anneal", f"load.path={folder}", "max_tokens=1280", "seed=42", "checkpoint.save_every=5"]
    overrides = [o for o in small(shards, tmp_path / "anneal", *anneal) if not o.startswith("optim.")]
    run_training(overrides)
    lines = metrics(tmp_path / "anneal")
    peak = read_state(folder)["lr"]
    assert [line["lr"] for line in lines] == pytest.approx([peak * f for f in (0.8, 0.6, 0.4, 0.2, 0.0)])
    assert lines[0]["loss"] < losses(tmp_path / "base")[0]
    assert read_state(tmp_path / "anneal/steps/step00000005")["data"]["order"]["seed"] == 42
    assert read_state(tmp_path / "anneal/steps/step00000005")["optimizer_steps"] == 10  # the moments came along: 5 + 5
    start = json.loads((tmp_path / "anneal/provenance.json").read_text())["starts"][0]
    assert start["loaded"] == {"step": 5, "sha256": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()}
    without = [
        *[o for o in overrides if "run_" not in o],
        f"run_dir={tmp_path / 'cold'}",
        "run_name=cold",
        "load.optimizer_state=false",
    ]
    run_training(without)
    assert read_state(tmp_path / "cold/steps/step00000005")["optimizer_steps"] == 5
    assert losses(tmp_path / "cold")[0] == losses(tmp_path / "anneal")[0]
    assert losses(tmp_path / "cold")[-1] != losses(tmp_path / "anneal")[-1]


def test_a_checkpoint_at_learning_rate_zero_cannot_be_annealed(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "base", "optim.schedule.final_frac=0"))
    overrides = small(shards, tmp_path / "again", f"load.path={tmp_path / 'base/steps/step00000010'}", "optim.lr=null")
    with pytest.raises(AssertionError, match="stopped at a learning rate of 0"):
        run_training(overrides)


def test_moments_that_a_step_folder_does_not_hold_are_not_taken_for_granted(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "base"))
    folder = tmp_path / "base/steps/step00000005"
    manifest = json.loads((folder / "manifest.json").read_text())
    for group in ("optim", "rng"):
        (folder / f"{group}-00000-of-00001.safetensors").unlink()
        del manifest["tensors"][group], manifest["files"][f"{group}-00000-of-00001.safetensors"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    words = small(shards, tmp_path / "next", f"load.path={folder}", "stop_at_step=1")
    with pytest.raises(
        AssertionError, match=r"load\.optimizer_state=true \(the default\), but .* holds no optimizer state.*=false"
    ):
        run_training(words)
    run_training([*words, "load.optimizer_state=false"])
    assert read_state(tmp_path / "next/steps/step00000001")["optimizer_steps"] == 1


# ---- what a changed config or data gets ------------------------------------------------------------------------------------


def test_a_run_refuses_to_become_another_one(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "run", "stop_at_step=5"))
    with pytest.raises(AssertionError) as caught:
        run_training(small(shards, tmp_path / "run", "optim.lr=0.5", "model.d_model=64", "data.global_batch_size=512"))
    text = str(caught.value)
    for part in (
        "optim.lr=0.5, but ",
        "model.d_model=64, but ",
        "data.global_batch_size=512, but ",
        "began with 0.01",
        "start another run_name",
    ):
        assert part in text
    run_training(
        small(shards, tmp_path / "run", "metrics.log_every=1", "checkpoint.save_every=2", "eval.eval_every=5")
    )  # these may change
    assert len(metrics(tmp_path / "run")) == 10


def test_a_run_refuses_other_data_under_the_same_name(shards: Path, tmp_path: Path) -> None:
    from tests.corpora import Spec, write_corpus

    write_corpus(tmp_path / "data")
    run_training(small(tmp_path / "data", tmp_path / "run", "stop_at_step=5"))
    (tmp_path / "data").rename(tmp_path / "old")
    write_corpus(tmp_path / "data", Spec(seed=3))
    with pytest.raises(
        AssertionError, match=r"the data order changed; sources: .* restore it, or start a new run with load\.path"
    ):
        run_training(small(tmp_path / "data", tmp_path / "run"))


def test_one_folder_belongs_to_one_process(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with open(tmp_path / "run/.lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AssertionError, match="is in use by another process; wait for it, or give another run_name"):
            run_training(small(shards, tmp_path / "run"))


def test_a_damaged_newest_step_costs_one_interval(shards: Path, tmp_path: Path) -> None:
    run_training(small(shards, tmp_path / "whole", "checkpoint.save_every=2"), 2)
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2", "stop_at_step=6"), 2)
    path = tmp_path / "run/steps/step00000006/model-00001-of-00002.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    run_training(small(shards, tmp_path / "run", "checkpoint.save_every=2"), 2)
    starts = json.loads((tmp_path / "run/provenance.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 4]
    assert [p.name.split("-")[0] for p in (tmp_path / "run/steps").glob("*damaged*")] == [".step00000006.damaged"]
    assert weights(tmp_path / "run", 10) == weights(tmp_path / "whole", 10)


# ---- which steps are kept --------------------------------------------------------------------------------------------------


def test_checkpoints_come_when_they_should_and_stay_as_long(shards: Path, tmp_path: Path) -> None:
    overrides = [
        "checkpoint={save_every: 8, save_log_spaced: true, ephemeral_every: 3, keep_ephemeral: 1}",
        "max_tokens=5120",
        "stop_at_step=19",
    ]
    run_training(small(shards, tmp_path / "run", *overrides))
    kept = {step: read_manifest(folder)["kind"] for step, folder in list_steps(tmp_path / "run/steps")}
    expected = {**dict.fromkeys((0, 1, 2, 4, 8, 16), "permanent"), 19: "ephemeral"}
    assert kept == expected
    assert [p.name for p in (tmp_path / "run/steps").iterdir() if p.name.startswith(".")] == []
    run_training(small(shards, tmp_path / "run", *overrides[:2]))
    kept = {step: read_manifest(folder)["kind"] for step, folder in list_steps(tmp_path / "run/steps")}
    assert kept == {**expected, 20: "permanent"}


def test_other_kernels_than_at_the_last_start_are_told(shards: Path, tmp_path: Path) -> None:
    run = small(shards, tmp_path / "run", "stop_at_step=2")
    told = spawn(messages_of, 1, [*run, "kernels.moe_mlp=grouped_mm"])
    assert not any("kernels differ" in line for line in told[0])
    (lines,) = spawn(messages_of, 1, [*run[:-1], "stop_at_step=4"])
    assert (
        "kernels differ from those of the last start (moe_mlp=grouped_mm): the run continues to float rounding, not bit for bit; "
        "insist with kernels.moe_mlp=grouped_mm"
    ) in lines


def messages_of(overrides: list[str]) -> list[str]:
    """Warnings of a start."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logging.getLogger("olmo_train").addHandler(Keep())
    train_here(overrides)
    return lines
