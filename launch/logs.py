"""What happened, the first error on top: `olmo logs RUN`. Then the job's story, then what a rank printed."""

import argparse
import re
import time
from collections.abc import Iterator
from pathlib import Path

from launch.attempts import explain, last_lines, read_attempt
from launch.job_folder import attempts
from launch.status import find_run, job_folders
from olmo_train.attempt import RankEnd, first_failure, log_path, read_ends
from olmo_train.errors import ConfigError, run_command

POLL_S = 1.0


def main(argv: list[str]) -> None:
    """Print the logs of a run's job.

    Raises:
        ConfigError: there is no such run, job, start or rank.
    """
    parser = argparse.ArgumentParser("olmo logs", description=__doc__)
    parser.add_argument("run", help="name or folder of a run")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs (default runs)")
    parser.add_argument("--job", type=int, help="number of the job folder (default: the newest)")
    parser.add_argument("--attempt", type=int, metavar="K", help="number of the start (default: the newest)")
    parser.add_argument("--rank", type=int, metavar="N", help="what this rank printed (default 0)")
    parser.add_argument("--lines", type=int, default=40, help="of each log, the last ones (default 40)")
    parser.add_argument("--stacks", action="store_true", help="where the threads of each rank stood when a hang was ended")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what is written, and with new starts")
    args = parser.parse_args(argv)
    if args.lines < 1:
        raise ConfigError(f"--lines={args.lines} must be at least 1")
    run = find_run(args.runs, args.run)
    job = pick_job(run, args.job)
    if args.stacks:
        print("\n".join(stacks(job, args.attempt, args.rank)))
        return
    attempt = pick_attempt(job, args.attempt)
    places = sizes(job, args.rank or 0)
    print("\n".join(report(job, attempt, args.rank, args.lines)), flush=True)
    if args.follow:
        follow(job, args.rank or 0, places)


def pick_job(run: Path, number: int | None) -> Path:
    """The folder of the job with this number, or the newest.

    Raises:
        ConfigError: there is none.
    """
    found = {int(path.name): path for path in job_folders(run)}
    if not found:
        raise ConfigError(f"{run} has no job folder: it was started without `olmo launch`, and its log is where it was started")
    if number is not None and number not in found:
        raise ConfigError(f"--job={number}: {run} has jobs {', '.join(map(str, found))}")
    return found[max(found) if number is None else number]


def pick_attempt(job: Path, number: int | None) -> Path | None:
    """The folder of the start with this number, or the newest; None: no rank was started yet.

    Raises:
        ConfigError: there is no start of this number.
    """
    found = {int(path.name): path for path in attempts(job)}
    if number is not None and number not in found:
        has = f"has starts {', '.join(map(str, found))}" if found else "has no start yet"
        raise ConfigError(f"--attempt={number}: {job} {has}")
    return found[max(found) if number is None else number] if found else None


def report(job: Path, attempt: Path | None, rank: int | None, lines: int) -> list[str]:
    """The first error, the story, a rank's log. A rank asked for is shown alone.

    Raises:
        ConfigError: this rank has left no log.
    """
    if rank is not None:
        return _rank_log(job, attempt, rank, lines)
    out = first_error(attempt)
    for story in stories(job)[-1:]:
        out += [f"==> {story} <==", *last_lines(story, lines), ""]
    if not stories(job):
        out += [f"{job}: no job log yet; the job has not begun (`olmo jobs`)", ""]
    if attempt is not None and log_path(attempt, 0).exists():
        out += _rank_log(job, attempt, 0, lines)
    return out


def first_error(attempt: Path | None) -> list[str]:
    """What explains how this start failed, or the one before if this one still runs; empty if neither did."""
    for folder in _back_from(attempt):
        ends, noted = read_ends(folder), read_attempt(folder)
        end = first_failure(ends)
        if noted is not None and noted.ended is not None:  # with ranks that were killed, which nobody but the supervisor can name
            lines = explain(noted, ends, _srun_said(folder))
            head = f"start {folder.name} on {len(noted.nodes)} nodes, from step {max(noted.step_before, 0)}"
            followed = [f"what followed: {noted.action}: {noted.why}"] if noted.why else []
            return [f"==> first error: {head} <==", *lines, *followed, ""] if lines else []
        if end is not None:
            where = f"start {folder.name}, rank {end.rank} on {end.node}, after step {end.step}"
            return [f"==> first error: {where}: {end.kind.value} <==", *_text(end), ""]
        if ends:
            return []
    return []


def _back_from(attempt: Path | None) -> list[Path]:
    """This start and the one before it."""
    if attempt is None:
        return []
    return [path for path in reversed(attempts(attempt.parent.parent)) if path <= attempt][:2]


def _srun_said(folder: Path) -> list[str]:
    return last_lines(folder / "srun.log", 12)


