"""When training saw a document: `olmo data when runs/first ID [--steps N]`."""

import argparse
from pathlib import Path

from data_tools.inspect.run_order import is_left_out, open_run
from olmo_train.errors import ConfigError, run_command
from olmo_train.step_folder import list_steps


def main(argv: list[str]) -> None:
    """Print every step, row and epoch that saw a part of the document, and the first checkpoint after it."""
    parser = argparse.ArgumentParser("olmo data when", description=__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("id", help="id of a document")
    parser.add_argument("--steps", type=int, help="look at steps up to this one (default: all of the run)")
    args = parser.parse_args(argv)
    run, order = open_run(args.run)
    last = run.max_tokens // run.data.global_batch_size if args.steps is None else args.steps
    if last < 1:
        raise ConfigError(f"--steps={last} must be positive; steps count from 1")
    saved = [step for step, _ in list_steps(Path(args.run, "steps"))]
    found = False
    for source in order.sources:
        for file in source.files:
            for ordinal in file.index.find(args.id):
                found = True
                row = file.index.row(ordinal)
                print(f"{row.id}: {row.end - row.start} tokens at {Path(file.entry.path).name} [{row.start}, {row.end})")
                if file.index.train_position(row.start) is None:
                    print("  held out: no step sees it")
                    continue
                sightings = order.sightings(file, row.start, row.end, last)
                if not sightings:
                    print(f"  no step up to {last} sees it")
                for s in sightings:
                    after = next((step for step in saved if step >= s.step), None)
                    first = f"; first checkpoint after it: step {after}" if after is not None else ""
                    gone = "; left out (data.without)" if is_left_out(run, args.id, s.step) else ""
                    print(f"  step {s.step} row {s.row} epoch {s.epoch}: tokens [{s.offset_start}, {s.offset_end}) at columns "
                          f"[{s.column_start}, {s.column_end}){gone}{first}")  # fmt: skip
    if not found:
        raise ConfigError(f"id={args.id}: no document of {args.run} has this id; `olmo data batch {args.run} 1` shows some")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
