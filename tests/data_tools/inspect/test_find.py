"""A document's way through all stages, by its id; documents shown one by one; what is nowhere is said to be nowhere."""

import json
import re
import shutil
from pathlib import Path

import pytest

from data_tools.datasets import AttributeWriter, find_document_files
from data_tools.id_index import DocumentWriter
from data_tools.inspect import batch, find, show
from data_tools.inspect.document_at import attributes_at
from olmo_train.errors import ShardError
from tests.data_tools.inspect.pipeline import Made
from tests.data_tools.test_inspect import planned
from tests.data_tools.texts import refusal


def told(capsys: pytest.CaptureFixture[str], main, *argv: object) -> str:  # type: ignore[no-untyped-def]
    capsys.readouterr()
    main([str(word) for word in argv])
    return capsys.readouterr().out


def test_a_redacted_document_is_followed_from_its_raw_line_to_its_tokens(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, find.main, "b4", "shards")
    base, mixed, shards = text.index(f"{own.base}:\n"), text.index(f"{own.mixed}:\n"), text.index("shards:\n")
    assert base < mixed < shards
    assert '  metadata: {"origin":"books.jsonl:5"}\n' in text[base:mixed]
    assert re.search(r"written by ingest, part books.jsonl, from /.*/raw/books.jsonl\n", text[base:mixed])
    assert "rules__length__characters: 45\n" in text[base:mixed]
    assert "rules__pii__secret: 1 span: [13, 19) 1\n" in text[base:mixed]
    assert "45 characters" in text[base:mixed]
    assert "42 characters" in text[mixed:shards]
    assert "books.jsonl.zst line 5" in text[shards:]
    assert "tokens [" in text[shards:]


def test_a_dropped_and_a_double_document_say_why(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, find.main, "w7", "mixed", "--source", "web")
    assert "mix: dropped (" in text
    assert "    reason: rules__length__characters < 10\n    value: 5\n" in text
    assert f"a document of source 'web': {own.mixed}" not in text
    text = told(capsys, find.main, "w9", "base")
    assert "dedupe: duplicates (" in text
    assert '    kept: {"id":"w3",' in text
    text = told(capsys, find.main, "w99", "base")
    assert "ingest: quarantine (" in text
    assert "    reason: wrong_type\n" in text


def test_a_run_tells_the_steps_and_its_rows_the_text(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    run = planned(Path("run"), Path("shards"), "model.vocab_size=300")
    text = told(capsys, find.main, "w3", "shards", "--run", run)
    assert re.search(r"\nrun:\nw3: \d+ tokens at part-00000.npy ", text)
    step, row = re.search(r"  step (\d+) row (\d+) epoch ", text).groups()  # type: ignore[union-attr]
    shown = told(capsys, show.main, "run", "--step", step, "--row", row)
    assert shown == told(capsys, batch.main, "run", step, "--row", row, "--text")
    assert " of w3  (" in shown


def test_without_indexes_it_is_found_by_a_scan(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    indexed = told(capsys, find.main, "b4", "base")
    shutil.rmtree(own.base / "stages/ingest/ids")
    assert told(capsys, find.main, "b4", "base") == indexed


def test_what_is_nowhere_is_said_to_be_nowhere(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(find.main, ["b4", "base", "--source", "web"], capsys) == (
        "'b4' of source 'web': not found; searched base: 2 indexes of ids, 0 files of documents line by line, 2 files of what "
        "stages dropped, rejected or marked"
    )


def test_a_document_is_shown_by_id_and_by_line_with_its_attributes(own: Made, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, show.main, "base", "--id", "b4")
    assert text == told(capsys, show.main, "base", "--at", "books.jsonl.zst:5")
    assert text.startswith("id      b4\nsource  books\nplace   base/documents/books.jsonl.zst line 5\n")
    assert "rules__pii__secret: 1 span: [13, 19) 1\n" in text
    assert text.endswith("\nmy number is SECRET, tell nobody, tell nobody\n")
    listed = told(capsys, show.main, "base")
    assert "  attributes exact\n  attributes rules\n  stage ingest\n" in listed
    assert refusal(show.main, ["base", "--id", "x"], capsys) == (
        "--id=x: no document of base has this id; `olmo data find` also looks at what was dropped"
    )
    assert refusal(show.main, ["base", "--at", "x:1"], capsys) == (
        "--at=x:1: must be FILE:LINE with a file below base/documents, e.g. of books.jsonl.zst, web.jsonl.zst"
    )
    assert refusal(show.main, ["base", "--at", "books.jsonl.zst:99"], capsys) == (
        "base/documents/books.jsonl.zst: line 99 is no document, or the file ends before it"
    )
    assert refusal(show.main, ["base", "--step", "1"], capsys) == "--step and --row go together"


def test_attributes_of_other_documents_are_refused(own: Made) -> None:
    file = find_document_files(["base"])[0]
    path = Path("base/attributes/rules/books.jsonl.zst")
    with pytest.raises(
        ShardError, match="books.jsonl.zst: line 5 is of 'b4', the document there is 'x': documents and attributes"
    ):
        attributes_at(file, 5, "x")
    AttributeWriter(path.parent.parent / "exact/books.jsonl.zst").close()
    with pytest.raises(ShardError, match=f"^{path.parent.parent}/exact/books.jsonl.zst: ends before line 5; "):
        attributes_at(file, 5, "b4")


@pytest.mark.parametrize("has_index", [True, False])
def test_copies_are_found_by_the_id_of_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str], has_index: bool) -> None:
    ids = ["a", "a#copy2", "a#copy3", "ab", "a#copyx", "b"]
    path = tmp_path / "documents/x.jsonl.zst"
    path.parent.mkdir(parents=True)
    index = tmp_path / "stages/mix/ids/x.jsonl.zst.idx"
    index.parent.mkdir(parents=True)
    writer = DocumentWriter(path, index)
    for each in ids:
        writer.write({"id": each, "text": "t", "source": "s"})
    writer.close()
    if has_index:
        (tmp_path / "stages/mix/stage.json").write_text('{"stage": "mix", "settings": {}, "inputs": {}}')
        record = {"name": "x", "outputs": {"ids/x.jsonl.zst.idx": {}, "../../documents/x.jsonl.zst": {}}}
        (tmp_path / "stages/mix/parts/write").mkdir(parents=True)
        (tmp_path / "stages/mix/parts/write/x.json").write_text(json.dumps(record))
    for asked in ("a", "a#copy3"):
        text = told(capsys, find.main, asked, tmp_path)
        assert re.findall(r"^  '(.*?)', a document", text, re.M) == ids[:3]
