"""Time, rates and facts of a machine: what the benchmarks measure with, print and save."""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "quack-kernels", "flash-attn-4", "nvidia-cutlass-dsl", "liger-kernel", "torchao")


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Seconds between marks. On a GPU by events in its stream, so that marking makes nobody wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Note this moment."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next. Synchronises a GPU."""
        synchronize(self._device)
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == "cuda":
            return [start.elapsed_time(end) / 1000 for start, end in pairs]
        return [end - start for start, end in pairs]


def median_seconds(work: Callable[[], object], device: torch.device, budget_s: float = 0.5, most: int = 30) -> float:
    """Median time of one call, after one that warms up and one that says how many repeats the budget pays for (3 or more)."""
    work()
    synchronize(device)
    begin = time.perf_counter()
    work()
    synchronize(device)
    repeats = max(3, min(most, int(budget_s / max(time.perf_counter() - begin, 1e-6))))
    clock = Clock(device)
    clock.mark()
    for _ in range(repeats):
        work()
        clock.mark()
    return median(clock.seconds())


def matmul_rate(device: torch.device, budget_s: float = 0.5) -> float:
    """FLOP/s of a square product: bf16 of 8192 on a GPU, float32 of 512 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_seconds(lambda: torch.mm(a, b, out=out), device, budget_s, most=400)


def copy_rate(device: torch.device) -> float:
    """Bytes read and written per second by a copy of 1 GiB (64 MiB on a CPU)."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device, budget_s=0.2)


# ---- the machine -----------------------------------------------------------------------------------------------------------


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Card, memory, driver, versions, commit, date and command line, as plain values."""
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }
    if device.type != "cuda":
        name = platform.processor() or platform.machine()
        return facts | {"device": name, "threads": torch.get_num_threads(), "memory_gib": None}
    card = torch.cuda.get_device_properties(device)
    query = "driver_version,power.limit,clocks.max.sm"
    return facts | {
        "device": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "driver, power limit (W), highest clock (MHz)": _output(_smi(query)),
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
    }


class Watch:
    """Clock, power and temperature of the GPU while a block runs, by nvidia-smi; empty where there is none."""

    def __init__(self) -> None:
        self.medians: dict[str, float] = {}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Watch":
        try:
            command = [*_smi("clocks.sm,power.draw,temperature.gpu"), "-lms", "200"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        except OSError:
            self._process = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        self._process.terminate()
        lines = [line.split(",") for line in self._process.communicate()[0].splitlines()]
        for column, name in enumerate(("sm_clock_mhz", "power_w", "temperature_c")):
            values = [float(line[column]) for line in lines if len(line) == 3 and _is_number(line[column])]
            if values:
                self.medians[name] = median(values)


def _smi(query: str) -> list[str]:
    index = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    return ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", index]


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_number(word: str) -> bool:
    return word.strip().replace(".", "", 1).isdigit()


# ---- children and tables ---------------------------------------------------------------------------------------------------


def run_child(script: str, task: dict[str, Any], folder: Path, timeout_s: float) -> tuple[list[dict[str, Any]], str | None]:
    """Run `script --task FILE` in a process group of its own; return the lines it wrote to task["out"], and what went wrong.

    A candidate that crashes, hangs or runs out of memory so takes nothing else with it. If this process is asked to stop, the
    child is ended first.
    """
    name = "".join(c if c.isalnum() else "_" for c in str(task["name"]))
    out, log = folder / f"{name}.jsonl", folder / f"{name}.log"
    out.unlink(missing_ok=True)
    given = folder / f"{name}.task.json"
    given.write_text(json.dumps(task | {"out": str(out)}))
    command = [sys.executable, str(Path(script).resolve()), "--task", str(given)]
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ}  # else a full card fragments
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by an exception, so that `finally` ends the child
    with log.open("w") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env=environment)
        try:
            status = child.wait(timeout_s)
            problem = None if status == 0 else f"exit status {status}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            problem = f"took more than {timeout_s:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # with its compile workers
                child.wait()
            signal.signal(signal.SIGTERM, before)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    return lines, problem


def probe(script: str, folder: Path) -> dict[str, Any]:
    """`describe_machine` and a matmul rate; of a GPU by a child, so that this process takes none of its memory."""
    if not torch.cuda.is_available():
        return _probe()
    lines, problem = run_child(script, {"name": "machine"}, folder, 180)
    if not lines:
        raise SystemExit(f"error: the GPU could not be probed: {problem}")
    return lines[0]


def answer_probe(task: dict[str, Any]) -> bool:
    """In a child: answer `probe`; False if the task is another."""
    if task["name"] == "machine":
        answer(task, _probe())
    return task["name"] == "machine"


def _probe() -> dict[str, Any]:
    device = default_device()
    return describe_machine(device) | {"matmul_rates": [matmul_rate(device)]}


def answer(task: dict[str, Any], values: dict[str, Any]) -> None:
    """In a child: add a line to what its parent will read."""
    with Path(task["out"]).open("a") as stream:
        stream.write(json.dumps(values) + "\n")


def last_line(log: Path) -> str:
    """The last line of a log that says something: as a rule the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return short((errors or lines or ["no output"])[-1])


def short(error: object, length: int = 140) -> str:
    """One line of an error, for a table."""
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, the others to the right."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for first, *rest in lines:
        out.append("  ".join([f"{first:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(rest, widths[1:], strict=True))]))
    out.insert(1, "-" * len(out[0]))
    return "\n".join(line.rstrip() for line in out)
