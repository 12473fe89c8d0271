"""`olmo train` as a user meets it: one message for everything that is wrong, Hydra's own flags, and a run that is complete."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from olmo_train.errors import EXIT_USAGE, CheckpointError, ConfigError, ShardError, run_command
from tests.runs import metrics, small

ROOT = Path(__file__).parents[2]
TRAIN = ["-m", "olmo_train.train"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
WRONG = [
    "run_name=x", "model.n_layer=3", "optim.lr=fast", "checkpoint.async_save=maybe", "data.micro_batch_size=96",
    "data.sources.demo.path=nowhere", "load={path: runs/gone/steps/step00000010}", "optim=adam",
]  # fmt: skip
PROBLEMS = [
    "model.n_layer is not a field of ModelConfig (did you mean n_layers?)",
    "optim=adam: configs/optim/ has no 'adam' (did you mean adamw?); options: adamw, muon, olmo2, olmoe",
    "optim.lr='fast' is a str, must be a float",
    "checkpoint.async_save='maybe' is a str, must be a bool; write true or false",
    "data.micro_batch_size=96 tokens is not a multiple of data.seq_len=256; nearest: 256",
    "data.global_batch_size=4096 tokens is not a multiple of micro_batch_size * n_ranks = 96 * ",
    "data.sources.demo.path=nowhere does not exist; write shards with `olmo data tokenize`",
    "load.path=runs/gone/steps/step00000010 is not a step folder (it has no manifest.json)",
]


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    mine = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    env = mine | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=folder, env=env)


@pytest.mark.parametrize(
    "program", [TRAIN, ["-m", "olmo_train.cli", "train"], [*TORCHRUN, *TRAIN]], ids=["module", "olmo", "torchrun"]
)
def test_everything_wrong_is_one_message_and_nothing_is_created(tmp_path: Path, program: list[str]) -> None:
    done = python(tmp_path, *program, *WRONG)
    if program[1] != "torch.distributed.run":  # which adds its own words, and ends with 1
        assert done.returncode == EXIT_USAGE
        assert len(done.stderr.splitlines()) == 1 + len(PROBLEMS)
    assert done.stderr.count(f"error: {len(PROBLEMS)} problems in the configuration:") == 1
    for problem in PROBLEMS:
        assert len(re.findall(rf"^  \d\. {re.escape(problem)}", done.stderr, re.MULTILINE)) == 1, problem
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_on_a_complete_run_says_so_and_changes_nothing(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path / "run", "max_tokens=512", "optim.schedule.warmup_tokens=256")
    first = python(tmp_path, *TRAIN, *overrides)
    assert first.returncode == 0, first.stderr
    assert f"run run: step 2 of 2 is saved in {tmp_path / 'run/steps'}" in first.stderr
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run/steps").rglob("*")) if path.is_file()}
    lines = metrics(tmp_path / "run")
    again = python(tmp_path, *TRAIN, *overrides)
    assert again.returncode == 0
    assert again.stderr.splitlines()[-1].endswith(f"run run is complete: step 2 is saved in {tmp_path / 'run/steps'}")
    assert {path: path.read_bytes() for path in sorted((tmp_path / "run/steps").rglob("*")) if path.is_file()} == before
    assert metrics(tmp_path / "run") == lines


# ---- Hydra's own flags -----------------------------------------------------------------------------------------------


def test_help_shows_the_groups_and_starts_nothing(tmp_path: Path) -> None:
    done = python(tmp_path, *TRAIN, "--help")
    assert done.returncode == 0
    for group in ("data: demo, olmoe_mix", "model: ", "optim: adamw, muon, olmo2, olmoe", "experiment: anneal"):
        assert f"\n{group}" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_prints_the_composed_config_and_starts_nothing(tmp_path: Path) -> None:
    done = python(tmp_path, *TRAIN, "--cfg", "job", "--resolve", "run_name=x", "experiment=demo", "model.moe.top_k=2")
    assert done.returncode == 0
    for line in ("run_name: x", "run_dir: runs/x", "max_tokens: 2457600", "    top_k: 2"):
        assert f"\n{line}\n" in f"\n{done.stdout}"
    assert list(tmp_path.iterdir()) == []


def test_multirun_trains_each_value(shards: Path, tmp_path: Path) -> None:
    words = [
        word for word in small(shards, tmp_path / "x", "max_tokens=512", "optim.schedule.warmup_tokens=0") if "run_" not in word
    ]
    done = python(tmp_path, *TRAIN, "-m", "run_name=r${seed}", "seed=1,2", *words)
    assert done.returncode == 0, done.stderr
    runs = [tmp_path / "runs" / name for name in ("r1", "r2")]
    assert [len(metrics(run)) for run in runs] == [2, 2]
    assert metrics(runs[0])[0]["loss"] != metrics(runs[1])[0]["loss"]


@pytest.mark.slow
def test_multirun_over_finished_runs_says_so(shards: Path, tmp_path: Path) -> None:
    words = [
        word for word in small(shards, tmp_path / "x", "max_tokens=512", "optim.schedule.warmup_tokens=0") if "run_" not in word
    ]
    for _ in range(2):
        done = python(tmp_path, *TRAIN, "-m", "run_name=r${seed}", "seed=1,2", *words)
        assert done.returncode == 0, done.stderr
    assert "run r1 is complete" in done.stderr
    assert "run r2 is complete" in done.stderr


def test_multirun_with_a_wrong_value_is_one_message(shards: Path, tmp_path: Path) -> None:
    words = [word for word in small(shards, tmp_path / "x", "data.micro_batch_size=48") if "run_" not in word]
    done = python(tmp_path, *TRAIN, "-m", "run_name=r${seed}", "seed=1,2", *words)
    assert done.returncode == EXIT_USAGE
    assert "Traceback" not in done.stderr
    assert done.stderr.count("data.global_batch_size=256 tokens is not a multiple of micro_batch_size") == 1


# ---- who speaks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (ConfigError(["a", "b"]), ""),  # every rank found it
        (ShardError("part-00001.npy: gone"), "error on rank 3: part-00001.npy: gone\n"),  # which only this one may read
        (CheckpointError("disk full"), "error on rank 3: disk full\n"),
    ],
)
def test_of_several_ranks_the_first_tells_what_all_have_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, elsewhere: str
) -> None:
    def fail(argv: list[str]) -> None:
        raise error

    statuses = set()
    for rank, expected in ((None, f"error: {error}\n"), ("0", f"error: {error}\n"), ("3", elsewhere)):
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
        statuses.add(run_command(fail, []))
        assert capsys.readouterr().err == expected
    assert len(statuses) == 1  # the same on all ranks
