"""How long the data order takes to answer, at the scale of trillions of tokens: files that are only described, never written.

    python benchmarks/order.py [--tokens 4_000_000_000_000]

Prints medians; docs/data.md quotes them. Nothing proportional to the corpus is held in memory, so the corpus can be made up:
2,000 files share one document index of a million documents.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np

from olmo_train.data.document_index import DocumentIndex
from olmo_train.data.manifest import FileEntry, Manifest
from olmo_train.data.order import DataOrder, Source
from olmo_train.data.shards import ShardFile

FILES, DOCUMENTS, ROWS, SEQ_LEN = 2000, 1_000_000, 1024, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4 * 10**12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = described_files(Path(folder), args.tokens)
        half = len(files) // 2
        one = [Source("all", None, files, "")]
        two = [Source("web", 0.7, files[:half], ""), Source("code", 0.3, files[half:], "")]
        for title, sources in (("one pool", one), ("a mixture of two", two)):
            order = DataOrder(sources, 6198, SEQ_LEN, ROWS * SEQ_LEN)
            last = 2 * args.tokens // (ROWS * SEQ_LEN)  # about two epochs
            report(title, order, last)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(f"memory of its own (not the mapped index): {int(status['RssAnon'].split()[0]) / 1024:.0f} MiB")


def described_files(folder: Path, tokens: int) -> tuple[ShardFile, ...]:
    """Files of `tokens` in all that share one index."""
    per_file = tokens // FILES
    cuts = np.sort(np.random.default_rng(0).integers(1, per_file, DOCUMENTS - 1))
    starts = np.concatenate([[0], cuts, [per_file]]).astype(np.uint64)
    index = DocumentIndex(folder / "index", folder / "rows")
    for suffix, array in ((".starts.idx", starts), (".heldout.idx", np.zeros((0, 3), np.int64))):
        with open(index.path(suffix), "wb") as file:
            np.save(file, array)
    entry = FileEntry("made-up", "made-up", per_file, DOCUMENTS, 0, 0, None, None, None, "index", "rows")
    manifest = Manifest("uint16", 50280, 50279, 0.0, files=[entry])
    return tuple(ShardFile(folder / str(n), entry, manifest, DocumentIndex(index.prefix, index.rows_path)) for n in range(FILES))


def report(title: str, order: DataOrder, last: int) -> None:
    rng = np.random.default_rng(1)
    files = [file for source in order.sources for file in source.files]

    def batch() -> None:
        order.batch(int(rng.integers(1, last)))

    def documents() -> None:
        for instance in order.batch(int(rng.integers(1, last)), 0, 16):
            order.documents(instance)

    def sightings() -> None:
        file = files[int(rng.integers(len(files)))]
        order.sightings(file, *file.index.span(int(rng.integers(DOCUMENTS))), last)

    print(
        f"{title}: a batch of {ROWS} rows {timed(batch):.1f} ms, the documents of 16 rows {timed(documents):.1f} ms, "
        f"every step that saw a document {timed(sightings):.1f} ms"
    )


def timed(work: Callable[[], None], repeats: int = 60) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1000 * median(times)


if __name__ == "__main__":
    main()
