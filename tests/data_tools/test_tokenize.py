"""Documents to shards: every document comes back from its tokens, and what would lose or spoil one is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data_tools.documents import read_documents, write_documents
from data_tools.tokenize import command as tokenize_corpus
from olmo_train.data.document_index import is_heldout
from olmo_train.data.shards import Corpus
from olmo_train.errors import ShardError
from olmo_train.tokenizer import END_OF_TEXT, Tokenizer
from tests.data_tools.conftest import N_DOCUMENTS
from tests.data_tools.texts import Values, make_documents, refusal, tokenize, write_lines


def ids_in_order(shards: Path) -> list[str]:
    """Ids of the documents, file after file."""
    corpus = Corpus(shards)
    return [file.index.row(n).id for file in corpus.files for n in range(file.entry.documents)]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# ---- what is in the shards -------------------------------------------------------------------------------------------------


def test_ids_decode_to_the_text_of_each_document(text_shards: Path, documents: Path) -> None:
    wanted = {d.id: d for d in read_documents(documents)}
    corpus = Corpus(text_shards)
    path = corpus.tokenizer_path()
    assert path is not None
    tokenizer = Tokenizer(path)
    assert len(corpus.files) > len(corpus.manifest.sources) == 2
    for file in corpus.files:
        for n in range(file.entry.documents):
            row = file.index.row(n)
            document = wanted.pop(row.id)
            ids = file.read(row.start, row.end).tolist()
            assert ids.count(tokenizer.eos_id) == 1  # though texts spell it out
            assert ids[-1] == tokenizer.eos_id
            assert tokenizer.decode(ids[:-1]) == document.text
            assert (row.src, row.loc) == (str(documents), document.line)
            assert file.entry.source == document.source
    assert wanted == {}


def test_the_manifest_names_what_the_shards_were_made_with(text_shards: Path, tokenizer: Path) -> None:
    corpus, made = Corpus(text_shards), Tokenizer(tokenizer)
    manifest = corpus.manifest
    assert (manifest.dtype, manifest.vocab_size, manifest.eos_id) == ("uint16", 300, made.eos_id)
    assert manifest.tokenizer_sha256 == made.sha256
    assert (text_shards / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert np.array_equal(corpus.token_bytes(), made.token_bytes())


def test_bytes_of_text_are_those_of_the_documents_and_of_the_ids(text_shards: Path, documents: Path) -> None:
    corpus = Corpus(text_shards)
    table = corpus.token_bytes()
    assert table is not None
    for source in ("a", "b"):
        files = [f for f in corpus.files if f.entry.source == source]
        written = sum(len(d.text.encode()) for d in read_documents(documents) if d.source == source)
        assert sum(f.entry.text_bytes or 0 for f in files) == written
        assert sum(int(table[f.read(0, f.entry.tokens)].sum()) for f in files) == written


def test_held_out_documents_are_those_that_their_ids_say(text_shards: Path, documents: Path) -> None:
    held = {d.id for d in read_documents(documents) if is_heldout(d.id, 0.1)}
    assert 0 < len(held) < N_DOCUMENTS / 3
    for file in Corpus(text_shards).files:
        for n in range(file.entry.documents):
            row = file.index.row(n)
            assert (file.index.train_position(row.start) is None) == (row.id in held)
    assert sum(e.heldout_documents for e in Corpus(text_shards).manifest.files) == len(held)


def test_the_same_input_gives_the_same_bytes(text_shards: Path, documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    again = tokenize(documents, tokenizer, tmp_path / "again", "heldout_frac=0.1", "max_tokens_per_file=2000")
    assert files_of(again) == files_of(text_shards)


def test_a_table_of_sources_is_printed(
    documents: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tokenize(documents, tokenizer, tmp_path / "x", "heldout_frac=0.1")
    totals = Corpus(output).manifest.totals()
    head, *lines = capsys.readouterr().out.splitlines()
    tokens = sum(row["tokens"] for row in totals.values())
    assert re.fullmatch(rf"{output}: {tokens:,} tokens of uint16 in [\d.]+ s \([\d.]+ M tokens/s\)", head)
    assert lines == [
        f"  {source}: {row['documents']:,} documents, {row['tokens']:,} tokens; "
        f"held out {row['heldout_documents']:,} documents, {row['heldout_tokens']:,} tokens"
        for source, row in totals.items()
    ]


def test_an_empty_document_is_its_end_of_text(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": str(i), "text": "", "source": "s"} for i in range(3)])
    (file,) = Corpus(tokenize(path, tokenizer, tmp_path / "x")).files
    assert file.read(0, file.entry.tokens).tolist() == [Tokenizer(tokenizer).eos_id] * 3
    assert (file.entry.documents, file.entry.text_bytes) == (3, 0)


def test_half_a_surrogate_pair_stops_nothing(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": "1", "text": "a\ud800b", "source": "s"}])
    (file,) = Corpus(tokenize(path, tokenizer, tmp_path / "x")).files
    assert Tokenizer(tokenizer).decode(file.read(0, file.entry.tokens)) == f"a?b{END_OF_TEXT}"
    assert file.entry.text_bytes == 3


# ---- order -----------------------------------------------------------------------------------------------------------------


def test_without_a_buffer_documents_keep_their_order_across_files_and_batches(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize_corpus, "BATCH", 7)
    for name, seed in (("1.jsonl", 1), ("2.jsonl", 2)):
        write_lines(tmp_path / "in" / name, [d | {"id": f"{name}:{d['id']}"} for d in make_documents(30, ("s",), seed)])
    order = [d.id for name in ("1.jsonl", "2.jsonl") for d in read_documents(tmp_path / "in" / name)]
    assert ids_in_order(tokenize(tmp_path / "in", tokenizer, tmp_path / "x", "shuffle_buffer=0")) == order


def test_the_shuffle_stays_within_its_buffer_and_follows_the_seed(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", make_documents(50, ("s",)))
    order = [d.id for d in read_documents(path)]
    shuffled = {
        seed: ids_in_order(tokenize(path, tokenizer, tmp_path / str(seed), "shuffle_buffer=20", f"seed={seed}"))
        for seed in (0, 1)
    }
    for ids in shuffled.values():
        for start in (0, 20, 40):
            assert set(ids[start : start + 20]) == set(order[start : start + 20])
            assert ids[start : start + 20] != order[start : start + 20]
    assert shuffled[0] != shuffled[1]


# ---- sources ---------------------------------------------------------------------------------------------------------------


def test_one_id_may_stand_in_two_sources(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": "1", "text": s, "source": s} for s in ("web", "code/py", "Ünï_1.0 x")])
    corpus = Corpus(tokenize(path, tokenizer, tmp_path / "x"))
    assert sorted(corpus.manifest.sources) == ["code/py", "web", "Ünï_1.0 x"]
    assert sorted(corpus.find_document("1")) == [(0, 0), (1, 0), (2, 0)]
    assert corpus.verify("full") == []


@pytest.mark.parametrize("source", ["", ".", "..", "../evil", "/evil", "a/../b", "a//b", "a/", ".hidden", "a\0b", "-a"])
def test_a_source_that_leads_elsewhere_is_refused(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    folder = tmp_path / "there"
    path = write_lines(folder / "x.jsonl", [{"id": "1", "text": "x", "source": "ok"}, {"id": "2", "text": "x", "source": source}])
    message = refuse(path, tokenizer, folder / "out", capsys)
    assert message == (
        f"{path}: line 2: source={source!r} cannot name a folder of the output; it takes words that start with a letter or "
        "digit, with slashes between"
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["there", "x.jsonl"]


# ---- errors ----------------------------------------------------------------------------------------------------------------


def refuse(path: Path, tokenizer: Path, output: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    argv = [f"documents=[{path}]", f"tokenizer={tokenizer}", f"output={output}", *overrides]
    return refusal(tokenize_corpus.main, argv, capsys)


def test_an_id_that_stands_twice_is_named_and_nothing_is_left(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one: Values = {"id": "same", "text": "x", "source": "s"}
    write_lines(tmp_path / "in/1.jsonl", [one, one | {"id": "other"}])
    second = write_lines(tmp_path / "in/2.jsonl", [one | {"source": "t"}, one | {"text": "y"}])
    message = refuse(tmp_path / "in", tokenizer, tmp_path / "x", capsys)
    assert message == f"{second}: line 2: id 'same' stands twice in source 's'; ids must be unique"
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_an_output_that_exists_is_never_touched(
    documents: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    message = refuse(documents, tokenizer, tmp_path / "x", capsys)
    assert message == (f"output={tmp_path / 'x'} exists already; shards are never overwritten: remove it or give another folder")
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("text", [None, 7, ["x"], {"x": 1}])
def test_text_that_is_no_string_is_named_and_nothing_is_left(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: object
) -> None:
    good = {"id": "1", "text": "x", "source": "s"}
    path = write_lines(tmp_path / "x.jsonl", [good, good | {"id": "2", "text": text}])
    message = refuse(path, tokenizer, tmp_path / "x", capsys, "shuffle_buffer=0")
    assert message == f"{path}: line 2: text={text!r} must be a string; Dolma requires id, text and source"
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_documents_that_are_cut_short_leave_nothing(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    write_documents(path, read_documents(documents))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match=rf"{path}: damaged after line \d+: Compressed file ended"):
        tokenize(path, tokenizer, tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl.gz"]


def test_files_without_a_document_are_an_error(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "in" / name for name in ("1.jsonl", "2.jsonl")]
    for path in paths:
        write_lines(path, [])
    assert refuse(tmp_path / "in", tokenizer, tmp_path / "x", capsys) == f"documents: {paths[0]}, {paths[1]} hold no document"
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_bad_values_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["tokenizer=t.json", f"output={tmp_path}", "heldout_frac=1", "max_tokens_per_file=0", "shuffle_buffer=-1"]
    message = refusal(tokenize_corpus.main, argv, capsys)
    for line in (
        "documents is empty; give files, folders or globs of Dolma documents",
        "heldout_frac=1.0 is not in [0, 1)",
        "max_tokens_per_file=0 must be positive",
        "shuffle_buffer=-1 must not be negative; 0 keeps the order",
        f"output={tmp_path} exists already",
    ):
        assert line in message
    assert "heldout_frac=-0.1 is not in [0, 1)" in refusal(tokenize_corpus.main, [*argv, "heldout_frac=-0.1"], capsys)


def test_a_missing_tokenizer_is_named(documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refuse(documents, tmp_path / "t.json", tmp_path / "x", capsys)
    assert message.startswith(f"{tmp_path}/t.json: No such file or directory; train a tokenizer with `olmo data tokenizer`")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_is_json_that_others_can_read(text_shards: Path) -> None:
    values = json.loads((text_shards / "manifest.json").read_text(encoding="utf-8"))
    assert values["totals"]["a"]["documents"] + values["totals"]["b"]["documents"] == N_DOCUMENTS
