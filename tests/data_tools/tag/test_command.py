"""`olmo data tag`: attributes in files of the same names, a line for each document, whoever shares the work."""

import json
from pathlib import Path

import pytest

from data_tools.datasets import read_attributes
from data_tools.documents import LONG, encode_document
from data_tools.files import LineWriter
from data_tools.tag import command
from data_tools.tag.gopher import gopher_scores
from data_tools.tag.scanner import Needs, Scanner
from tests.data_tools.tag import naive
from tests.data_tools.texts import refusal, write_lines


def write_dataset(folder: Path, size: int = LONG) -> Path:
    """Two files of hostile documents, one of them of this size, and a line that is no document."""
    texts = list(naive.texts(20, 11))
    long = "\x01\x01 a b.\n" * (size // 19 + 1) + "lorem ipsum {"  # 19 bytes of JSON a line
    with LineWriter(folder / "documents/web/a.jsonl.gz") as writer:
        for i, text in enumerate([*texts[:40], long]):
            values = {"id": f"a{i}", "text": text, "source": "web", "metadata": {"max_stars_count": i}}
            writer.write(encode_document(values) if text else json.dumps(values).encode())
        writer.write(b'{"id": 1}')
    rest = [{"id": f"b{i}", "text": text, "source": "code"} for i, text in enumerate(texts[40:])]
    write_lines(folder / "documents/b.jsonl", rest)
    return folder


def words_of(folder: Path, tokenizer: Path, *more: str) -> list[str]:
    taggers = "taggers=[gopher,c4,fineweb,length,code_words,repetition]"
    return [f"documents=[{folder}]", "name=rules_1", taggers, f"tokenizer={tokenizer}", "max_rejected_frac=0.1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("summary.json", "stage.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if "parts" not in path.parts}


def test_attributes_lie_beside_the_documents_line_for_line(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dataset(tmp_path / "set")
    command.main(words_of(folder, tokenizer, "processes=1"))
    printed = capsys.readouterr().out
    stage = folder / "stages/attributes-rules_1"
    known = json.loads((stage / "stage.json").read_text())["settings"]["attributes"]
    summary = json.loads((stage / "summary.json").read_text())
    rows = {name: list(read_attributes(folder / "attributes/rules_1" / name)) for name in ("web/a.jsonl.gz", "b.jsonl")}
    assert [row[0] for row in rows["web/a.jsonl.gz"]] == [f"a{i}" for i in range(41)]  # the rejected line has none
    assert summary["rejected"] == {"wrong_type": 1}
    seen = {name for lines in rows.values() for _, attributes in lines for name in attributes}
    assert seen <= set(known)
    assert len(known) == len(set(known)) == 23 - 1 + 11 + 4 + 5 + 3 + 4
    texts = [json.loads(line)["text"] for line in (folder / "documents/b.jsonl").read_text().splitlines()]
    scanner = Scanner(Needs(10, True, True))
    for text, (_, attributes) in zip(texts, rows["b.jsonl"], strict=True):
        scores = gopher_scores(scanner.scan(naive.line_of(text)))
        assert {name: spans for name, spans in attributes.items() if "__gopher__" in name} == {
            f"rules_1__gopher__{name}": spans for name, spans in scores.items()
        }
        assert attributes["rules_1__length__characters"] == [[0, len(text), len(text)]]
    long = rows["web/a.jsonl.gz"][-1][1]
    assert long["rules_1__c4__has_lorem_ipsum"] == [[0, (LONG // 19 + 1) * 8 + 13, 1.0]]
    assert long["rules_1__repetition__repetition"][0][2] > 1000
    assert long["rules_1__code_words__stars"][0][2] == 40
    assert summary["totals"]["by_source"]["code"]["documents"] == len(texts)
    tokens = sum(line["rules_1__length__tokens"][0][2] for _, line in rows["b.jsonl"])
    assert summary["totals"]["by_source"]["code"]["tokens"] == tokens
    assert f"  code: {len(texts):,} documents, " in printed

    command.main(words_of(folder, tokenizer, "processes=1"))
    assert capsys.readouterr().out == f"{stage}: finished before; remove it to tag again\n{printed}"


def test_any_number_of_processes_writes_the_same(tmp_path: Path, tokenizer: Path) -> None:
    one, two = write_dataset(tmp_path / "one", 0), write_dataset(tmp_path / "two", 0)
    command.main([f"documents=[{one}]", "name=x", "taggers=[gopher,c4]", "max_rejected_frac=0.1", "processes=1"])
    command.main([f"documents=[{two}]", "name=x", "taggers=[gopher,c4]", "max_rejected_frac=0.1", "processes=2", "memory_mb=100"])
    first, second = contents(one / "attributes"), contents(two / "attributes")
    assert first == second
    assert len(first) == 2


def test_every_problem_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "documents=[]",
        "name=a__b",
        "taggers=[gofer,c4,c4,repetition,zzz]",
        "repetition.max_period=0",
        "repetition.span_repeats=2",
    ]
    message = refusal(command.main, [*words, f"c4.naughty_words={tmp_path}/none"], capsys)
    for line in (
        "documents is empty; give files, folders or globs of Dolma documents",
        "name='a__b' cannot be the first part of attributes' names; it takes letters, digits, `.`, `-` and single `_`",
        "taggers: 'gofer' is no tagger; did you mean gopher?",
        f"taggers: 'zzz' is no tagger; there are {', '.join(command.TAGGERS)}",
        "taggers: c4 is named twice",
        "tokenizer=null: taggers=[repetition] counts tokens; give the model's tokenizer.json",
        "repetition.max_period=0 must be positive",
        "repetition.span_repeats=2 must be at least 3; twice is no repetition",
        f"c4.naughty_words={tmp_path}/none is no file",
    ):
        assert line in message
    assert "taggers is empty; give some of gopher, c4, " in refusal(command.main, [f"documents=[{tmp_path}]", "name=x"], capsys)


def test_without_numba_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.tag_problems(command.TagConfig(documents=["x"], name="x", taggers=["length"])) == [
        "taggers need numba; pip install 'olmo-train[data]'"
    ]
