"""Documents that go on are those that a brute-force pass keeps, whatever the number of processes; all others are told."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.files import LineWriter
from data_tools.id_index import find_lines
from data_tools.mix import plan
from data_tools.mix.command import main, mix
from olmo_train.errors import ShardError
from tests.data_tools.mix.corpus import Values, config_of, contents, documents_of, read, records_of, run, write_dataset
from tests.data_tools.texts import text, write_lines

REDACT = {
    "email": {"spans": "pii__EMAIL", "replacement": "|||E|||", "min_score": 0.5},
    "toxic": {"spans": "model__toxic", "replacement": "", "min_score": 0.4, "max_score": 0.9},
}
RULES: Values = {
    "drop": {"short": "gopher__words < 4", "pii": "count(pii__EMAIL) > 3 or total(model__toxic) > 2.5"},
    "keep": {"english": 'language__en >= 0.3 and metadata("lang", "en") in ["en", "x"]'},
    "redact": REDACT,
    "min_text_length": 40,
}


def random_spans(rng: random.Random, length: int, n: int) -> list[list[float]]:
    found = []
    for _ in range(n):
        start = rng.randrange(length + 1)
        found.append([start, min(length, start + rng.randrange(6)), round(rng.random(), 2)])
    return found


def random_dataset(folder: Path, n_files: int = 5, seed: int = 0) -> Path:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    files: dict[str, list[Values]] = {}
    gopher: dict[str, list[Values]] = {}
    models: dict[str, list[Values]] = {}
    for f in range(n_files):
        name = f"{'ab'[f % 2]}/{f}.jsonl{['', '.gz', '.zst'][f % 3]}"
        files[name], gopher[name], models[name] = [], [], []
        for i in range(60 if f != 3 else 0):
            words = text(numbers, rng.randrange(0, 30))
            document: Values = {"id": f"{f}:{i}é", "text": words, "source": f"s{f % 2}", "n": 1.50, "added": "2024"}
            if i % 3:
                document["metadata"] = {"lang": rng.choice(["en", "de", None, "x"]), "big": 123456789012345678901234567890}
            files[name].append(document)
            size = len(words)
            gopher[name].append(
                {"r__gopher__words": [[0, size, len(words.split())]], "r__language__en": [[0, size, rng.random()]]}
            )
            models[name].append({"m__pii__EMAIL": random_spans(rng, size, rng.randrange(5))})
            if i % 4:
                models[name][-1]["m__model__toxic"] = random_spans(rng, size, rng.randrange(4))
    for name in files:
        write_as(folder / "documents" / name, files[name])
        for experiment, rows in (("r", gopher[name]), ("m", models[name])):
            ids = [document["id"] for document in files[name]]
            write_as(
                folder / "attributes" / experiment / name, [{"id": i, "attributes": r} for i, r in zip(ids, rows, strict=True)]
            )
    return folder


def write_as(path: Path, rows: list[Values]) -> None:
    with LineWriter(path) as writer:
        for row in rows:
            writer.write(json.dumps(row).encode())


def naive(dataset: Path) -> tuple[dict[str, Values], dict[str, str]]:
    """Documents by id, and the reason of each that is dropped: character by character, one after the other."""
    kept, dropped = {}, {}
    for path in sorted((dataset / "documents").rglob("*.jsonl*")):
        name = path.relative_to(dataset / "documents")
        rows = [read([dataset / "attributes" / folder / name]) for folder in ("r", "m")]
        for document, *found in zip(read([path]), *rows, strict=True):
            spans: dict[str, Any] = {k: v for row in found for k, v in row["attributes"].items()}
            toxic = spans.get("m__model__toxic", [])
            metadata = document.get("metadata", {})
            if spans["r__gopher__words"][0][2] < 4:
                dropped[document["id"]] = "short"
            elif len(spans["m__pii__EMAIL"]) > 3 or sum(s[2] for s in toxic) > 2.5:
                dropped[document["id"]] = "pii"
            elif spans["r__language__en"][0][2] < 0.3 or (metadata.get("lang") or "en") not in ("en", "x"):
                dropped[document["id"]] = "english"
            else:
                email = [(s[0], -s[1], 0) for s in spans["m__pii__EMAIL"] if s[2] >= 0.5]
                cuts = sorted(email + [(s[0], -s[1], 1) for s in toxic if 0.4 <= s[2] <= 0.9])
                words, at, end = "", 0, 0
                counts: dict[str, int] = {}
                for start, less, which in cuts:
                    if -less == start:
                        continue
                    if start >= end:
                        words += document["text"][at:start] + ["|||E|||", ""][which]
                        counts[["email", "toxic"][which]] = counts.get(["email", "toxic"][which], 0) + 1
                    at = end = max(end, -less)
                words += document["text"][at:]
                if len(words) < 40:
                    dropped[document["id"]] = "min_text_length"
                    continue
                if counts:
                    document |= {"text": words, "metadata": {**metadata, "redacted": counts}}
                kept[document["id"]] = document
    return kept, dropped


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_dataset(tmp_path_factory.mktemp("mix") / "web")


def source_of(dataset: Path, **values: Any) -> Values:
    return {"documents": [str(dataset)], "attributes": ["r", "m"], **RULES, **values}


def test_what_goes_on_is_what_a_brute_force_pass_keeps(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "PART_BYTES", 20_000)
    summary = run(tmp_path / "one", {"web": source_of(dataset)}, max_file_mb=1)
    kept, dropped = naive(dataset)
    assert len(kept) > 30
    assert set(dropped.values()) == {"short", "pii", "english", "min_text_length"}
    written = documents_of(tmp_path / "one")
    assert {document["id"]: document for document in written} == kept
    assert len(written) == len(kept)
    told = records_of(tmp_path / "one", "dropped")
    assert {line["id"]: line["reason"] for line in told} == dropped
    assert len(told) == len(dropped)
    first = next(line for line in told if line["reason"] == "pii")
    assert first["rule"] == RULES["drop"]["pii"]
    assert set(first["values"]) == {"count(pii__EMAIL)", "total(model__toxic)"}
    assert read([Path(first["path"])])[first["line"] - 1]["id"] == first["id"]
    steps = summary["totals"]["steps"]["web"]
    left = len(kept) + len(dropped)
    for step in ("read", "short", "pii", "english", "redacted", "min_text_length", "written"):
        left -= sum(reason == step for reason in dropped.values())
        assert steps[step]["documents"] == left
    assert steps["written"]["text_bytes"] == sum(len(document["text"].encode()) for document in kept.values())
    assert (
        summary["totals"]["redacted"]["web"]["documents"] >= sum("redacted" in d.get("metadata", {}) for d in kept.values()) > 5
    )
    for line in records_of(tmp_path / "one", "redactions"):
        assert line["cuts"]
        assert not {"text", "removed"} & set(line)
    mix(config_of(tmp_path / "two", {"web": source_of(dataset)}, max_file_mb=1, processes=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    mix(config_of(tmp_path / "one", {"web": source_of(dataset)}, max_file_mb=1))
    assert capsys.readouterr().out.endswith("one is finished; nothing was done\n")


def test_what_does_not_change_is_written_byte_for_byte_and_ids_are_found(tmp_path: Path) -> None:
    odd = b'{ "text" : "\\u0061\\/b" ,"x":1.500e3, "id":"q","source" : "s", "big":123456789012345678901234567890, "metadata":{"k" :0} }'
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.jsonl").write_bytes(b"\n".join([odd, b'{"id": "r", "text": "", "source": "s"}', b""]))
    for compression in ("zst", "gz", "none"):
        output = tmp_path / compression
        run(output, {"w": {"documents": [str(tmp_path / "in")]}}, compression=compression)
        (path,) = (output / "documents/w").iterdir()
        assert path.name == "00000-000.jsonl" + {"zst": ".zst", "gz": ".gz", "none": ""}[compression]
        assert find_lines(output / f"stages/mix/ids/w/{path.name}.idx", "r") == [2]
    assert path.read_bytes().split(b"\n")[0] == odd
    renamed = tmp_path / "renamed"
    run(renamed, {"w": {"documents": [str(tmp_path / "in")], "rename": "new/name"}}, compression="none")
    assert (renamed / "documents/w/00000-000.jsonl").read_bytes().split(b"\n")[0] == (
        b'{"text":"\\u0061\\/b","x":1.500e3,"id":"q","source":"new/name","big":123456789012345678901234567890,"metadata":{"k" :0}}'
    )


def test_files_are_bounded_and_small_ones_are_joined(tmp_path: Path) -> None:
    for i in range(4):
        write_lines(tmp_path / f"in/{i}.jsonl", [{"id": f"{i}:{j}", "text": "x" * 299_000, "source": "s"} for j in range(2)])
    run(tmp_path / "out", {"w": {"documents": [str(tmp_path / "in")]}}, max_file_mb=1, compression="none")
    files = sorted((tmp_path / "out/documents/w").iterdir())
    assert [(path.name, len(read([path]))) for path in files] == [
        ("00000-000.jsonl", 3), ("00000-001.jsonl", 3), ("00000-002.jsonl", 2),
    ]  # fmt: skip


def test_a_killed_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    source = source_of(dataset, repeat=1.5, max_documents=60)
    run(tmp_path / "whole", {"web": source})
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"output": str(tmp_path / "killed"), "sources": {"web": source}, "processes": 2}))
    process = subprocess.Popen([sys.executable, "-m", "data_tools.mix.command", f"config={config}"], stdout=subprocess.PIPE)
    parts = tmp_path / "killed/stages/mix/parts"
    deadline = time.monotonic() + 30
    while not list(parts.glob("count/*.claim")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    main([f"config={config}"])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


# ---- what is wrong with documents and attributes ---------------------------------------------------------------------------------


def small(tmp_path: Path, rows: list[Values], texts: list[str] | None = None) -> Values:
    documents = [{"id": f"d{i}", "text": t, "source": "s"} for i, t in enumerate(texts or ["some text"] * len(rows))]
    write_dataset(tmp_path / "in", {"a.jsonl": documents}, {"x": {"a.jsonl": rows}})
    return {"documents": [str(tmp_path / "in")], "attributes": ["x"], "drop": {"bad": "tag__bad > 0"}}


GOOD = [{"x__tag__bad": [[0, 1, i % 2]]} for i in range(4)]


def test_attributes_that_do_not_fit_their_documents_are_errors(tmp_path: Path) -> None:
    source = small(tmp_path, GOOD)
    path, documents = tmp_path / "in/attributes/x/a.jsonl", tmp_path / "in/documents/a.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    cases = {
        "swapped": ([whole[0], whole[2], whole[1], whole[3]], (f"{path}: line 2 has id 'd2', but {documents}: line 2 has id 'd1'; "
                    "attributes belong to documents line by line: write them again")),
        "short": (whole[:3], f"{path}: ends after 3 lines, before {documents}: line 4, id 'd3'; write the attributes again"),
        "long": ([*whole, whole[3]], (f"{path}: has 1 lines more than its documents, from line 5 on; the documents have changed since: "
                 "write the attributes again")),
        "broken": ([*whole[:2], "{\n", whole[3]], f"{path}: line 3 is no line of attributes: Input data was truncated; write them again"),
        "strange": ([*whole[:2], whole[2].replace("[[0, 1, 0]]", "[[0, 1]]"), whole[3]], (f"{path}: line 3 is no line of attributes: "
                    "Expected `array` of length 3 - at `$.attributes.x__tag__bad[0]`; write them again")),
    }  # fmt: skip
    for name, (rows, message) in cases.items():
        path.write_text("".join(rows))
        with pytest.raises(ShardError) as caught:
            run(tmp_path / name, {"w": source})
        assert str(caught.value) == message
        assert not list((tmp_path / name).glob("documents/*/*"))


@pytest.mark.parametrize("has_rows", [False, True])
def test_lines_that_are_no_documents_may_have_attributes_or_not(tmp_path: Path, has_rows: bool) -> None:
    source = small(tmp_path, GOOD)
    documents = tmp_path / "in/documents/a.jsonl"
    rows = documents.read_text().splitlines(keepends=True)
    documents.write_text("".join([rows[0], '{"id": "n", "text": 5, "source": "s"}\n', "junk\n", *rows[1:], '{"id": "e"}\n']))
    if has_rows:
        path = tmp_path / "in/attributes/x/a.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        more = '{"id": "n", "attributes": {}}\n'
        path.write_text("".join([lines[0], more, more, *lines[1:], more]))
    summary = run(tmp_path / "out", {"w": source}, max_rejected_frac=0.5)
    assert [document["id"] for document in documents_of(tmp_path / "out")] == ["d0", "d2"]
    assert (summary["lines"], summary["rejected"]) == (7, {"wrong_type": 1, "not_json": 1, "missing_field": 1})
    with pytest.raises(ShardError, match=r"^mix: 3 of 7 lines are no documents"):
        run(tmp_path / "strict", {"w": source})


def test_a_span_that_is_not_in_its_text_sends_the_document_to_quarantine(tmp_path: Path) -> None:
    texts = ["nine char", "é" * 9, "nine char", "fine text", "x", "metadata!"]
    spans = [[[0, 10, 1]], [[0, 18, 1]], [[-1, 2, 1]], [[5, 9, 1]], [[3, 2, 1]], [[0, 3, 1]]]
    source = small(tmp_path, [{"x__tag__bad": [], "x__pii__p": each} for each in spans], texts)
    lines = (tmp_path / "in/documents/a.jsonl").read_text().splitlines()
    lines[5] = lines[5].replace("{", '{"metadata": "text", ', 1)
    (tmp_path / "in/documents/a.jsonl").write_text("\n".join(lines))
    source["redact"] = {"p": {"spans": "pii__p", "replacement": "#"}}
    summary = run(tmp_path / "out", {"w": source}, max_rejected_frac=0.9)
    assert [document["text"] for document in documents_of(tmp_path / "out")] == ["fine #"]
    told = records_of(tmp_path / "out", "quarantine")
    assert [(line["line"], line["reason"]) for line in told] == [(i, "wrong_type") for i in (1, 2, 3, 5, 6)]
    ends = "of rule p ends after the text, which has 9 characters; offsets are Unicode characters: write the attributes again"
    assert [line["detail"] for line in told] == [
        f"the span [0, 10] {ends}", f"the span [0, 18] {ends}", "pii__p has the span [-1, 2], which is none; write the attributes again",
        "pii__p has the span [3, 2], which is none; write the attributes again",
        "metadata is not an object, and so cannot say what was changed in the document; mend it",
    ]  # fmt: skip
    assert (summary["lines"], summary["rejected"]) == (6, {"wrong_type": 5})


def test_a_rule_that_cannot_be_worked_out_sends_the_document_to_quarantine(tmp_path: Path) -> None:
    source = small(tmp_path, [{"x__tag__bad": [[0, 1, i]]} for i in range(3)])
    source["drop"] = {"ratio": "1 / tag__bad > 0.8"}
    run(tmp_path / "out", {"w": source}, max_rejected_frac=0.5)
    assert [document["id"] for document in documents_of(tmp_path / "out")] == ["d2"]
    (told,) = records_of(tmp_path / "out", "quarantine")
    assert told["detail"].startswith("rule ratio `1 / tag__bad > 0.8` cannot be worked out for it: ")


def test_a_damaged_file_may_have_more_attributes_than_documents(tmp_path: Path) -> None:
    source = small(tmp_path, GOOD)
    path = tmp_path / "in/documents/a.jsonl"
    path.rename(path.with_suffix(".jsonl.gz"))
    (tmp_path / "in/attributes/x/a.jsonl").rename(tmp_path / "in/attributes/x/a.jsonl.gz")
    for each in (tmp_path / "in").rglob("*.gz"):
        packed = gzip.compress(each.read_bytes())
        each.write_bytes(packed if "attributes" in each.parts else packed[:-4])
    with pytest.raises(ShardError, match=r"^mix: 1 damaged files, max_damaged_files=0"):
        run(tmp_path / "out", {"w": source})
    run(tmp_path / "out", {"w": source}, max_damaged_files=1, max_rejected_frac=0.5)
    assert {document["id"] for document in documents_of(tmp_path / "out")} <= {"d0", "d2"}


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "in/documents/a.jsonl", [])
    write_lines(tmp_path / "in/documents/b.jsonl", [])
    summary = run(tmp_path / "out", {"w": {"documents": [str(tmp_path / "in")], "max_documents": 5}})
    assert summary["totals"]["documents_out"] == 0
    assert not list((tmp_path / "out").glob("documents/*/*"))
