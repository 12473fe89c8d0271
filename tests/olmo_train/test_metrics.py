"""metrics.jsonl: one valid line per step whatever happened, honest rates, and mirrors that hold the same."""

import io
import json
import logging
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from olmo_train.config.train import MetricsConfig, TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.metrics import PEAK_FLOPS, MetricsLog, PhaseTimer, drop_lines_after, expert_metrics, peak_flops, peak_memory_gib
from olmo_train.model.size import flops_per_token
from olmo_train.schema import load_config, to_plain
from tests.runs import metrics, run_training, small

CPU = torch.device("cpu")
RATES = {"tokens_per_s": 1234.5, "mfu": 0.25, "eta_s": 3725.0}


def open_log(folder: Path, *overrides: str, is_main: bool = True) -> MetricsLog:
    run = load_config("train", TrainConfig, small(folder / "shards", folder, *overrides))
    return MetricsLog(folder, run, is_main, to_plain(run))


def line(step: int, loss: float | None = 1.0, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 1e-2, **more}


def strict_lines(path: Path) -> list[Any]:
    """Lines by the letter of the standard, which knows no NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]


# ---- the file --------------------------------------------------------------------------------------------------------


def test_lines_after_the_resumed_step_go_and_so_does_one_cut_short(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.write([line(step) for step in (0, 1, 2)], [{"step": 1}, {"step": 2}])
    log.write([line(step) for step in (3, 4, 5)], [{"step": 3}, {"step": 4}, {"step": 5}])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    again = open_log(tmp_path)
    again.restart_at(3)
    assert [entry["step"] for entry in strict_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert [entry["step"] for entry in strict_lines(tmp_path / "data.jsonl")] == [1, 2, 3]
    again.write([line(4)], [{"step": 4}])
    assert [entry["step"] for entry in strict_lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_start_from_the_beginning_evaluates_step_0_once(shards: Path, tmp_path: Path) -> None:
    """A run killed before its first checkpoint has evaluated step 0, and does so again."""
    log = open_log(tmp_path / "run")
    (tmp_path / "run").mkdir()
    log.write([line(0, None, eval={})], [])
    log.write([line(1), line(2)], [{"step": 1}, {"step": 2}])
    run_training(small(shards, tmp_path / "run", "max_tokens=768", "eval.eval_every=100"))
    assert [entry["step"] for entry in metrics(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_missing_file_stays_missing(tmp_path: Path) -> None:
    drop_lines_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    layers = {"router_confidence": [math.nan, 0.5], "dead_experts": [0, 1]}
    evaluation = {"heldout": {"a": {"loss": math.inf, "tokens": 7}}}
    open_log(tmp_path).write([line(1, None, layers=layers, eval=evaluation, grad_norm=-math.inf)], [])
    (entry,) = strict_lines(tmp_path / "metrics.jsonl")
    assert entry["layers"] == {"router_confidence": [None, 0.5], "dead_experts": [0, 1]}
    assert entry["eval"] == {"heldout": {"a": {"loss": None, "tokens": 7}}}
    assert (entry["loss"], entry["grad_norm"], entry["lr"]) == (None, None, 1e-2)


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = open_log(tmp_path, "metrics.wandb={project: p}", is_main=False)
    log.restart_at(0)
    log.write([line(1)], [{"step": 1}])
    log.close()
    assert list(tmp_path.iterdir()) == []


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_mfu_is_the_models_flops_over_the_devices(shards: Path, tmp_path: Path) -> None:
    overrides = small(shards, tmp_path / "run", "metrics.peak_flops=2e9", "metrics.log_every=5")
    run_training(overrides, 2)
    model = load_config("train", TrainConfig, overrides).model
    full = [entry for entry in metrics(tmp_path / "run") if "mfu" in entry]
    assert len(full) == 2
    for entry in full:
        assert entry["mfu"] == pytest.approx(entry["tokens_per_s_per_rank"] * flops_per_token(model, 16) / 2e9)
        assert entry["tokens_per_s"] == pytest.approx(2 * entry["tokens_per_s_per_rank"])
        trained_s = entry["seconds"]["interval"] - entry["seconds"].get("checkpoint", 0.0)
        assert entry["tokens_per_s"] == pytest.approx(5 * 256 / trained_s, rel=0.01)
        assert entry["eta_s"] == pytest.approx((10 - entry["step"]) * entry["seconds"]["interval"] / 5)


def test_the_peak_is_what_the_config_says_or_measured() -> None:
    assert peak_flops(MetricsConfig(log_every=1, peak_flops=3e12), CPU) == (3e12, "metrics.peak_flops")
    value, source = peak_flops(MetricsConfig(log_every=1), CPU)
    assert value > 1e6
    assert source == "measured: float32 matmul of 1024 x 1024"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_of_a_known_gpu_is_its_datasheets() -> None:
    value, source = peak_flops(MetricsConfig(log_every=1), torch.device("cuda", 0))
    name = torch.cuda.get_device_name(0)
    known = [part for part in PEAK_FLOPS if part in name]
    assert (value, source) == (PEAK_FLOPS[known[0]], f"datasheet of {known[0]}, dense bf16") if known else "measured" in source


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's own account of it")
def test_peak_memory_is_in_gib() -> None:
    torch.ones(2**27)  # half a GiB
    peak = peak_memory_gib(CPU)
    status = dict(text.split(":", 1) for text in Path("/proc/self/status").read_text().splitlines())
    assert peak == pytest.approx(int(status["VmHWM"].split()[0]) / 2**20, rel=0.01)
    assert peak > 0.5


def test_phases_add_up_and_begin_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.5, 10.0, 10.25, 20.0, 22.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timer = PhaseTimer(CPU)
    with timer.phase("forward"):
        pass
    with timer.phase("data", on_device=False):
        pass
    with timer.phase("forward"):
        pass
    assert timer.read() == {"forward": 3.5, "data": 0.25}
    assert timer.read() == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_phases_are_the_gpus_own() -> None:
    timer = PhaseTimer(torch.device("cuda"))
    with timer.phase("sleep"):
        torch.cuda._sleep(10**8)  # queued, and left at once
    with timer.phase("host", on_device=False):
        pass
    seconds = timer.read()
    assert seconds["sleep"] > 0.01 > seconds["host"]
    assert timer.read() == {}


def test_expert_balance_is_what_its_names_say() -> None:
    counts = torch.tensor([[25.0, 25.0, 25.0, 25.0], [100.0, 0.0, 0.0, 0.0], [50.0, 50.0, 0.0, 0.0]])
    values = expert_metrics(counts, torch.tensor([20.0, 50.0, 10.0]), n_tokens=50)
    assert values == {
        "load_max_over_mean": [1.0, 4.0, 2.0],
        "load_entropy": [1.0, 0.0, 0.5],
        "dead_experts": [0, 3, 2],
        "router_confidence": [0.4, 1.0, 0.2],
    }
    assert expert_metrics(torch.tensor([[9.0]]), torch.tensor([9.0]), 9)["load_entropy"] == [1.0]


# ---- mirrors ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for words, shown in (([], True), (["metrics.progress_bar=false"], False)):
        monkeypatch.setattr(sys, "stderr", Terminal())
        log = open_log(tmp_path, *words)
        log.restart_at(4)
        log.write([line(5), line(6, 2.5, **RATES)], [])
        log.close()
        text = sys.stderr.getvalue()  # type: ignore[attr-defined]
        assert ("6/10" in text and "loss 2.5000" in text) is shown
    assert caplog.messages == ["step 6/10  loss 2.5000  lr 1.00e-02  1,234 tok/s  mfu 25.0%  eta 1h02m"]  # of the second


def test_elsewhere_there_is_a_line_per_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = open_log(tmp_path)
    log.restart_at(0)
    log.write([line(0, None, eval={})], [])  # only evaluated: there is no loss to show
    log.write([line(1), line(2, 3.25)], [])
    log.write([line(3, None, **RATES | {"eta_s": 61.0})], [])
    log.write([], [])
    assert caplog.messages == [
        "step 2/10  loss 3.2500  lr 1.00e-02",
        "step 3/10  loss nan  lr 1.00e-02  1,234 tok/s  mfu 25.0%  eta 1m01s",
    ]


WANDB = """
import sys
from pathlib import Path
from tests.olmo_train.test_metrics import line, open_log
for step in (1, 3):
    log = open_log(Path(sys.argv[1]), *sys.argv[2:])
    log.write([line(step), line(step + 1, 0.5, layers={"dead_experts": [0, 3]}, absent=None)], [])
    log.close()
