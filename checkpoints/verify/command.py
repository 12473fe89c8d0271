"""Verify checkpoints: a run, a step folder, a release, or a store of releases.   olmo verify owner/name --public-key key.pub

Every byte is compared with the manifests, every claim with the files it is about, and the checkpoints with each other; all
problems are told, and any gives exit status 1. `--replay` trains from one checkpoint to the next and compares (docs/verify.md).
"""

import argparse
import json
import tempfile
from pathlib import Path

from checkpoints.catalog import find_folders
from checkpoints.publish.signature import read_public_key
from checkpoints.verify.ends import Wanted, find_ends
from checkpoints.verify.release_check import Depth
from checkpoints.verify.releases import NEWEST, Findings, verify_revision, verify_series
from checkpoints.verify.replay import TOLERANCE, Manner, Verdict, replay
from checkpoints.verify.steps import check_step, run_problems
from checkpoints.verify.targets import ReleaseTarget, RunTarget, SeriesTarget, StepTarget, Target, find_target
from olmo_train.errors import CheckpointError, ConfigError, run_command
from olmo_train.files import write_atomic

NEXT = -1
"""`--replay` without a number."""


def main(argv: list[str]) -> None:
    """Verify, print a line per checkpoint, then every problem.

    Raises:
        ConfigError: there is nothing to verify there. CheckpointError: something is wrong.
    """
    args = _parse(argv)
    target = find_target(args.where)
    findings = Findings(lambda line: print(line, flush=True))
    depth = Depth(args.quick, args.weights_only, [read_public_key(file) for file in args.public_key])
    _check_words(args, target)
    verdict = None
    try:
        if args.replay is None:
            verify(target, args.revision, depth, args.main, findings)
        else:
            verdict = _replay(target, args, depth, findings)
    except CheckpointError as error:
        findings.problems = [problem for problem in findings.problems if problem not in str(error)] + str(error).splitlines()
    if args.json is not None:
        _write_json(args.json, args.where, findings, verdict)
    if findings.problems:
        raise CheckpointError("\n".join(findings.problems))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "olmo verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: docs/verify.md",
    )
    add = parser.add_argument
    add("where", help="folder of a run, of one step, of a release or of releases; a URL; owner/name[@revision] on a hub")
    add("--revision", action="append", default=[], help="of releases: only this one (may be given again)")
    add("--public-key", type=Path, action="append", default=[], metavar="FILE", help="who must have signed (may be given again)")
    add("--quick", action="store_true", help="manifests, sizes, names and the series; no contents")
    add("--weights-only", action="store_true", help="of a release, only the files with weights")
    add("--main", default=NEWEST, metavar="REVISION", help="what main should hold: newest (default), a revision, or none")
    add(
        "--replay",
        type=int,
        nargs="?",
        const=NEXT,
        metavar="STEPS",
        help="train from one checkpoint to the next, or so many steps",
    )
    add("--from", dest="start", metavar="REVISION", help="replay: from here (of a run, a step); default: as late as possible")
    add("--ranks", type=int, metavar="N", help="replay: on so many ranks; default: as many as then")
    add("--shards", action="append", default=[], metavar="NAME=FOLDER", help="replay: where the shards of a source lie here")
    add("--tolerance", type=float, default=TOLERANCE, help="replay: of difference over update, default %(default)s")
    add("--json", type=Path, metavar="FILE", help="write what was found there, too")
    return parser.parse_args(argv)


def _check_words(args: argparse.Namespace, target: Target) -> None:
    problems = [f"--shards {word} is not NAME=FOLDER; e.g. --shards web=shards/web" for word in args.shards if "=" not in word]
    if args.replay is None:
        given = {"from": args.start, "ranks": args.ranks, "shards": args.shards}
        problems += [f"--{name} goes with --replay" for name, value in given.items() if value]
    else:
        given = {"revision": args.revision, "quick": args.quick, "weights-only": args.weights_only}
        problems += [
            f"--{name} does not go with --replay, which verifies the two checkpoints wholly" for name, v in given.items() if v
        ]
        if args.replay < 1 and args.replay != NEXT:
            problems.append(f"--replay={args.replay} must be at least 1 step")
    if args.ranks is not None and args.ranks < 1:
        problems.append(f"--ranks={args.ranks} must be at least 1")
    if not args.tolerance >= 0:
        problems.append(f"--tolerance={args.tolerance} must not be negative")
    if args.revision and not isinstance(target, SeriesTarget):
        problems.append(f"--revision={args.revision[0]} goes with a store of releases; {args.where} is not one")
    if args.start is not None and isinstance(target, StepTarget | ReleaseTarget):
        problems.append(f"--from={args.start} goes with a run or a store of releases; {args.where} is where the replay starts")
    if isinstance(target, RunTarget | StepTarget):
        problems += [
            f"--{name} goes with releases; {args.where} is none"
            for name, given in (("public-key", args.public_key), ("weights-only", args.weights_only))
            if given
        ]
    if problems:
        raise ConfigError(problems)


def verify(target: Target, revisions: list[str], depth: Depth, main_is: str, findings: Findings) -> None:
    """Verify what a target holds; of releases all, or the named `revisions`."""
    match target:
        case StepTarget(path):
            _verify_step(path, depth.is_quick, findings)
        case RunTarget(path):
            whole = {step for step, folder in find_folders(path) if _verify_step(folder, depth.is_quick, findings)}
            findings.problems += run_problems(path, whole, depth.is_quick)
        case ReleaseTarget(store, revision):
            verify_revision(store, revision, depth, findings)
        case SeriesTarget(store):
            verify_series(store, revisions, depth, main_is, findings)


def _verify_step(folder: Path, is_quick: bool, findings: Findings) -> bool:
    line, problems = check_step(folder, is_quick)
    findings.add(str(folder), line, problems)
    return not problems


def _replay(target: Target, args: argparse.Namespace, depth: Depth, findings: Findings) -> Verdict:
    """Replay, print what it showed."""
    words = (word.partition("=") for word in args.shards)
    shards = {name: Path(folder) for name, _, folder in words}
    steps = None if args.replay == NEXT else args.replay
    with tempfile.TemporaryDirectory(prefix="olmo-replay-") as folder:
        work = Path(folder)
        start, end, last = find_ends(target, Wanted(args.start, steps), depth, work, findings)
        verdict = replay(start, end, Manner(last, args.ranks, shards, args.tolerance), work)
    first, *rest = verdict.lines()
    for line in (first, *rest) if verdict.is_good else rest:
        findings.say(line)
    if not verdict.is_good:
        findings.problems.append(first)
    return verdict


def _write_json(file: Path, where: str, findings: Findings, verdict: Verdict | None) -> None:
    values = {"where": where, "is_good": not findings.problems, "problems": findings.problems, "checked": findings.checked}
    try:
        write_atomic(file, (json.dumps(values | {"replay": verdict and verdict.to_json()}, indent=1) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"--json={file} cannot be written: {error.strerror}; give another file") from error


if __name__ == "__main__":
    raise SystemExit(run_command(main))
