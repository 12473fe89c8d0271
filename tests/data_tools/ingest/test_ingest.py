"""The stage as a whole: one output whatever does it, problems told at once, memory bounded, nothing lost between in and out."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.documents import find_files, read_documents
from data_tools.ingest import command
from data_tools.ingest.candidate import text_pieces
from data_tools.ingest.config import Newlines, Unicode
from data_tools.ingest.records import split
from olmo_train.errors import ConfigError, ShardError
from tests.data_tools.ingest.ingested import contents, documents, lines_of, put, run
from tests.data_tools.ingest.test_pages import GOOD
from tests.data_tools.texts import make_documents, refusal


def mixed(folder: Path) -> dict[str, dict[str, Any]]:
    """A source of each kind that reads files, some of it bad."""
    for i in range(3):
        values: list[Any] = [d | {"n": i} for d in make_documents(300, seed=i)]
        lines_of(folder / "jsonl" / f"{i}.jsonl", [*values, {"id": 1.5}, {"id": "empty", "text": " "}])
        put(folder / "text" / f"{i}.txt", "x" * 1000 * i)
        put(folder / "tree" / f"{i}.py", f"x = {i}")
        put(folder / "web" / f"{i}.warc", b"".join(GOOD))
    pq.write_table(pa.Table.from_pylist(make_documents(100)), put(folder / "table/a.parquet", b""), row_group_size=50)
    kinds = {"jsonl": "jsonl", "text": "text", "tree": "tree", "web": "warc", "table": "parquet"}
    return {name: {"kind": kind, "paths": [str(folder / name)]} for name, kind in kinds.items()}


def test_any_number_of_processes_writes_the_same_and_everything_is_accounted_for(tmp_path: Path) -> None:
    sources = mixed(tmp_path / "in")
    one = run(tmp_path / "one", sources, part_mb=1)
    two = run(tmp_path / "two", sources, part_mb=1, processes=2)
    assert one == two
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    rejected = sum(sum(row["rejected"].values()) for row in one["inputs"].values())
    assert one["documents_in"] == one["documents_out"] + sum(one["dropped"].values()) + rejected == 3 * 302 + 3 + 3 + 12 + 100
    texts = [d["text"] for d in (*make_documents(100), *(d for i in range(3) for d in make_documents(300, seed=i)))]
    assert (rejected, one["dropped"]) == (3, {"empty": 4 + sum(not text.strip() for text in texts)})
    assert one["documents_out"] == sum(len(list(read_documents(path))) for path in find_files([str(tmp_path / "one")]))
    assert one["by_source"]["table"]["documents"] > 90


def test_the_command_takes_one_or_many_sources_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(tmp_path / "a.jsonl", [{"id": 1, "text": "x" * 500_000}, {"id": 2, "text": ""}, {"id": 3}])
    argv = [
        f"output={tmp_path / 'out'}",
        "sources.s.kind=jsonl",
        f"sources.s.paths=[{tmp_path / 'a.jsonl'}]",
        "max_rejected_frac=0.5",
    ]
    command.main(argv)
    table = (
        "source                         in          out      MB in     MB out  left out\n"
        "s                               3            1        0.5        0.5  empty 1, missing_field 1\n"
        "all                             3            1        0.5        0.5\n"
    )
    assert capsys.readouterr().out == table
    command.main([f"output={tmp_path / 'out'}", f"sources={{s: {{kind: jsonl, paths: [{tmp_path / 'a.jsonl'}]}}}}"])
    assert capsys.readouterr().out == f"{tmp_path / 'out/stages/ingest'}: finished before; nothing was done\n{table}"


def test_too_much_that_is_no_document_fails(tmp_path: Path) -> None:
    lines_of(tmp_path / "a.jsonl", [{"id": 1, "text": "x"}, {"id": 2}])
    sources = {"s": {"kind": "jsonl", "paths": [str(tmp_path / "a.jsonl")]}}
    with pytest.raises(
        ShardError, match=r"ingest: 1 of 2 lines are no documents \(missing_field 1\), more than max_rejected_frac=0.1"
    ):
        run(tmp_path / "out", sources, max_rejected_frac=0.1)
    assert run(tmp_path / "out", sources)["documents_out"] == 1  # the same command goes on with a higher limit


def test_all_problems_of_the_config_are_told_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = (
        "sources={../a: {kind: text, paths: [x], per: separator}, b: {kind: jsonl, dataset: d, per: line}, c/d: {kind: huggingface}, "
        "c__d: {kind: html, paths: [x], extractor: trafilatura, encodings: [klingon, rot13], max_page_mb: 0, extract_cpu_s: 0}, "
        "e: {kind: jsonl, paths: [x], fields: {id: text}}}"
    )
    message = refusal(command.main, [sources, f"output={tmp_path}/o", "part_mb=0", "max_document_mb=200", "processes=0"], capsys)
    told = [re.sub(r"^\d+\. ", "", line.strip()) for line in message.split("\n")[1:]]
    if "trafilatura" in message:
        told.remove("sources.c__d.extractor=trafilatura needs trafilatura, which is not installed; pip install trafilatura")
    assert told == [
        "processes=0 must be positive; null takes one per core",
        "part_mb=0 must be positive",
        "max_document_mb=200 is more than half of memory_mb=300; raise it or lower this",
        "sources: ../a, b, c/d, c__d, e: two differ by / and __ alone; rename one",
        "sources.../a: cannot name a folder; it takes words that start with a letter or digit, with slashes between",
        "sources.../a.per=separator with separator=None: only per=separator takes one",
        "sources.b.kind=jsonl takes paths: files, folders or globs, no dataset",
        "sources.b.per=line is of kind=text only; this is kind=jsonl",
        "sources.c/d.kind=huggingface takes dataset (and split), no paths",
        "sources.c__d.encodings: klingon is no encoding that Python knows; give names as latin-1 or cp1252",
        "sources.c__d.encodings: rot13 is no encoding that Python knows; give names as latin-1 or cp1252",
        "sources.c__d.max_page_mb=0 must be positive",
        "sources.c__d.extract_cpu_s=0 must be positive",
        "sources.e.fields: text is given twice; each of id, text, added, created takes a field of its own",
    ]
    large = f"sources={{p: {{kind: html, paths: [{tmp_path}], max_page_mb: 6}}}}"
    assert refusal(command.main, [f"output={tmp_path}/o", large], capsys) == (
        "sources.p.max_page_mb=6: a page takes up to 60 times its size, more than memory_mb=300; give at most 5, or raise memory_mb"
    )
    assert refusal(command.main, [f"output={tmp_path}/o"], capsys) == (
        "sources is empty; give sources={web: {kind: warc, paths: [a/*.warc.gz]}}"
    )


def test_files_of_one_name_and_folders_without_input_are_refused(tmp_path: Path) -> None:
    for name in ("a/x.txt", "b/x.txt", "c/y.png"):
        put(tmp_path / name, "x")
    with pytest.raises(ConfigError) as caught:
        run(
            tmp_path / "out",
            {
                "s": {"kind": "text", "paths": [f"{tmp_path}/a", f"{tmp_path}/b"]},
                "t": {"kind": "text", "paths": [f"{tmp_path}/c"]},
                "u": {"kind": "text", "paths": [f"{tmp_path}/a", f"{tmp_path}/*/x.txt"]},
            },
        )
    assert caught.value.problems == [
        (
            f"sources.s.paths: {tmp_path}/a/x.txt and {tmp_path}/b/x.txt are both called x.txt, and ids are made from names; give "
            "the folder above both, or a source for each"
        ),
        f"sources.t.paths: ['{tmp_path}/c'] hold no input (skipped: 1 other ending); name files, or give include",
        f"sources.u.paths: {tmp_path}/a/x.txt is found twice, as a/x.txt and as x.txt, and ids are made from names; name it once",
    ]
    run(
        tmp_path / "out",
        {"s": {"kind": "text", "paths": [f"{tmp_path}/a", f"{tmp_path}/a/x.txt", f"{tmp_path}/a/*"]}},
    )
    assert len(documents(tmp_path / "out")) == 1


def test_records_are_those_of_split_however_the_blocks_are_cut() -> None:
    for separator in (b"\n", b"ab", b"aba", b"--\n"):
        data = b"xabay\n--\nabab--\n\naba--\nlast" * 3
        wanted, offset = [], 0
        for part in data.split(separator):
            wanted.append((offset, part))
            offset += len(part) + len(separator)
        for size in (1, 2, 3, 5, 100):
            blocks = [data[i : i + size] for i in range(0, len(data), size)]
            found = list(split(blocks, separator))
            assert [(r.offset, bytes(r.data)) for r in found] == wanted
            short = list(split(blocks, separator, limit=4))
            assert [(r.offset, bytes(r.data), r.size) for r in short] == [(at, part[:4], len(part)) for at, part in wanted]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_normalisation_is_the_same_in_pieces(size: int) -> None:
    text = "a\r\nb\r\r\ne\u0301 e\u0301\u0323x\u1100\u1161 \u212b\n\u0301\r"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for newlines, unicode in ((Newlines.LF, Unicode.NONE), (Newlines.KEEP, Unicode.NFC), (Newlines.LF, Unicode.NFC)):
        whole = "".join(text_pieces(text, newlines, unicode))
        assert "".join(text_pieces(lambda: iter(pieces), newlines, unicode)) == whole
        assert ("\r" in whole, "\u00e9" in whole) == (newlines == Newlines.KEEP, unicode == Unicode.NFC)


MEASURE = """
import json, re, sys
from pathlib import Path
from tests.data_tools.ingest.ingested import run
sources = json.loads(sys.argv[2])
def most():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
warm = {"w": {"kind": "text", "paths": [str(Path(sys.argv[1]) / "warm.txt")]}}
run(Path(sys.argv[1]) / "warm", warm)
before = most()
totals = run(Path(sys.argv[1]) / "out", sources)
print(json.dumps([totals["text_bytes_out"], most() - before]))
"""


@pytest.mark.parametrize(("kind", "bound"), [("text", 25), ("jsonl", 60)])
def test_a_long_document_is_ingested_in_bounded_memory(tmp_path: Path, kind: str, bound: int) -> None:
    size = 40 * 2**20
    put(tmp_path / "warm.txt", "x")
    with open(tmp_path / f"a.{'txt' if kind == 'text' else 'jsonl'}", "wb") as file:
        file.write(b'{"id": 1, "text": "' if kind == "jsonl" else b"")
        for _ in range(40):
            file.write(b"0123456789abcde " * 2**16)
        file.write(b'"}\n' if kind == "jsonl" else b"")
    sources = {"s": {"kind": kind, "paths": [file.name]}}
    argv = [sys.executable, "-c", MEASURE, str(tmp_path), json.dumps(sources)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    written, grown = json.loads(done.stdout)
    assert written == size
    assert grown < bound, f"{grown} MB for a document of 40 MB"


def test_a_stage_that_was_killed_goes_on_and_leaves_the_same(tmp_path: Path) -> None:
    for i in range(8):
        lines_of(tmp_path / f"in/{i}.jsonl", [{"id": f"{i} {n}", "text": f"text {n} " * 2000} for n in range(60)])
    values = f"sources={{s: {{kind: jsonl, paths: [{tmp_path / 'in'}]}}}}"
    argv = [sys.executable, "-m", "data_tools.ingest.command", values, "part_mb=1", "processes=1"]
    for kills in range(9):
        process = subprocess.Popen([*argv, f"output={tmp_path / 'out'}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("out/stages/ingest/parts/read/*.json"))) <= 4 * kills:
            time.sleep(0.002)
        process.kill()
        if process.wait() == 0:
            break
    assert kills > 0
    run(tmp_path / "whole", {"s": {"kind": "jsonl", "paths": [str(tmp_path / "in")]}}, part_mb=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(documents(tmp_path / "out")) == 480
