"""Building an index, beside infini-gram on the same shards and cores.

    python benchmarks/trace_index.py shards/a [shards/b ...] [--processes 2] [--sizes 4 16 64] [--no-peer]

Prints tokens per CPU-second (all processes, start and Python included), bytes per token on disk beyond the shards, and the
largest resident set of one process, with the bound that memory_gib promises. docs/trace_index.md quotes it. `--sizes`: parts of
so many million tokens; without, the default of configs/trace_index.yaml. infini-gram gets the same tokens in its own format
(written here, not counted), with a separator before each document in the place of end-of-text after it.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # not benchmarks/, whose profile.py would hide Python's own

import numpy as np

from data_tools.trace.config import IndexConfig
from data_tools.trace.plan_index import BASE_BYTES, memory_of, plan_of, plan_parts
from olmo_train.data.shards import Corpus

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Run:
    """Of a command and all its processes."""

    cpu_s: float
    wall_s: float
    rss: int
    """Bytes of its largest process."""
    status: int
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-gib", type=float, default=8.0, help="of both, all processes together")
    parser.add_argument("--sizes", type=int, nargs="+", default=[IndexConfig.max_tokens_per_part // 10**6], metavar="M_TOKENS")
    parser.add_argument("--no-peer", action="store_true")
    args = parser.parse_args()
    print(f"{args.processes} processes, load {os.getloadavg()[0]:.1f}")
    for shards in args.shards:
        corpus = Corpus(shards)
        tokens = sum(file.entry.tokens for file in corpus.files)
        print(f"\n{shards}: {tokens:,} tokens of {corpus.manifest.dtype}, vocabulary {corpus.manifest.vocab_size:,}")
        rates = [ours(shards, corpus, size, args) for size in args.sizes]
        if not args.no_peer:
            rate = peer(corpus, tokens, args)
            print(f"  ratio: {max(rates) / rate:.1f}" if rate else "  ratio: none, infini-gram ends without an index")


def ours(shards: str, corpus: Corpus, size: int, args: argparse.Namespace) -> float:
    """Build with parts of `size` million tokens; return tokens per CPU-second."""
    tokens = sum(file.entry.tokens for file in corpus.files)
    max_tokens = IndexConfig.max_tokens_per_part if size == IndexConfig.max_tokens_per_part // 10**6 else size * 10**6
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "index")
        words = [f"shards={Path(shards).absolute()}", f"output={output}", f"max_tokens_per_part={max_tokens}"]
        words += [f"processes={args.processes}", f"memory_gib={args.memory_gib}"]
        run = measure([sys.executable, "-m", "data_tools.trace.build_index", *words], ROOT)
        if run.status:
            raise SystemExit(run.output)
        on_disk = sum(path.stat().st_size for path in output.iterdir())
    config = IndexConfig(shards, max_tokens_per_part=max_tokens, processes=args.processes, memory_gib=args.memory_gib)
    parts = plan_parts(corpus, plan_of(config, corpus))
    bound = BASE_BYTES + max(memory_of(corpus, part) for part in parts)
    largest = max(part.end - part.start for part in parts)
    report("ours", run, tokens, on_disk)
    of = f"{len(parts)} parts, the largest of {largest / 1e6:.1f} M tokens"
    print(f"    {of}: a process is promised to stay below {bound / MIB:.0f} MiB")
    return tokens / run.cpu_s


def peer(corpus: Corpus, tokens: int, args: argparse.Namespace) -> float | None:
    """Build with infini-gram; return tokens per CPU-second, or None if it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        write_for_peer(corpus, Path(folder))
        before = sum(path.stat().st_size for path in Path(folder).iterdir() if path.name.startswith("tokenized"))
        kind = {2: "u16", 4: "u32"}[corpus.manifest.itemsize]
        words = ["--data_dir", folder, "--save_dir", folder, "--token_dtype", kind, "--cpus", str(args.processes)]
        words += ["--mem", str(int(args.memory_gib)), "--ulimit", str(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]
        run = measure([sys.executable, "-m", "infini_gram.indexing", *words], Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file()) - before
        if run.status or not Path(folder, "table.0").exists() or not Path(folder, "table.0").stat().st_size:
            lines = [
                line
                for line in run.output.replace("\r", "\n").splitlines()
                if "failed" in line or "panicked" in line or "wrong" in line
            ]
            print(f"  infini-gram: exit status {run.status}: {'; '.join(dict.fromkeys(lines))[:300]}")
            return None
    report("infini-gram", run, tokens, size)
    return tokens / run.cpu_s


def write_for_peer(corpus: Corpus, folder: Path) -> None:
    """The shards as infini-gram has them after its step of tokenizing: separator, document, separator, ..."""
    dtype = np.dtype(corpus.manifest.dtype).newbyteorder("<")
    separator, at = np.iinfo(dtype).max, 0
    with open(folder / "tokenized.0", "wb") as tokens, open(folder / "offset.0", "wb") as offsets:
        for file in corpus.files:
            starts = file.index.starts.astype(np.int64)
            ids = file.read(0, file.entry.tokens).copy()
            ids[starts[1:] - 1] = separator  # end-of-text of each document: now the separator before the next
            tokens.write(np.roll(ids, 1).tobytes())
            (at + starts[:-1] * dtype.itemsize).astype("<u8").tofile(offsets)
            at += ids.nbytes


def measure(command: list[str], cwd: Path) -> Run:
    """Run a command; its output goes to a file, for it may be long."""
    with tempfile.TemporaryFile("w+") as log:
        began = time.monotonic()
        process = subprocess.Popen(command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        log.seek(0)
        return Run(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss * 1024, process.returncode, log.read())


def report(name: str, run: Run, tokens: int, on_disk: int) -> None:
    print(f"  {name}: {tokens / run.cpu_s / 1e6:.2f} M tokens/CPU-s ({run.cpu_s:.1f} CPU-s, {run.wall_s:.1f} s), "
          f"{on_disk / tokens:.2f} bytes/token beyond the tokens, peak of a process {run.rss / MIB:.0f} MiB")  # fmt: skip


if __name__ == "__main__":
    main()
