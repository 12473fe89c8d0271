"""What runs, how far it is, and when it will be done: `olmo jobs`, `olmo jobs RUN`."""

import argparse
import json
import textwrap
from dataclasses import asdict
from pathlib import Path

from launch.job_folder import attempts
from launch.status import (
    ArrayStatus,
    Status,
    ask_slurm,
    describe_end,
    find_arrays,
    find_run,
    find_runs,
    job_folders,
    read_array,
    read_status,
)
from olmo_train.errors import ConfigError, run_command

COLUMNS = ("RUN", "STATE", "NODES", "STARTS", "STEP", "LOSS", "TOKENS/S", "ETA", "SAVED")
LIVE = ("running", "training", "completing")
"""States in which ranks may be at work."""
LONGEST = 180
"""Characters of a reason in the table; `olmo jobs RUN` has all of it."""


def main(argv: list[str]) -> None:
    """Print a table of all runs, or all of one run.

    Raises:
        ConfigError: the run, or the folder of runs, is not there.
    """
    parser = argparse.ArgumentParser("olmo jobs", description=__doc__)
    parser.add_argument("run", nargs="?", help="name or folder of a run; all of it and its starts")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default runs)")
    parser.add_argument("--jobs", type=Path, default=Path("jobs"), help="folder of arrays of data tasks (default jobs)")
    parser.add_argument("--json", action="store_true", help="a line of JSON per run")
    args = parser.parse_args(argv)
    runs = [find_run(args.runs, args.run)] if args.run else find_runs(args.runs)
    arrays = [] if args.run else find_arrays(args.jobs)
    if not runs and not arrays:
        raise ConfigError(f"--runs={args.runs}: there is no run in it; start one with `olmo launch`, or give another folder")
    queued, silent = ask_slurm(runs, arrays)
    found = [read_status(run, queued, slurm_answers=not silent) for run in runs]
    work = [read_array(folder, queued, slurm_answers=not silent) for folder in arrays]
    if args.json:
        everything: list[Status | ArrayStatus] = [*found, *work]
        print("\n".join(json.dumps(asdict(status)) for status in everything))
        return
    lines = details(found[0]) if args.run else [*(table(found) if found else []), *(_array_line(array) for array in work)]
    print("\n".join(lines))
    if silent and (work or any(status.state == "unknown" for status in found)):
        print(f"\nSlurm could not be asked: {silent}")


def _array_line(array: ArrayStatus) -> str:
    failed = f", {array.failed} failed (olmo launch tasks --again {array.folder})" if array.failed else ""
    return (
        f"{array.folder}  {array.name}: {array.done} of {array.n_tasks} done, {array.running} run, {array.waiting} wait{failed}"
    )


def table(found: list[Status]) -> list[str]:
    """A row per run, and below it why it waits or how it ended."""
    rows = [COLUMNS, *(_row(status) for status in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    out = lines[:1]
    for status, line in zip(found, lines[1:], strict=True):
        out.append(line)
        reason = _reason(status)
        if reason and status.state not in ("complete", "paused"):
            out.append(f"  {textwrap.shorten(reason, LONGEST, placeholder=' ...')}")
    return out


def _row(status: Status) -> tuple[str, ...]:
    return (
        status.name,
        status.state,
        str(len(status.nodes)) if status.nodes else "-",
        _number(status.starts),
        _step(status),
        "-" if status.loss is None else f"{status.loss:.4f}",
        _number(status.tokens_per_s) if status.state in LIVE else "-",
        duration(status.eta_s) if status.state in LIVE else "-",
        "-" if status.saved_step is None else f"{status.saved_step:,} ({duration(status.saved_age_s)} ago)",
    )


def _step(status: Status) -> str:
    return f"{_number(status.step)}/{_number(status.last_step)}" if status.last_step is not None else _number(status.step)


def _reason(status: Status) -> str:
    expected = f"expected to start {status.start}" if status.start else ""
    return "; ".join(part for part in (status.reason, expected) if part)


def details(status: Status) -> list[str]:
    """All of one run, a fact per line, and its starts."""
    left = f", {duration(status.left_s)} until its time limit" if status.left_s is not None else ""
    job = f"Slurm job {status.slurm_id}{left}" if status.slurm_id else ""
    counted = f"{_number(status.starts)}" + (f", the Slurm job requeued {status.requeues} times" if status.requeues else "")
    speed = f"{_number(status.tokens_per_s)} tokens/s" if status.tokens_per_s is not None else ""
    rest = f"done in {duration(status.eta_s)}" if status.eta_s is not None and status.state in LIVE else ""
    saved = "no step yet" if status.saved_step is None else f"step {status.saved_step:,}, {duration(status.saved_age_s)} ago"
    facts = {
        "run": f"{status.name} in {status.run_dir}",
        "state": ", ".join(part for part in (status.state, _reason(status)) if part),
        "job": ", ".join(part for part in (job, status.job_folder or "") if part),
        "nodes": " ".join(status.nodes),
        "starts": counted if status.starts is not None else "",
        "step": f"{_step(status)}, written {duration(status.metrics_age_s)} ago" if status.step is not None else "",
        "loss": "" if status.loss is None else f"{status.loss:.4f}",
        "speed": ", ".join(part for part in (speed, rest) if part),
        "slowest": _slowest(status),
        "saved": saved,
        "aside": f"not used, in {status.run_dir}/steps: {' '.join(status.set_aside)}" if status.set_aside else "",
    }
    return [f"{name:<8} {value}" for name, value in facts.items() if value] + _starts(Path(status.run_dir), status.state in LIVE)


def _slowest(status: Status) -> str:
    slowest = status.slowest
    return (
        f"rank {slowest['rank']} on {slowest['node']}, {slowest['excess']:.1%} more own work than the median" if slowest else ""
    )


def _starts(run: Path, is_live: bool) -> list[str]:
    found = [(job, attempt) for job in job_folders(run) for attempt in attempts(job)]
    lines = []
    for job, attempt in found:
        silent = "it goes on" if is_live and attempt == found[-1][1] else "no rank could say how it ended"
        lines.append(f"  {job.name}/{attempt.name}  {describe_end(attempt) or silent}")
    return ["", "Starts (job/start) and how each ended:", *lines] if lines else []


def duration(seconds: float | None) -> str:
    """`3d04h`, `2h05m`, `4m`, `12s`; `-` for None."""
    if seconds is None:
        return "-"
    minutes, hours, days = int(seconds) // 60, int(seconds) // 3600, int(seconds) // 86400
    if days:
        return f"{days}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{minutes}m" if minutes else f"{int(seconds)}s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
