"""The verbs as a user runs them, from raw lines to a release: every document is found in it, wherever it went."""

import os
from pathlib import Path

import pytest

from data_tools.dedupe import command as dedupe
from data_tools.ingest import command as ingest
from data_tools.inspect import find, stat, verify
from data_tools.inspect.lineage import lineage
from data_tools.mix import command as mix
from data_tools.publish import command
from tests.data_tools.inspect.pipeline import raw_documents
from tests.data_tools.publish.releases import said
from tests.data_tools.texts import tokenize, write_lines


def test_a_release_of_real_stages(tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, documents in raw_documents().items():
        write_lines(Path("raw") / name, documents)
    sources = "web: {kind: jsonl, paths: [raw/web.jsonl], license: odc-by}, books: {kind: jsonl, paths: [raw/books.jsonl]}"
    ingest.main(["output=base", f"sources={{{sources}}}", "processes=1"])
    dedupe.main(["documents=[base]", "name=exact", "by=document", "processes=1"])
    rules = "drop: {short: 'length() < 10', double: 'max_score(exact__document__duplicate) > 0'}"
    mix.main(["output=mixed", f"sources={{all: {{documents: [base], attributes: [exact], {rules}}}}}", "processes=1"])
    tokenize(Path("mixed"), tokenizer, Path("shards"), "heldout_frac=0", "processes=1")
    assert [root.path.name for root in lineage("shards")] == ["base", "mixed", "shards"]
    verify.main(["shards"])
    command.main(["folders=[base,mixed,shards]", "name=x", "target=release", "licenses={books: mit}"])
    monkeypatch.chdir("/")
    release = tmp_path / "release"
    assert said(capsys, verify.main, release).endswith("(sizes, records of the stages, every byte)\n")
    assert not [p for p in release.rglob("*.json") if os.fspath(tmp_path) in p.read_text()]
    assert "| `base` | web | odc-by | 30 |" in (release / "README.md").read_text()
    text = said(capsys, find.main, "w3", release / "shards")
    assert text.count("a document of source 'web'") == 2
    assert "mixed/documents/" in text[text.index("in shards, source 'web'") :]
    text = said(capsys, find.main, "w9", release / "shards")
    assert "dedupe-exact: duplicates (" in text
    assert '"id":"w3"' in text
    assert "    reason: double\n" in text
    assert "    reason: short\n    rule: length() < 10\n" in said(capsys, find.main, "w7", release / "mixed")
    text = said(capsys, stat.main, release / "shards")
    assert "40 documents in, " in text
    assert "dropped 2 (double 1, short 1)" in text
