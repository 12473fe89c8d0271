"""A corpus with planted documents, its index, and the folder of a run on it, for tests of what a trace tells."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.tokenize import train_tokenizer
from data_tools.trace.answer import Place
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.opening import Trace, load_trace_config, open_trace
from data_tools.trace.when import History
from olmo_train.config.train import TrainConfig
from olmo_train.data.document_index import is_heldout
from olmo_train.schema import load_config, to_yaml
from olmo_train.step_folder import step_name
from tests.data_tools.texts import tokenize, write_lines

HELDOUT = 0.1
WORDS = ["the", "fox", "jumps", "over", "naïve", "Straße", "日本語", "😀", "lazy", "dogs", "and", "été", "x=1;"]
PLANTED = "seventeen copper herons counted lanterns beside the quiet harbour of Vlissingen"
COPIED = "every marble staircase leads downward into a library nobody has catalogued"
REPEATED = "again the green kettle whistles through an empty kitchen"
SECRET = "unheard velvet thunder gathers behind mountains of forgotten paper"
PERSONAL = "for further questions about the walrus exhibition please write to"
HOSTILE = "hostile pages pretend to be harmless while whispering"
EDGE = "the last words of this document are purple umbrellas"
LONG = "an interminable catalogue of provincial railway stations"
KEPT, HIDDEN = "takedown requests arrive on paper", "and mention a forbidden zebra painting"


def id_that(held_out: bool, stem: str) -> str:
    """An id that is (not) held out."""
    return next(name for n in range(1000) if is_heldout(name := f"{stem}/{n}", HELDOUT) == held_out)


def filler(rng: np.random.Generator, n_words: int) -> str:
    return " ".join(rng.choice(WORDS, n_words).tolist())


def planted_documents() -> list[dict[str, Any]]:
    """Documents that tests look for, by their kinds of trouble."""
    rng = np.random.default_rng(1)
    long_line = f"<b>{filler(rng, 2000)}</b>"
    texts = {
        "planted": f"{filler(rng, 20)} {PLANTED} {filler(rng, 20)}",
        "copy-a": f"{filler(rng, 3)} {COPIED} 日本語.",
        "repeated": " ".join([REPEATED] * 5),
        "personal": f"{PERSONAL} jane.doe@example.org or call +31 20 123 4567 from 192.0.2.17 {filler(rng, 9)}",
        "hostile": f"{HOSTILE} <script>alert(1)</script> \x1b[31m \x00 \u202e {long_line} 'quoted' \"double\"",
        "edge": EDGE,
        "long": LONG + " " + filler(rng, 400) + " " + LONG,
        "both": f"{filler(rng, 3)} {KEPT} {HIDDEN}",
        "one": f"{filler(rng, 5)} {KEPT} {filler(rng, 5)}",
    }
    documents = [{"id": id_that(False, name), "text": text, "source": "planted"} for name, text in texts.items()]
    copied = texts["copy-a"]
    documents += [{"id": id_that(False, f"copy-{name}"), "text": copied, "source": "planted"} for name in "bc"]
    documents.append(
        {"id": id_that(True, "secret"), "text": f"{filler(rng, 5)} {SECRET} {KEPT} {filler(rng, 5)}", "source": "planted"}
    )
    documents[3]["metadata"] = {
        "url": "https://example.org/~jane.doe@example.org",
        "author": "jane.doe@example.org",
        "year": 2020,
    }
    return documents


@dataclass(frozen=True)
class Traced:
    """Where everything lies."""

    documents: Path
    shards: Path
    run: Path


def write_traced(folder: Path) -> Traced:
    """Documents, tokenizer, shards, index with metadata, and a run that has trained 60 of 80 steps: about two epochs."""
    rng = np.random.default_rng(0)
    documents = planted_documents()
    for n in range(80):
        documents.insert(
            int(rng.integers(len(documents))), {"id": f"f{n}", "text": filler(rng, int(rng.integers(1, 60))), "source": "filler"}
        )
    path = write_lines(folder / "documents.jsonl", documents)
    train_tokenizer.main([f"documents=[{path}]", f"output={folder / 'tokenizer.json'}", "vocab_size=400"])
    shards = tokenize(path, folder / "tokenizer.json", folder / "shards", f"heldout_frac={HELDOUT}", "max_tokens_per_file=3000")
    build(IndexConfig(str(shards), documents=[str(path)], processes=1))
    return Traced(path, shards, write_run(folder / "runs" / "first", shards))


def run_config(run: Path, shards: Path, *overrides: str) -> TrainConfig:
    """A run of 80 steps of 16 rows of 16 tokens."""
    words = {
        "model": "tiny_moe", "data.sources.demo.path": f"'{shards}'", "run_name": run.name, "run_dir": f"'{run}'", "data.seq_len": "16",
        "data.global_batch_size": "256", "data.micro_batch_size": "256", "max_tokens": str(80 * 256), "model.vocab_size": "400",
    }  # fmt: skip
    words |= dict(word.split("=", 1) for word in overrides)
    return load_config("train", TrainConfig, [f"{name}={value}" for name, value in words.items()])


def write_run(run: Path, shards: Path, *overrides: str, trained: int = 60, save_every: int = 16) -> Path:
    """The folder of a run as the trainer leaves it, but for weights: config, ledger, finished step folders."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(run_config(run, shards, *overrides)))
    write_ledger(run, trained)
    key = History.open(run).order.key
    for step in [*range(0, trained, save_every), trained]:
        write_step(run, step, key)
    return run


def write_step(run: Path, step: int, key: dict[str, Any]) -> None:
    folder = run / "steps" / step_name(step)
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "data": {"next_position": step * 16, "order": key}}))
    (folder / "manifest.json").write_text("{}")


def write_ledger(run: Path, trained: int, skipped: tuple[int, ...] = (), masked: dict[int, list[int]] | None = None) -> None:
    """data.jsonl as the trainer writes it."""
    with open(run / "data.jsonl", "w") as file:
        for step in range(1, trained + 1):
            line = {
                "step": step,
                "position": (step - 1) * 16,
                "rows": 16,
                "checksum": step,
                "masked_rows": (masked or {}).get(step, []),
            }
            file.write(json.dumps({**line, "skipped": "loss" if step in skipped else None}) + "\n")


def opened(where: Path, *overrides: str) -> Trace:
    """A trace as the commands open it."""
    return open_trace(str(where), load_trace_config(list(overrides)))


def place_of(trace: Trace, text: str, split: str = "train") -> tuple[Place, int]:
    """Where a text stands first, after a space or not, and its tokens."""
    for form in (f" {text}", text):
        ids = trace.searcher.tokenizer.encode(form)
        places = trace.searcher.places(trace.searcher.find(ids, split))
        if places:
            return places[0], len(ids)
    raise AssertionError(f"{text!r} does not stand in the corpus")


def brute_sights(history: History, place: Place, n: int) -> list[tuple[int, ...]]:
    """(step, row, epoch, column start, column end, token start, token end) by reading every batch of a run with one source."""
    (source,) = history.order.sources
    wanted, found = source.files[place.file], []
    for step in range(1, history.total_steps + 1):
        for instance in history.order.batch(step):
            for piece in instance.pieces:
                a, b = max(piece.start, place.offset), min(piece.end, place.offset + n)
                if piece.file is wanted and a < b:
                    column = piece.column + a - piece.start
                    found.append((step, instance.row, instance.epoch, column, column + b - a, a - place.offset, b - place.offset))
    return sorted(found)
