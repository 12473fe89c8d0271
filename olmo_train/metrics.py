"""One honest metrics.jsonl, and its mirrors: a progress bar (or log lines) and Weights & Biases. Fields: docs/metrics.md."""

import json
import logging
import math
import netrc
import os
import resource
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from tqdm import tqdm

from olmo_train.config.train import MetricsConfig, TrainConfig, WandbMode
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.files import sync_folder, write_atomic
from olmo_train.journal import Journal

log = logging.getLogger(__name__)
# Dense bf16 rates of the datasheets, FLOP/s per device, by a part of the device's name.
PEAK_FLOPS = {
    "H200": 989.5e12,
    "GH200": 989.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.5e12,
    "A100": 312e12,
    "B200": 2250e12,
}


class PhaseTimer:
    """Seconds spent in each phase since the last reading. On a GPU by events, so that measuring makes nobody wait."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str, on_device: bool = True) -> Iterator[None]:
        """Count the time of the block under `name`; `on_device=False` for what the host does while the GPU may idle."""
        if self._on_gpu and on_device:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            begin = time.perf_counter()
            yield
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - begin

    def read(self) -> dict[str, float]:
        """Seconds by phase, and start again. Synchronises a GPU."""
        if self._events:
            torch.cuda.synchronize()
            for name, start, end in self._events:
                self._seconds[name] = self._seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
            self._events.clear()
        seconds, self._seconds = self._seconds, {}
        return {name: round(value, 6) for name, value in seconds.items()}


class MetricsLog:
    """Rank 0's writer. Lines are one per step; on other ranks nothing is written."""

    def __init__(
        self, folder: Path, run: TrainConfig, is_main: bool, values: dict[str, Any], check: Callable[[], None] = lambda: None
    ) -> None:
        """`values`: the run's config as plain values, for Weights & Biases. `check`: whether the folder is still ours (Fence)."""
        self.folder, self.config, self.is_main = folder, run.metrics, is_main
        self._metrics, self._ledger = Journal(folder / "metrics.jsonl", check), Journal(folder / "data.jsonl", check)
        self.last_step = run.max_tokens // run.data.global_batch_size
        self._bar: tqdm[Any] | None = None
        self._wandb = _start_wandb(folder, run.metrics, run.run_name, values) if is_main and run.metrics.wandb else None

    def restart_at(self, step: int) -> None:
        """Drop the lines after `step`, which will be written again, and start the display there.

        Raises:
            CheckpointError: the file system refuses.
        """
        if not self.is_main:
            return
        for name in ("metrics.jsonl", "data.jsonl"):
            try:
                steps = drop_lines_after(self.folder / name, step if step > 0 else -1)  # from the start, 0 is evaluated again too
            except OSError as error:
                raise CheckpointError(
                    f"{self.folder / name}: {error.strerror}; free space or mend the file system, then the same command continues"
                ) from error
            missing = sorted(set(range(1, step + 1)) - set(steps))
            if steps and missing:
                log.warning(
                    "%s lacks %d of the %d steps before this start, the first is step %d: the file was lost or changed; the "
                    "checkpoints are not affected", self.folder / name, len(missing), step, missing[0],
                )  # fmt: skip
        if self.config.progress_bar and sys.stderr.isatty():
            self._bar = tqdm(total=self.last_step, initial=step, unit="step", dynamic_ncols=True)

    def write(self, lines: list[dict[str, Any]], ledger: list[dict[str, Any]]) -> None:
        """Append steps to metrics.jsonl and data.jsonl, and show the last one. A file system that fails stops nobody here.

        Raises:
            SupersededError: a later start has taken the run over.
        """
        if not self.is_main or not lines:
            return
        self._metrics.append(_text(lines))
        self._ledger.append(_text(ledger))
        if self._wandb is not None:
            for line in lines:
                self._wandb.log(_flat(line), step=line["step"])
        last = lines[-1]
        if last["step"] == 0:  # only evaluated, and its results are logged where they are made
            return
        if self._bar is not None:
            self._bar.update(last["step"] - self._bar.n)
            self._bar.set_postfix_str(_summary(last))
        else:
            log.info("step %d/%d  %s", last["step"], self.last_step, _summary(last))

    def sync(self) -> None:
        """Bring all lines to disk, before the step after them counts as saved: then a resumed run lacks no line.

        Raises:
            CheckpointError: the file system refuses; the lines are kept.
        """
        self._metrics.sync()
        self._ledger.sync()

    def close(self) -> None:
        """End the display and the mirror."""
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()


