"""Shards are the same bytes whatever the number of processes, tasks and segments, and whenever a process is killed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_tools.tokenize import encoder as encoder_module
from data_tools.tokenize import plan_part, read_part
from data_tools.tokenize.command import TokenizeConfig
from data_tools.tokenize.command import tokenize as run_stage
from data_tools.tokenize.encoder import Encoder
from olmo_train.data.shards import Corpus
from olmo_train.errors import ConfigError, ShardError
from tests.data_tools.texts import make_documents, tokenize, write_lines

SETTINGS = ["heldout_frac=0.1", "max_tokens_per_file=1500", "max_rejected_frac=0.1"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, with documents that stand twice, within a file and across."""
    folder = tmp_path_factory.mktemp("inputs")
    documents = make_documents(90, ("a", "b/c"))
    for i in range(3):
        write_lines(folder / f"documents/{i}.jsonl", [*documents[i * 30 : i * 30 + 30], documents[i]])
    return folder


@pytest.fixture(scope="module")
def alone(inputs: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one undisturbed process writes."""
    return shards_of(tokenize(inputs, tokenizer, tmp_path_factory.mktemp("alone") / "x", *SETTINGS))


def shards_of(folder: Path) -> dict[str, bytes]:
    """Everything but the records of the stage that tell times; no file of scratch is left."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "summary.json"]
    assert not [p for p in folder.rglob("*") if "scratch" in p.parts or ".tmp-" in p.name or p.suffix == ".claim"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_two_processes_write_what_one_writes(inputs: Path, tokenizer: Path, tmp_path: Path, alone: dict[str, bytes]) -> None:
    assert len([name for name in alone if name.endswith(".npy")]) > 4
    assert shards_of(tokenize(inputs, tokenizer, tmp_path / "x", *SETTINGS, "processes=2")) == alone


@pytest.mark.parametrize("order", ["shuffle", "input"])
def test_memory_does_not_change_what_is_written(inputs: Path, tokenizer: Path, tmp_path: Path, order: str) -> None:
    """With none at all each document is a segment, a range and a write of its own."""
    whole = tokenize(inputs, tokenizer, tmp_path / "whole", *SETTINGS, f"order={order}")
    config = TokenizeConfig(
        documents=[str(inputs)], tokenizer=str(tokenizer), output=str(tmp_path / "x"), heldout_frac=0.1, max_tokens_per_file=1500,
        max_rejected_frac=0.1, order=order, memory_mb=0,  # type: ignore[arg-type]
    )  # fmt: skip
    run_stage(config)
    found, wanted = shards_of(tmp_path / "x"), shards_of(whole)
    assert {name: data for name, data in wanted.items() if "/parts/" not in name and found.get(name) != data} == {}
    assert found.keys() == wanted.keys()
    assert len(list((whole / "stages/tokenize/quarantine").iterdir())) == 2


def test_killed_at_any_moment_the_same_command_by_two_tasks_writes_the_same(
    inputs: Path, tokenizer: Path, tmp_path: Path, alone: dict[str, bytes]
) -> None:
    output, rng = tmp_path / "x", random.Random(3)
    words = [f"documents=[{inputs}]", f"tokenizer={tokenizer}", f"output={output}", *SETTINGS, "processes=1"]
    command = [sys.executable, "-m", "data_tools.tokenize.command", *words]
    for phase in ("read", "plan", "write"):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not list(output.glob(f"stages/tokenize/parts/{phase}/*.json")) and time.monotonic() < deadline:
            assert process.poll() is None or process.returncode == 0, process.communicate()
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    tasks = [
        subprocess.Popen([*command, f"task={i}", "n_tasks=2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    told = [task.communicate(timeout=60) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    assert shards_of(output) == alone


# ---- files -------------------------------------------------------------------------------------------------------------------


def sizes_of(output: Path) -> list[int]:
    return [file.entry.tokens for file in Corpus(output).files]


def test_files_of_a_source_are_about_equal_and_none_is_too_large(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", make_documents(300, ("s",)))
    total = sum(sizes_of(tokenize(path, tokenizer, tmp_path / "one")))
    limit = total // 5
    sizes = sizes_of(tokenize(path, tokenizer, tmp_path / "x", f"max_tokens_per_file={limit}"))
    assert sum(sizes) == total
    assert max(sizes) <= limit
    assert len(sizes) == 6
    assert max(sizes) - min(sizes) < 0.1 * limit


@pytest.mark.parametrize("limit", [1, 250])
def test_documents_larger_than_a_file_have_one_of_their_own(tokenizer: Path, tmp_path: Path, limit: int) -> None:
    """Where Dolma's tokenizer writes files without end."""
    documents = [d | {"text": d["text"] * (100 if i == 3 else 1)} for i, d in enumerate(make_documents(12, ("s",)))]
    path = write_lines(tmp_path / "x.jsonl", documents)
    corpus = Corpus(tokenize(path, tokenizer, tmp_path / "x", f"max_tokens_per_file={limit}"))
    assert sum(file.entry.documents for file in corpus.files) == 12
    assert all(file.entry.tokens <= limit or file.entry.documents == 1 for file in corpus.files)
    assert (len(corpus.files) == 12) == (limit == 1)


def test_a_file_has_at_most_so_many_documents(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_part, "MAX_DOCUMENTS", 7)
    path = write_lines(tmp_path / "x.jsonl", make_documents(30, ("s",)))
    documents = [file.entry.documents for file in Corpus(tokenize(path, tokenizer, tmp_path / "x")).files]
    assert (sum(documents), max(documents) <= 7) == (30, True)


def test_different_documents_of_one_key_are_all_kept_in_the_order_of_their_ids(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_part, "document_key", lambda source, document_id, seed: 7 if source == "s" else len(document_id))
    ids = ["d", "b", "c", "a", "b"]
    path = write_lines(tmp_path / "x.jsonl", [{"id": i, "text": f"text {i}", "source": "s"} for i in ids])
    output = tokenize(path, tokenizer, tmp_path / "x", "max_tokens_per_file=1", "max_rejected_frac=0.3")
    (file,) = Corpus(output).files
    assert [file.index.row(n).id for n in range(file.entry.documents)] == ["a", "b", "c", "d"]
    assert [file.index.row(n).loc for n in range(4)] == [4, 2, 3, 1]


# ---- texts -------------------------------------------------------------------------------------------------------------------


def test_long_texts_are_encoded_piece_by_piece_to_the_same_ids(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(str(d["text"]) for d in make_documents(200)).strip()
    documents = [{"id": "long", "text": text, "source": "s"}, {"id": "short", "text": "x y", "source": "s"}]
    path = write_lines(tmp_path / "x.jsonl", [*documents, {"id": "word", "text": "a" * 5 * 10**6, "source": "s"}])
    monkeypatch.setattr(read_part, "LONG", 1000)
    output = tokenize(path, tokenizer, tmp_path / "x", "bos_token='<|endoftext|>'", "max_rejected_frac=0.5", "order=input")
    (file,) = Corpus(output).files
    found = file.read(file.index.row(0).start, file.index.row(0).end).tolist()
    eos = Corpus(output).manifest.eos_id
    assert found == [eos, *Encoder(tokenizer).tokenizer.encode_batch([text])[0], eos]
    assert [file.index.row(n).id for n in range(file.entry.documents)] == ["long", "short"]
    assert file.entry.text_bytes == len(text.encode()) + 3
    assert file.entry.tokens == file.index.row(1).end == int(np.sum([len(found), file.index.row(1).end - len(found)]))


def test_a_document_with_other_ids_stops_the_stage(tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "x.jsonl", make_documents(3, ("s",)))
    monkeypatch.setattr(read_part, "CHECKED_FRAC", 1.1)
    tokenize(path, tokenizer, tmp_path / "x")
    monkeypatch.setattr(Encoder, "reference_ids", lambda self, text: np.zeros(1, np.uint32))
    with pytest.raises(ShardError) as caught:
        tokenize(path, tokenizer, tmp_path / "y")
    name = next(iter(read_part._encoders.values())).name
    assert str(caught.value) == (
        f"{path}: line 1: {name} gives document {make_documents(1)[0]['id']!r} other ids than tokenizers; give "
        "encoder=tokenizers, and tell its authors"
    )


def test_a_begin_token_must_be_one(tokenizer: Path, documents: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        tokenize(documents, tokenizer, tmp_path / "x", "bos_token='<s>'")
    assert str(caught.value) == f"bos_token='<s>' is no token of {tokenizer}; give one of its tokens, or null"


def test_sidecars_name_files_by_datasets_or_a_root(tokenizer: Path, tmp_path: Path) -> None:
    one = make_documents(1, ("s",))
    for folder in ("x/set", "y/set"):
        write_lines(tmp_path / folder / "documents/a.jsonl", [d | {"id": folder} for d in one])

    def srcs(name: str, *words: str) -> set[str]:
        (file,) = Corpus(tokenize(tmp_path / "?/set/documents/*.jsonl", tokenizer, tmp_path / name, *words)).files
        return {file.index.row(n).src for n in range(2)}

    assert srcs("1") == {"x/set/documents/a.jsonl", "y/set/documents/a.jsonl"}
    (file,) = Corpus(tokenize(tmp_path / "x/set", tokenizer, tmp_path / "2")).files
    assert file.index.row(0).src == "set/documents/a.jsonl"
    (file,) = Corpus(tokenize(tmp_path / "x/set", tokenizer, tmp_path / "3", f"src_root={tmp_path / 'x/set/documents'}")).files
    assert file.index.row(0).src == "a.jsonl"
    with pytest.raises(ConfigError) as caught:
        tokenize(tmp_path / "x/set", tokenizer, tmp_path / "4", f"src_root={tmp_path / 'y'}")
    assert str(caught.value) == (
        f"src_root={tmp_path / 'y'} has no {tmp_path / 'x/set/documents/a.jsonl'} below it; give a folder above all documents, or "
        "null"
    )


def test_an_encoder_that_is_not_used_is_told_and_recorded(
    tokenizer: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encoder_module, "gigatoken", None)
    read_part._encoders.clear()
    output = tokenize(documents, tokenizer, tmp_path / "x")
    assert "tokenize: gigatoken is not used: it is not installed: pip install 'olmo-train[data]'\n" in capsys.readouterr().err
    assert [
        name.split()[0] for name in json.loads((output / "stages/tokenize/summary.json").read_text())["totals"]["encoders"]
    ] == ["tokenizers"]
    read_part._encoders.clear()
    values = json.loads(tokenizer.read_text()) | {"normalizer": {"type": "NFKC"}}
    (tmp_path / "other.json").write_text(json.dumps(values))
    tokenize(documents, tmp_path / "other.json", tmp_path / "y", "encoder=tokenizers")
    assert "other.json may join any words: long texts are encoded whole, and need memory\n" in capsys.readouterr().err
    read_part._encoders.clear()