def _text(end: RankEnd) -> list[str]:
    message, traceback = end.message.strip().splitlines(), end.traceback.strip().splitlines()
    known = bool(message) and bool(traceback) and message[0] in traceback[-1]
    return [*([] if known else message), *traceback] or ["no message"]


def stories(job: Path) -> list[Path]:
    """Logs of the Slurm jobs that ran this folder, the newest last."""
    return sorted(job.glob("job*.log"), key=lambda path: path.stat().st_mtime)


def _rank_log(job: Path, attempt: Path | None, rank: int, lines: int) -> list[str]:
    if attempt is None:
        raise ConfigError(f"--rank={rank}: {job} has not started its ranks yet; see `olmo logs` without --rank")
    path = log_path(attempt, rank)
    if not path.exists():
        there = sorted(int(log.stem.removeprefix("rank-")) for log in attempt.glob("rank-*.log"))
        known = f"its ranks are {there[0]} to {there[-1]}" if there else "no rank has written yet"
        raise ConfigError(f"--rank={rank}: not in {attempt}, {known}")
    return [f"==> {path} <==", *last_lines(path, lines), ""]


def stacks(job: Path, number: int | None, rank: int | None) -> list[str]:
    """Where the training threads stood when a hang was ended, ranks that stood alike together, the fewest first.

    Of one rank: all threads. Without a number of a start: of the newest that has any.

    Raises:
        ConfigError: nothing was written.
    """
    chosen = pick_attempt(job, number)
    starts = [chosen] if number is not None and chosen is not None else attempts(job)
    who = "" if rank is None else f" of rank {rank}"
    for start in reversed(starts):
        texts = {number: path.read_text(errors="replace") for number, path in _stack_files(start) if rank in (None, number)}
        texts = {number: text for number, text in texts.items() if text.strip()}
        if texts:
            return _shown(start, texts, whole=rank is not None)
    where = chosen if number is not None else job
    raise ConfigError(f"no stacks{who} in {where}: they are written only when a hang is ended")


def _stack_files(start: Path) -> list[tuple[int, Path]]:
    paths = sorted(start.glob("rank-*.stacks.txt"))
    return [(int(path.name.removeprefix("rank-").split(".")[0]), path) for path in paths]


def _shown(start: Path, texts: dict[int, str], whole: bool) -> list[str]:
    alike: dict[str, list[int]] = {}
    for number, text in texts.items():
        alike.setdefault(text if whole else _training_thread(text), []).append(number)
    out = []
    for text, ranks in sorted(alike.items(), key=lambda entry: len(entry[1])):
        out += [f"==> start {start.name}, rank{'s' * (len(ranks) > 1)} {_ranges(ranks)} <==", *text.rstrip().splitlines(), ""]
    return out


def _training_thread(text: str) -> str:
    """Of the last dump, why it was made and the last thread, which is the main one; without what differs and says nothing."""
    reason = next((line for line in reversed(text.splitlines()) if line.startswith("----")), "")
    thread = text.strip().split("\n\n")[-1]
    kept = re.sub(r"\b0x[0-9a-f]+\b", "0x...", "\n".join(line for line in thread.splitlines() if not line.startswith("----")))
    return f"{re.sub(r'^---- [0-9-]+ [0-9:]+ ', '', reason)}\n{kept}"


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> 0-2, 5."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and number == out[-1][-1] + 1:
            out[-1].append(number)
        else:
            out.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in out)


def follow(job: Path, rank: int, places: dict[Path, int]) -> None:
    """Print what the story and this rank of the newest start add, until interrupted."""
    try:
        for line in new_lines(job, rank, places):
            print(line, flush=True)
    except KeyboardInterrupt:
        print("(the job goes on)", flush=True)


def sizes(job: Path, rank: int) -> dict[Path, int]:
    """How long the followed logs are."""
    return {path: path.stat().st_size for path in _followed(job, rank)}


def new_lines(job: Path, rank: int, places: dict[Path, int]) -> Iterator[str]:
    """Each line beyond `places`, logs of later starts whole, marked with the start it is from; does not end."""
    places = dict(places)
    while True:
        for path in _followed(job, rank):
            with open(path, "rb") as file:
                file.seek(places.get(path, 0))
                text = file.read()
            whole = text.rfind(b"\n") + 1  # a line being written is left for the next look
            places[path] = places.get(path, 0) + whole
            mark = "" if path.parent == job else f"[{path.parent.name} rank {rank}] "
            for line in text[:whole].decode(errors="replace").splitlines():
                yield mark + line
        time.sleep(POLL_S)


def _followed(job: Path, rank: int) -> list[Path]:
    return [*stories(job), *(path for folder in attempts(job)[-1:] if (path := log_path(folder, rank)).exists())]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
