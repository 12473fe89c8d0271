"""Check shards against their manifest: `olmo data verify shards/demo`."""

import argparse

from olmo_train.data.shards import Corpus
from olmo_train.errors import ShardError, run_command


def main(argv: list[str]) -> None:
    """Check, and say so; problems name file and offset and give exit status 2."""
    parser = argparse.ArgumentParser("olmo data verify", description=__doc__)
    parser.add_argument("path", help="folder of a manifest")
    parser.add_argument(
        "--level", choices=("size", "spot", "full"), default="full", help="sizes; a few blocks; every byte and every id"
    )
    args = parser.parse_args(argv)
    corpus = Corpus(args.path)
    problems = corpus.verify(args.level)
    if args.level == "full":
        problems += corpus.check_ids()
    if problems:
        raise ShardError("\n".join(problems))
    tokens = sum(entry.tokens for entry in corpus.manifest.files)
    unread = sum(entry.sha256 is None for entry in corpus.manifest.files)
    note = f"; {unread} without checksums (written with read_tokens=false), only sizes and ids checked" if unread else ""
    print(f"{args.path}: {len(corpus.files)} files, {tokens:,} tokens, as the manifest says ({args.level}){note}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
