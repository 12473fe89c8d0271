"""Ours beside Dolma's toolkit and datatrove, stage by stage, on the same documents in one run; prints rates and ratios.

python benchmarks/data_corpus.py /tmp/corpus --mb 300
python benchmarks/data.py /tmp/corpus --tokenizer FILE [--dolma VENV] [--datatrove VENV] [--peer-files 4] [--repeats 3]

The peers need virtual environments of their own (dolma 1.2.1: numpy<2, tokenizers<=0.19.1): `pip install --no-deps dolma`
and what it imports; `pip install datatrove spacy tokenizers`. Where they are slow they get the first files of the corpus only;
rates are per byte of text. One process is one core. Peak memory is that of the largest process of a side, but of datatrove's
workers, for which nobody waits.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from data_tools.documents import read_lines
from olmo_train.tokenizer import Tokenizer

STAGES = ("tokenize", "exact", "paragraph", "minhash", "rules")
SLOW = ("tokenize", "minhash", "rules")
"""Where the peers take minutes, far more than their start: they get a part of the corpus."""
OLMO = [sys.executable, "-m", "olmo_train.cli", "data"]


@dataclass
class Measured:
    """One side of one stage with one number of processes."""

    side: str
    processes: int
    seconds: float
    megabytes: float
    tokens: int | None
    peak_mb: float

    @property
    def rate(self) -> float:
        """M tokens/s where tokens are what is made, else MB of text per second."""
        return (self.tokens / 1e6 if self.tokens else self.megabytes) / self.seconds


@dataclass
class Corpus:
    """Files of documents in a folder of their own, and the text in them."""

    folder: Path
    megabytes: float
    tokens: int

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "documents").glob("*.jsonl.gz"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dolma", type=Path, help="virtual environment with dolma")
    parser.add_argument("--datatrove", type=Path, help="virtual environment with datatrove and spacy")
    parser.add_argument(
        "--peer-files", type=int, default=4, help="files that the peers get of slow stages (default: %(default)s)"
    )
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="of ours (default: %(default)s); peers run once")
    parser.add_argument("--work", type=Path, default=Path("/tmp/olmo-data-benchmark"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    shutil.rmtree(args.work, ignore_errors=True)
    # In a process of its own: what a parent holds when it starts a command, the peak of that command holds too.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        whole = pool.submit(prepare, args.corpus, args.work / "whole", None, args.tokenizer).result()
        part = pool.submit(prepare, args.corpus, args.work / "part", args.peer_files, args.tokenizer).result()
    print(
        f"corpus: {whole.megabytes:.1f} MB of text, {whole.tokens:,} tokens, {len(whole.files)} files; "
        f"peers: {part.megabytes:.1f} MB"
    )
    found: dict[str, list[Measured]] = {}
    for stage in args.stages:
        found[stage] = list(measure(stage, whole, part, args))
        print_stage(stage, found[stage])
    if args.json:
        args.json.write_text(json.dumps({k: [vars(m) | {"rate": m.rate} for m in v] for k, v in found.items()}, indent=1))


def prepare(corpus: Path, folder: Path, n: int | None, tokenizer: Path) -> Corpus:
    """A dataset with the first `n` files; counts its text once, with the encoder that is compared below."""
    from data_tools.tokenize.encoder import Encoder

    (folder / "documents").mkdir(parents=True)
    encoder = Encoder(tokenizer)
    size = tokens = 0
    for path in sorted((corpus / "documents").glob("*.jsonl.gz"))[:n]:
        (folder / "documents" / path.name).symlink_to(path.absolute())
        for line in read_lines(path, lambda reject: sys.exit(str(reject))):
            size += len(line.text.encode())
            tokens += len(encoder.encode([line.text])[0]) + 1
    return Corpus(folder, size / 1e6, tokens)


def measure(stage: str, whole: Corpus, part: Corpus, args: argparse.Namespace) -> Any:
    """Every side of a stage."""
    for processes in args.processes:
        runs = [ours(stage, whole, processes, args) for _ in range(args.repeats)]
        yield Measured(
            "ours", processes, median(r.seconds for r in runs), whole.megabytes, runs[0].tokens, max(r.peak_mb for r in runs)
        )
    sides: list[tuple[str, Callable[[str, Corpus, int, argparse.Namespace], Measured | None]]] = []
    sides += [("dolma", dolma)] if args.dolma else []
    sides += [("datatrove", datatrove)] if args.datatrove else []
    for _, side in sides:
        for processes in args.processes:
            if (measured := side(stage, part if stage in SLOW else whole, processes, args)) is not None:
                yield measured


def ours(stage: str, corpus: Corpus, processes: int, args: argparse.Namespace) -> Measured:
    """`olmo data ...`, with nothing left of the run before."""
    for name in ("attributes", "stages"):
        shutil.rmtree(corpus.folder / name, ignore_errors=True)
    out = args.work / "ours"
    shutil.rmtree(out, ignore_errors=True)
    documents, run = f"documents=[{corpus.folder}]", f"processes={processes}"
    words = {
        "tokenize": ["tokenize", f"tokenizer={args.tokenizer.absolute()}", f"output={out}", "heldout_frac=0"],
        "exact": ["dedupe", "name=exact", "by=document"],
        "paragraph": ["dedupe", "name=paragraph", "by=paragraph"],
        "minhash": ["dedupe", "name=minhash", "by=minhash"],
        "rules": ["tag", "name=rules", "taggers=[gopher,c4,fineweb]"],
    }[stage]
    seconds, peak = timed([*OLMO, *words, documents, run])
    return Measured("ours", processes, seconds, corpus.megabytes, corpus.tokens if stage == "tokenize" else None, peak)


def dolma(stage: str, corpus: Corpus, processes: int, args: argparse.Namespace) -> Measured | None:
    """Dolma's toolkit; it has no MinHash and no rules of FineWeb."""
    out = args.work / "dolma"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(corpus.folder, out / "data", symlinks=True, ignore=shutil.ignore_patterns("attributes", "stages"))
    documents = f"{out}/data/documents/*.jsonl.gz"
    command = [str(args.dolma.absolute() / "bin" / "dolma")]
    if stage == "tokenize":
        tokenizer = Tokenizer(args.tokenizer)
        command += ["tokens", "--documents", documents, "--destination", f"{out}/tokens", "--seed", "0"]
        command += ["--tokenizer.name_or_path", str(args.tokenizer.absolute()), "--tokenizer.eos_token_id", str(tokenizer.eos_id)]
        command += ["--tokenizer.pad_token_id", "1", "--processes", str(processes)]
        command += ["--dtype", "uint16" if tokenizer.vocab_size <= 2**16 else "uint32", "--max_size", str(2**26)]
    elif stage in ("exact", "paragraph"):
        config: dict[str, Any] = {"documents": [documents], "processes": processes}
        what = {"documents": {"key": "$.text", "attribute_name": "dup"}}
        if stage == "paragraph":
            what = {"paragraphs": {"attribute_name": "dup"}}
        config["dedupe"] = {"name": "dup", "skip_empty": True, **what}
        config["bloom_filter"] = {
            "file": f"{out}/bloom", "read_only": False, "estimated_doc_count": 8_000_000, "desired_false_positive_rate": 1e-5,
        }  # fmt: skip
        (out / "dedupe.json").write_bytes(msgspec.json.encode(config))
        command += ["-c", f"{out}/dedupe.json", "dedupe"]
    elif stage == "rules":
        command += ["tag", "--documents", documents, "--taggers", "gopher_v1", "c4_v2", "--experiment", "rules"]
        command += ["--processes", str(processes)]
    else:
        return None
    seconds, peak = timed(command)
    return Measured("dolma", processes, seconds, corpus.megabytes, corpus.tokens if stage == "tokenize" else None, peak)


