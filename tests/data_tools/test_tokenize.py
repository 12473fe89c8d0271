"""Documents to shards: every document comes back from its tokens, and what would lose or spoil one is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.documents import read_documents, write_documents
from data_tools.files import InputFile, lines
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
    """All but the summary, which says how long it took."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "summary.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def summary_of(output: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((output / "stages/tokenize/summary.json").read_text())
    return values


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """Of quarantine or dropped."""
    return [json.loads(line) for path in sorted(folder.iterdir()) for line in lines(path, InputFile(path))]


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
            assert (row.src, row.loc) == (f"{documents.parent.name}/{documents.name}", document.line)
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


def test_an_empty_document_is_left_out_and_told(tokenizer: Path, tmp_path: Path) -> None:
    texts = ["", "x", ""]
    path = write_lines(tmp_path / "x.jsonl", [{"id": str(i), "text": text, "source": "s"} for i, text in enumerate(texts)])
    (file,) = Corpus(tokenize(path, tokenizer, tmp_path / "x")).files
    assert [file.index.row(0).id, file.entry.documents] == ["1", 1]
    dropped = lines_of(tmp_path / "x/stages/tokenize/dropped")
    assert [(d["id"], d["reason"], d["path"], d["line"]) for d in dropped] == [(i, "empty", str(path), int(i) + 1) for i in "02"]
    assert summary_of(tmp_path / "x")["totals"]["dropped_empty"] == 2


def test_half_a_surrogate_pair_stops_nothing(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": "1", "text": "a\ud800b", "source": "s"}])
    (file,) = Corpus(tokenize(path, tokenizer, tmp_path / "x")).files
    assert Tokenizer(tokenizer).decode(file.read(0, file.entry.tokens)) == f"a\ufffdb{END_OF_TEXT}"
    assert file.entry.text_bytes == 5
    assert summary_of(tmp_path / "x")["repaired"] == {"surrogate": 1}


# ---- order -----------------------------------------------------------------------------------------------------------------


def test_order_input_keeps_that_of_files_and_lines(tokenizer: Path, tmp_path: Path) -> None:
    for name, seed in (("1.jsonl", 1), ("2.jsonl", 2)):
        write_lines(tmp_path / "in" / name, [d | {"id": f"{name}:{d['id']}"} for d in make_documents(30, ("s",), seed)])
    order = [d.id for name in ("1.jsonl", "2.jsonl") for d in read_documents(tmp_path / "in" / name)]
    assert ids_in_order(tokenize(tmp_path / "in", tokenizer, tmp_path / "x", "order=input", "max_tokens_per_file=900")) == order


def test_the_shuffle_is_of_the_whole_source_and_follows_seed_and_ids_alone(tokenizer: Path, tmp_path: Path) -> None:
    documents = make_documents(200, ("s",))
    path = write_lines(tmp_path / "x.jsonl", documents)
    order = [d["id"] for d in documents]
    shuffled = {seed: ids_in_order(tokenize(path, tokenizer, tmp_path / str(seed), f"seed={seed}")) for seed in (0, 1)}
    for ids in shuffled.values():
        assert sorted(ids) == sorted(order)
        places = np.array([order.index(each) for each in ids])
        assert abs(float(np.corrcoef(places, np.arange(200))[0, 1])) < 0.25
    assert shuffled[0] != shuffled[1]
    write_lines(tmp_path / "in/2.jsonl", documents[:77][::-1])
    write_lines(tmp_path / "in/1.jsonl", documents[77:])
    assert ids_in_order(tokenize(tmp_path / "in", tokenizer, tmp_path / "other", "seed=1")) == shuffled[1]


# ---- sources ---------------------------------------------------------------------------------------------------------------


def test_one_id_may_stand_in_two_sources(tokenizer: Path, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"id": "1", "text": s, "source": s} for s in ("web", "code/py", "Ünï_1.0 x")])
    corpus = Corpus(tokenize(path, tokenizer, tmp_path / "x"))
    assert sorted(corpus.manifest.sources) == ["code/py", "web", "Ünï_1.0 x"]
    assert sorted(corpus.find_document("1")) == [(0, 0), (1, 0), (2, 0)]
    assert corpus.verify("full") == []


EVIL = [
    "",
    ".",
    "..",
    "../evil",
    "/evil",
    "a/../b",
    "a//b",
    "a/",
    ".hidden",
    "a\0b",
    "-a",
    "stages/x",
    "part-00000.npy",
    "é" * 101,
]


