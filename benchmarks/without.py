"""What leaving documents out costs the loader, in CPU for a step: `python benchmarks/without.py shards/demo`."""

import sys
import time
from pathlib import Path

from olmo_train.config.data import DataConfig, RepetitionMaskConfig, SourceConfig, WithoutConfig
from olmo_train.data.loader import Loader, open_sources
from olmo_train.data.order import DataOrder
from olmo_train.data.shards import Corpus

SEQ_LEN, ROWS, STEPS, REPEATS = 256, 32, 60, 7


def loader_of(shards: str, without: WithoutConfig | None) -> Loader:
    """A loader of the whole batch."""
    data = DataConfig(
        {"all": SourceConfig(path=shards)}, SEQ_LEN, SEQ_LEN * ROWS, SEQ_LEN * ROWS, False, RepetitionMaskConfig(), without
    )
    return Loader(DataOrder(open_sources(data, Path()), 1, SEQ_LEN, SEQ_LEN * ROWS), data, 0, 1)


def main(shards: str) -> None:
    """Read the same steps with none, one and all documents left out; the best of some repeats."""
    rows = [(file, file.index.row(n)) for file in Corpus(shards).files for n in range(file.entry.documents)]
    ids = list(dict.fromkeys(row.id for file, row in rows if file.index.train_position(row.start) is not None))
    cases = {"none": None, "one": WithoutConfig(ids[:1]), f"all {len(ids)}": WithoutConfig(ids)}
    loaders = {name: loader_of(shards, without) for name, without in cases.items()}
    best = dict.fromkeys(loaders, float("inf"))
    for _ in range(REPEATS):
        for name, loader in loaders.items():
            began = time.process_time()
            for step in range(1, STEPS + 1):
                loader.read(step)
            best[name] = min(best[name], (time.process_time() - began) / STEPS)
    for name, seconds in best.items():
        print(f"{name} left out: {1e3 * seconds:.2f} ms of CPU for a step of {ROWS} rows of {SEQ_LEN}")


if __name__ == "__main__":
    main(*sys.argv[1:])