def datatrove(stage: str, corpus: Corpus, processes: int, args: argparse.Namespace) -> Measured | None:
    """datatrove's blocks."""
    if stage not in ("tokenize", "minhash", "rules"):
        return None
    out = args.work / "datatrove"
    shutil.rmtree(out, ignore_errors=True)
    script = Path(__file__).with_name("data_peers.py")
    python = args.datatrove.absolute() / "bin" / "python"
    words = [stage, str(corpus.folder / "documents"), str(out), str(args.tokenizer.absolute()), str(processes)]
    seconds, peak = timed([str(python), "-P", str(script), *words])  # -P: or spacy takes profile.py beside it for Python's
    return Measured("datatrove", processes, seconds, corpus.megabytes, corpus.tokens if stage == "tokenize" else None, peak)


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and MB of its largest process."""
    began = time.perf_counter()
    # one thread, because tokenizers takes all cores for one process else
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as child:
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}\nended with {child.returncode}:\n{said.decode(errors='replace')[-3000:]}")
    return time.perf_counter() - began, usage.ru_maxrss / 1e3


def print_stage(stage: str, sides: list[Measured]) -> None:
    """A table, and ours against the best peer with as many processes."""
    unit = "M tokens/s" if sides[0].tokens else "MB/s"
    print(f"\n{stage}")
    for side in sides:
        print(
            f"  {side.side:<10} {side.processes} processes  {side.seconds:8.1f} s  {side.rate:8.2f} {unit}  "
            f"peak {side.peak_mb:6.0f} MB"
        )
    for processes in sorted({side.processes for side in sides}):
        rates = {side.side: side.rate for side in sides if side.processes == processes}
        peers = {name: rate for name, rate in rates.items() if name != "ours"}
        if peers:
            best = max(peers, key=lambda name: peers[name])
            print(f"  ratio with {processes}: {rates['ours'] / peers[best]:.1f} times {best}", flush=True)


if __name__ == "__main__":
    main()