"""


def with_wandb(folder: Path, *overrides: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Start twice and write two lines each, in a process of its own without a home, since wandb keeps state in both."""
    env = {"HOME": str(folder / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2]), **more}
    (folder / "home").mkdir(exist_ok=True)
    command = [sys.executable, "-c", WANDB, str(folder), *overrides]
    return subprocess.run(command, capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)


def test_wandb_without_a_key_is_an_offline_run_that_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    done = with_wandb(tmp_path, "metrics.wandb={project: first}")
    assert done.returncode == 0, done.stderr
    identity = (tmp_path / "wandb_id").read_text()
    files = list(tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))
    assert files
    content = b"".join(path.read_bytes() for path in files)
    for part in (b"loss", b"layers/dead_experts/1", b"optim"):  # lists by index, and the config of the run
        assert part in content
    assert b"absent" not in content  # null is left out
    assert len(strict_lines(tmp_path / "metrics.jsonl")) == 4


@pytest.mark.slow  # wandb itself tries for half a minute
def test_a_wandb_server_that_does_not_answer_ends_no_run(tmp_path: Path) -> None:
    """And an id of which a kill left only the file's name is drawn anew."""
    pytest.importorskip("wandb")
    (tmp_path / "wandb_id").write_text("")
    server = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "a" * 40, "WANDB_INIT_TIMEOUT": "2"}
    done = with_wandb(tmp_path, "metrics.wandb={project: first}", **server)
    assert done.returncode == 0, done.stderr
    assert "this start is logged offline, `wandb sync` in" in done.stderr
    identity = (tmp_path / "wandb_id").read_text()
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{identity}/run-{identity}.wandb"))) == 2
    assert len(strict_lines(tmp_path / "metrics.jsonl")) == 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a key, and a server that nobody can reach."""
    for name in ("WANDB_API_KEY", "NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    return tmp_path


def test_wandb_online_needs_a_key(home: Path) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(
        ConfigError, match=r"metrics.wandb: No API key configured\. .*; mend it, or use metrics.wandb.mode=offline"
    ):
        open_log(home, "metrics.wandb={project: p, mode: online}")


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_with_a_key_wandb_is_online(home: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """The key is too short to be one, which wandb asks only of those that it would use."""
    pytest.importorskip("wandb")
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    else:
        (home / ".netrc").write_text("machine elsewhere login me password x\nmachine 127.0.0.1:9 login me password short\n")
    with pytest.raises(ConfigError, match="metrics.wandb: .*API key .*; mend it, or use metrics.wandb.mode=offline"):
        open_log(home, "metrics.wandb={project: p}")


def test_wandb_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as an import of a package that is not there
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'olmo-train\[wandb\]', or metrics.wandb=null"):
        open_log(tmp_path, "metrics.wandb={project: p}")