def drop_lines_after(path: Path, step: int) -> list[int]:
    """Remove the lines of later steps, second lines of a step, and what a kill or a power failure left of one; return the steps.

    The file becomes another one even if nothing changes: what a cut-off start still writes goes into the one that is gone.
    """
    if not path.exists():
        return []
    kept: dict[int, bytes] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            number = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if number <= step:
            kept.setdefault(number, line + b"\n")
    write_atomic(path, b"".join(kept.values()))
    sync_folder(path.parent)
    return list(kept)


def expert_metrics(counts_LE: torch.Tensor, confidence_L: torch.Tensor, n_tokens: float) -> dict[str, list[float]]:
    """Per MoE layer, over the counted tokens.

    load_max_over_mean: the busiest expert's tokens over the mean. load_entropy: of the shares, over its maximum log E, so 1 is
    perfect balance. dead_experts: experts without a token. router_confidence: mean of the largest router probability.
    """
    counts = counts_LE.double()
    share = counts / counts.sum(-1, keepdim=True)
    entropy = torch.special.entr(share).sum(-1) / math.log(counts.shape[1]) if counts.shape[1] > 1 else torch.ones(len(counts))
    values = {
        "load_max_over_mean": counts.amax(-1) / counts.mean(-1),
        "load_entropy": entropy,
        "dead_experts": (counts == 0).sum(-1),
        "router_confidence": confidence_L.double() / n_tokens,
    }
    return {name: [round(v, 6) for v in value.tolist()] for name, value in values.items()}


def peak_flops(config: MetricsConfig, device: torch.device) -> tuple[float, str]:
    """(FLOP/s of one device, where the number is from), for MFU."""
    if config.peak_flops is not None:
        return config.peak_flops, "metrics.peak_flops"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, rate in PEAK_FLOPS.items():
            if part in name:
                return rate, f"datasheet of {part}, dense bf16"
    return _measured_matmul(
        device
    ), "measured: float32 matmul of 1024 x 1024" if device.type == "cpu" else "measured: bf16 matmul of 8192 x 8192"


def _measured_matmul(device: torch.device) -> float:
    n, dtype = (1024, torch.float32) if device.type == "cpu" else (8192, torch.bfloat16)
    a = torch.ones(n, n, dtype=dtype, device=device)
    best = math.inf
    for _ in range(6):
        begin = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * n**3 / best


def peak_memory_gib(device: torch.device) -> float:
    """Highest use so far: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(_without_nan(line), allow_nan=False) + "\n" for line in lines)


def _without_nan(value: Any) -> Any:
    """Infinite and undefined numbers as None: JSON has none, and `NaN` in a file stops every reader but Python's."""
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(line: dict[str, Any]) -> str:
    parts = [f"loss {line['loss']:.4f}" if line["loss"] is not None else "loss nan", f"lr {line['lr']:.2e}"]
    if "tokens_per_s" in line:
        parts += [f"{line['tokens_per_s']:,.0f} tok/s", f"mfu {line['mfu']:.1%}", f"eta {_duration(line['eta_s'])}"]
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m{rest:02d}s"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under names with slashes; lists by index."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list):
            value = {str(i): v for i, v in enumerate(value)}
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            out[prefix + key] = value
    return out


def _start_wandb(folder: Path, config: MetricsConfig, run_name: str, values: dict[str, Any]) -> Any:
    """A wandb run that later starts of the same folder continue."""
    assert config.wandb is not None
    try:
        import wandb
    except ImportError:
        raise ConfigError(
            "metrics.wandb is set, but wandb is not installed; pip install 'olmo-train[wandb]', or metrics.wandb=null"
        ) from None
    mode = config.wandb.mode
    if mode == WandbMode.AUTO:
        mode = WandbMode.ONLINE if _has_wandb_key() else WandbMode.OFFLINE
    project, entity, identity = config.wandb.project, config.wandb.entity, folder / "wandb_id"
    if not identity.exists() or not identity.read_text().strip():
        write_atomic(identity, secrets.token_hex(4).encode())

    def init(name: Any) -> Any:
        return wandb.init(
            project=project, entity=entity, name=run_name, id=identity.read_text().strip(),
            resume="allow", dir=str(folder), mode=name, config=values,
        )  # fmt: skip

    try:
        return init(mode.value)
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if not isinstance(error, wandb.errors.CommError) or isinstance(error, wandb.errors.AuthenticationError):
            raise ConfigError(f"metrics.wandb: {reason}; mend it, or use metrics.wandb.mode=offline") from error
    log.error("metrics.wandb: %s; this start is logged offline, `wandb sync` in %s brings it there later", reason, folder)
    wandb.teardown()  # it holds the id of the run that could not begin
    return init("offline")


def _has_wandb_key() -> bool:
    """Whether there is a key where WandbMode.AUTO says; wandb's own functions for it warn, or prompt for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    try:
        return netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc").authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
