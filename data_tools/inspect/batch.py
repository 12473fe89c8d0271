"""What a step saw: `olmo data batch runs/first 100 [--row 3] [--text]`."""

import argparse
from pathlib import Path

from data_tools.inspect.run_order import is_left_out, open_run
from olmo_train.config.data import SourceConfig
from olmo_train.config.train import TrainConfig
from olmo_train.data.checks import find_tokenizer
from olmo_train.data.order import DataOrder, Instance
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, run_command
from olmo_train.tokenizer import Tokenizer


def main(argv: list[str]) -> None:
    """Print, for each row of the step's batch, the documents in it and where they come from."""
    parser = argparse.ArgumentParser("olmo data batch", description=__doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("step", type=int, help="1 is the first step")
    parser.add_argument("--row", type=int, help="only this row of the batch")
    parser.add_argument("--text", action="store_true", help="also the text, if the manifest names a tokenizer")
    args = parser.parse_args(argv)
    run, order = open_run(args.run)
    last = run.max_tokens // run.data.global_batch_size
    if not 1 <= args.step <= last:
        raise ConfigError(f"step={args.step} is not in 1 .. {last}, the steps of {args.run}")
    if args.row is not None and not 0 <= args.row < order.rows:
        raise ConfigError(f"--row={args.row} is not in 0 .. {order.rows - 1}, the rows of a batch")
    tokenizer = _tokenizer(run.data.sources) if args.text else None
    for instance in order.batch(args.step, *((args.row, args.row + 1) if args.row is not None else (0, None))):
        _print_row(run, order, instance, tokenizer)


def _tokenizer(sources: dict[str, SourceConfig]) -> Tokenizer:
    path = find_tokenizer(Corpus(source.path) for source in sources.values() if source.path)
    if path is None:
        raise ConfigError("--text: no manifest of this run names a tokenizer")
    return Tokenizer(path)


def _print_row(run: TrainConfig, order: DataOrder, instance: Instance, tokenizer: Tokenizer | None) -> None:
    print(f"step {instance.step} row {instance.row}: source {instance.source}, epoch {instance.epoch}")
    for span in order.documents(instance):
        row = span.file.index.row(span.ordinal)
        gone = "; left out (data.without)" if is_left_out(run, row.id, instance.step) else ""
        print(
            f"  columns [{span.column_start}, {span.column_end})  tokens [{span.offset_start}, {span.offset_end}) of {row.id}  "
            f"({row.src} line {row.loc}; {Path(span.file.entry.path).name} at {row.start}){gone}"
        )
        if tokenizer is not None:
            ids = span.file.read(row.start + span.offset_start, row.start + span.offset_end)
            print("    " + tokenizer.decode(ids).replace("\n", "\n    "))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
