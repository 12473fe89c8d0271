"""Check shards against their manifest, a dataset against its stages' records, a release against its manifest.

olmo data verify shards/demo | corpus | release | hf://owner/name | s3://bucket/name
"""

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

from data_tools.inspect.check_lineage import check_lineage
from data_tools.inspect.lineage import lineage
from data_tools.publish.check_release import check_release, is_release, left_out_of
from olmo_train.data.document_index import ROWS_PER_BLOCK, DocumentIndex, read_rows, write_index
from olmo_train.data.shards import Corpus, ShardFile
from olmo_train.errors import ShardError, run_command

DATASET = ("stages", "documents", "attributes")
"""Folders of a dataset, one of which tells it from shards that are not there."""


def main(argv: list[str]) -> None:
    """Check, and say so; problems name file and offset and give exit status 2."""
    parser = argparse.ArgumentParser("olmo data verify", description=__doc__)
    parser.add_argument("path", help="shards, a dataset, or a release in a folder, a hub (hf://owner/name) or a store")
    parser.add_argument(
        "--level",
        choices=("size", "spot", "full"),
        default="full",
        help="sizes; a few blocks; every byte, every id, every document and the tokenizer",
    )
    args = parser.parse_args(argv)
    if is_release(args.path):
        print(check_release(args.path, args.level == "full"))
        return
    if (Path(args.path) / "manifest.json").is_file() or not any((Path(args.path) / name).is_dir() for name in DATASET):
        _verify_shards(args)
        if not (Path(args.path) / "stages").is_dir():
            return
        print(_verify_lineage(Path(args.path), args.level), file=sys.stderr)
        return
    print(_verify_lineage(Path(args.path), args.level))


def _verify_lineage(path: Path, level: str) -> str:
    found = check_lineage(lineage(path), level == "full", left_out_of(path))
    for note in found.notes:
        print(note, file=sys.stderr)
    if found.problems:
        raise ShardError("\n".join(dict.fromkeys(found.problems)))
    how = "every byte" if level == "full" else "sizes"
    return f"{path}: {found.files:,} files as its stages wrote them ({how}); {found.links:,} were read as they were written"


def _verify_shards(args: argparse.Namespace) -> None:
    corpus = Corpus(args.path)
    problems = corpus.verify(args.level)
    if args.level == "full":
        problems += corpus.check_ids() + check_documents(corpus) + check_tokenizer(corpus)
    if problems:
        raise ShardError("\n".join(dict.fromkeys(problems)))
    tokens = sum(entry.tokens for entry in corpus.manifest.files)
    unread = sum(entry.sha256 is None for entry in corpus.manifest.files)
    note = f"; {unread} without checksums (written with read_tokens=false), only sizes and ids checked" if unread else ""
    print(f"{args.path}: {len(corpus.files)} files, {tokens:,} tokens, as the manifest says ({args.level}){note}")


def check_documents(corpus: Corpus) -> list[str]:
    """Problems of sidecars and document indexes: every index is built again from its rows and compared."""
    problems = []
    for file in corpus.files:
        with tempfile.TemporaryDirectory() as folder:
            again = DocumentIndex(Path(folder, "index"), Path(folder, "rows"))
            try:
                _check_index(file, again, corpus.manifest.heldout_frac)
            except ShardError as error:
                problems.append(str(error).replace(str(again.rows_path), str(file.index.rows_path)))
    return problems


def _check_index(file: ShardFile, again: DocumentIndex, heldout_frac: float) -> None:
    entry, index = file.entry, file.index
    counts = write_index(again.prefix, again.rows_path, read_rows(index.rows_path), entry.tokens, heldout_frac)
    found = (counts.documents, counts.heldout_documents, counts.heldout_tokens)
    wanted = (entry.documents, entry.heldout_documents, entry.heldout_tokens)
    if found != wanted:
        raise ShardError(
            f"{index.rows_path}: {found[0]} documents, {found[1]} held out with {found[2]} tokens; the manifest says "
            f"{wanted[0]}, {wanted[1]} with {wanted[2]}: ids or spans were changed; copy it again"
        )
    for suffix in (".starts.idx", ".ids.idx", ".heldout.idx"):
        path, theirs, ours = index.path(suffix), index.load(suffix), again.load(suffix)
        if not np.array_equal(theirs, ours):
            where = f"number {np.argmax(theirs != ours)}" if theirs.shape == ours.shape else f"shape {theirs.shape}"
            raise ShardError(f"{path}: {where} is not what {index.rows_path.name} gives; copy it again")
    path, blocks = index.path(".blocks.idx"), index.load(".blocks.idx")
    size = index.rows_path.stat().st_size
    rising = bool((blocks[1:] > blocks[:-1]).all())
    if len(blocks) < 2 or not rising or (blocks[0], blocks[-1]) != (0, size):
        raise ShardError(f"{path}: offsets do not rise from 0 to {size}, the bytes of {index.rows_path.name}; copy it again")
    for ordinal in range(0, entry.documents, ROWS_PER_BLOCK):
        # Not `index.row`, which refuses a row of another place without saying which of the files led there.
        if index.read_block(ordinal // ROWS_PER_BLOCK).row(ordinal) != again.row(ordinal):
            raise ShardError(f"{path}: does not lead to the row of document {ordinal}; copy it again")


def check_tokenizer(corpus: Corpus) -> list[str]:
    """Problems of the tokenizer and of the table of bytes per id, where the manifest names them."""
    problems = []
    path = corpus.tokenizer_path()
    if path is not None:
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != corpus.manifest.tokenizer_sha256:
                problems.append(
                    f"{path}: SHA-256 {found[:16]}..., the manifest says {(corpus.manifest.tokenizer_sha256 or '')[:16]}...; "
                    "copy it again"
                )
        except OSError as error:
            problems.append(f"{path}: {error.strerror}; the manifest names it")
    try:
        corpus.token_bytes()
    except ShardError as error:
        problems.append(str(error))
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
