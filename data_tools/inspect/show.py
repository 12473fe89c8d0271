"""Look into shards, or at one document of a dataset.

olmo data show shards/demo [--id ID | --file N --offset TOKEN]
olmo data show corpus [--id ID | --at FILE:LINE]        with its attributes
olmo data show runs/first --step 100 --row 3            what a row of a step saw, with text
"""

import argparse
from pathlib import Path

from data_tools.inspect import batch
from data_tools.inspect.show_document import show_at, show_dataset, show_id
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, run_command
from olmo_train.tokenizer import Tokenizer


def main(argv: list[str]) -> None:
    """Print the table of sources, or a document with its place and text."""
    parser = argparse.ArgumentParser("olmo data show", description=__doc__)
    parser.add_argument("path", help="shards, a dataset, or the folder of a run")
    parser.add_argument("--id", help="a document's id")
    parser.add_argument("--file", type=int, help="number of a token file, with --offset")
    parser.add_argument("--offset", type=int, help="token offset in that file")
    parser.add_argument("--at", metavar="FILE:LINE", help="of a dataset: a file below documents/, and a 1-based line")
    parser.add_argument("--step", type=int, help="of a run, with --row")
    parser.add_argument("--row", type=int, help="row of that step's batch")
    args = parser.parse_args(argv)
    if (args.step is None) != (args.row is None):
        raise ConfigError("--step and --row go together")
    if args.step is not None:
        batch.main([args.path, str(args.step), "--row", str(args.row), "--text"])
    elif args.at is not None:
        show_at(Path(args.path), args.at)
    elif (Path(args.path) / "documents").is_dir() and args.file is None and args.offset is None:
        show_dataset(Path(args.path)) if args.id is None else show_id(Path(args.path), args.id)
    else:
        _show_shards(args)


def _show_shards(args: argparse.Namespace) -> None:
    corpus = Corpus(args.path)
    if args.id is not None:
        places = corpus.find_document(args.id)
        if not places:
            raise ConfigError(
                f"--id={args.id}: no document of {args.path} has this id; the ids stand in the third column of the .csv.gz files"
            )
    elif args.file is not None and args.offset is not None:
        places = [document_at(corpus, args.file, args.offset)]
    elif args.file is not None or args.offset is not None:
        raise ConfigError("--file and --offset go together")
    else:
        _print_sources(corpus)
        return
    for place in places:
        print(describe_document(corpus, *place))


def document_at(corpus: Corpus, file: int, offset: int) -> tuple[int, int]:
    """(file number, ordinal) of the document at a token offset."""
    if not 0 <= file < len(corpus.files):
        raise ConfigError(f"--file={file} is not in 0 .. {len(corpus.files) - 1}")
    tokens = corpus.files[file].entry.tokens
    if not 0 <= offset < tokens:
        raise ConfigError(f"--offset={offset} is not in 0 .. {tokens - 1}, the tokens of file {file}")
    return file, corpus.files[file].index.documents_between(offset, offset + 1)[0]


def describe_document(corpus: Corpus, file: int, ordinal: int) -> str:
    """Where a document stands, and its text as the tokenizer gives it back."""
    shard = corpus.files[file]
    row = shard.index.row(ordinal)
    split = "held out" if shard.index.train_position(row.start) is None else "train"
    head = f"id      {row.id}\nsource  {shard.entry.source} ({row.src} line {row.loc})\n"
    head += f"place   file {file} ({shard.entry.path}), tokens [{row.start}, {row.end}), {split}\n"
    ids = shard.read(row.start, row.end)
    tokenizer = corpus.tokenizer_path()
    return f"{head}\n{Tokenizer(tokenizer).decode(ids) if tokenizer else ids.tolist()}"


def _print_sources(corpus: Corpus) -> None:
    manifest = corpus.manifest
    print(
        f"{corpus.folder}: {manifest.dtype}, {manifest.vocab_size:,} ids, end of text {manifest.eos_id}, "
        f"fingerprint {manifest.fingerprint()[:16]}..."
    )
    for source, row in manifest.totals().items():
        print(f"  {source:<16} {row['documents']:>12,} documents {row['tokens']:>16,} tokens, held out {row['heldout_tokens']:,}")
    for number, entry in enumerate(manifest.files):
        print(f"  file {number}: {entry.path} {entry.tokens:,} tokens")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