def test_sources_that_lead_elsewhere_are_rejected(tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    bad = [{"id": str(i), "text": "x", "source": source} for i, source in enumerate(EVIL)]
    path = write_lines(folder / "x.jsonl", [*bad, {"id": "good", "text": "x", "source": "ok"}])
    output = tokenize(path, tokenizer, folder / "out", "max_rejected_frac=1")
    told = lines_of(output / "stages/tokenize/quarantine")
    assert [(q["reason"], q["line"]) for q in told] == [("bad_source", i + 1) for i in range(len(EVIL))]
    assert told[3]["detail"] == (
        "source='../evil' cannot name a folder of the output; it takes words that start with a letter or digit, with slashes "
        "between"
    )
    assert (
        told[11]["detail"] == "source='stages/x' cannot name a folder of the output; the output has this name for something else"
    )
    assert told[13]["detail"].endswith("; names of folders have at most 200 bytes")
    assert json.loads(told[3]["raw"])["source"] == "../evil"
    assert Corpus(output).manifest.sources == ["ok"]
    assert sorted(p.name for p in output.iterdir()) == ["index", "manifest.json", "ok", "stages", "tokenizer.json"]
    assert sorted(p.name for p in folder.iterdir()) == ["out", "x.jsonl"]
    assert summary_of(output)["lines"] == len(EVIL) + 1


# ---- errors ----------------------------------------------------------------------------------------------------------------


def refuse(path: Path, tokenizer: Path, output: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    argv = [f"documents=[{path}]", f"tokenizer={tokenizer}", f"output={output}", *overrides]
    return refusal(tokenize_corpus.main, argv, capsys)


@pytest.mark.parametrize("order", ["shuffle", "input"])
def test_an_id_that_stands_twice_is_rejected_where_it_stands_later(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], order: str
) -> None:
    one: Values = {"id": "same", "text": "x", "source": "s"}
    first = write_lines(tmp_path / "in/1.jsonl", [one | {"id": "other"}, one])
    second = write_lines(tmp_path / "in/2.jsonl", [one | {"source": "t"}, one | {"text": "y"}])
    message = refuse(tmp_path / "in", tokenizer, tmp_path / "x", capsys, f"order={order}")
    assert message.startswith(
        "tokenize: 1 of 4 lines are no documents (duplicate_id 1), more than max_rejected_frac=0.001; each with place and reason "
    )
    assert not (tmp_path / "x/manifest.json").exists()
    with pytest.raises(ShardError, match="does not exist; write it with"):
        Corpus(tmp_path / "x")
    output = tokenize(tmp_path / "in", tokenizer, tmp_path / "x", f"order={order}", "max_rejected_frac=0.3")
    (told,) = lines_of(output / "stages/tokenize/quarantine")
    assert (told["path"], told["line"]) == (str(second), 2)
    assert told["detail"] == f"id 'same' stands twice in source 's', first in {first}: line 2; ids must be unique"
    corpus = Corpus(output)
    assert sorted(ids_in_order(output)) == ["other", "same", "same"]
    ((number, ordinal),) = [at for at in corpus.find_document("same") if corpus.files[at[0]].entry.source == "s"]
    row = corpus.files[number].index.row(ordinal)
    assert (row.src, row.loc) == ("in/1.jsonl", 2)


def test_an_output_that_holds_something_else_is_never_touched(
    documents: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine").touch()
    message = refuse(documents, tokenizer, tmp_path / "x", capsys)
    assert message == (f"output={tmp_path / 'x'} exists already; shards are never overwritten: remove it or give another folder")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["mine"]


def test_another_tokenizer_or_seed_is_refused_in_the_same_folder(
    documents: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tokenize(documents, tokenizer, tmp_path / "x")
    before = files_of(output)
    message = refuse(documents, tokenizer, output, capsys, "seed=7", "heldout_frac=0.5")
    assert "was begun by another plan: settings.heldout_frac was 0.02, now 0.5; settings.seed was 0, now 7; give" in message
    tokenize(documents, tokenizer, output)  # the same one is finished
    assert capsys.readouterr().err == f"{output}: finished before\n"
    assert files_of(output) == before


def test_documents_that_are_cut_short_fail_and_go_on_where_allowed(documents: Path, tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    write_documents(path, read_documents(documents))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match="tokenize: 1 damaged files, max_damaged_files=0"):
        tokenize(path, tokenizer, tmp_path / "x")
    assert not (tmp_path / "x/manifest.json").exists()
    output = tokenize(path, tokenizer, tmp_path / "x", "max_damaged_files=1", "max_rejected_frac=0.1")
    assert 0 < len(ids_in_order(output)) < N_DOCUMENTS


def test_files_without_a_document_are_an_error(tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "in" / name for name in ("1.jsonl", "2.jsonl")]
    for path in paths:
        write_lines(path, [])
    assert refuse(tmp_path / "in", tokenizer, tmp_path / "x", capsys).endswith(f"documents: {tmp_path / 'in'} hold no document")
    assert not (tmp_path / "x/manifest.json").exists()


def test_bad_values_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    argv = ["tokenizer=t.json", f"output={tmp_path}", "heldout_frac=1", "max_tokens_per_file=0", "seed=-1"]
    message = refusal(tokenize_corpus.main, argv, capsys)
    for line in (
        "documents is empty; give files, folders or globs of Dolma documents",
        "heldout_frac=1.0 is not in [0, 1)",
        "max_tokens_per_file=0 must be positive",
        "seed=-1 is not in 0 .. 2**64 - 1",
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
