"""What a release holds: data as they are, records without a path of this machine, a card."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from data_tools import write_manifest
from data_tools.datasets import find_document_files
from data_tools.inspect import find, verify
from data_tools.inspect.lineage import lineage
from data_tools.publish import command
from data_tools.publish.manifest import NAME, read_release
from data_tools.publish.private_paths import Names
from olmo_train.errors import ShardError
from tests.data_tools.inspect.pipeline import Made
from tests.data_tools.publish.releases import WORDS, files_of, said
from tests.data_tools.texts import refusal, write_lines

# ---- what is in it -----------------------------------------------------------------------------------------------------------


def test_nothing_of_this_machine_is_in_a_release(release: Path, made: Made) -> None:
    from data_tools.files import InputFile, blocks

    for path in release.rglob("*"):
        if path.is_file():
            data = b"".join(blocks(path, InputFile(path)))
            for private in (str(made.folder), str(made.folder.parent), str(Path.home()), "private/model"):
                assert private.encode() not in data, (path, private)
    settings = json.loads((release / "mixed/stages/mix/stage.json").read_text())["settings"]
    assert settings == {"keep": "length >= 10", "model": "model.bin"}
    plan = json.loads((release / "base/stages/ingest/stage.json").read_text())
    assert sorted(plan["inputs"]) == ["origin/books.jsonl", "origin/web.jsonl"]


def test_data_are_as_they_were_and_records_lead_through_the_release(release: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for name in ("documents", "attributes"):
        assert files_of(release / "base" / name) == files_of(made.base / name)
    moved = shutil.copytree(release, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert [root.path.name for root in lineage("moved/shards")] == ["base", "mixed", "shards"]
    assert said(capsys, verify.main, "moved").endswith(f"as {NAME} says (sizes, records of the stages, every byte)\n")
    told = r"moved/mixed: \d+ files as its stages wrote them \(every byte\); 6 were read as they were written\n"
    assert re.fullmatch(told, said(capsys, verify.main, "moved/mixed"))
    text = said(capsys, find.main, "b4", "moved/shards")
    assert f"{moved}/base:" in text
    assert "mixed/documents/books.jsonl.zst line 5" in text
    assert "reason: rules__length__characters < 10" in said(capsys, find.main, "w7", "moved/mixed")
    found = refusal(verify.main, [str(tmp_path)], capsys)
    assert found.startswith(f"{tmp_path}/manifest.json does not exist")


def test_the_card_says_what_it_is_and_hubs_can_read_its_head(release: Path) -> None:
    _, head, text = (release / "README.md").read_text().split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["license"] == ["cc0-1.0", "odc-by"]
    assert values["size_categories"] == ["n<1K"]
    assert {c["config_name"]: c["data_files"] for c in values["configs"]} == {
        "base-books": ["base/documents/books.jsonl.zst"], "base-web": ["base/documents/web.jsonl.zst"],
        "mixed-books": ["mixed/documents/books.jsonl.zst"], "mixed-web": ["mixed/documents/web.jsonl.zst"],
    }  # fmt: skip
    assert "| `base` | web | odc-by | 30 |" in text
    assert "dropped: rules\\_\\_length\\_\\_characters \\< 10 1" in text
    assert "rejected: wrong\\_type 1" in text
    assert '"keep": "length >= 10"' in text
    assert "numpy" in text


def test_records_alone_of_what_is_not_named(here: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["folders=[shards]", "name=x", "licenses={default: odc-by}", f"target={tmp_path}/out", "quarantine=true"])
    files = files_of(tmp_path / "out")
    release = read_release(files[NAME], "")
    assert release.roots == {"base": "records", "mixed": "records", "shards": "shards"}
    assert not [path for path in files if "/documents/" in path or "/attributes/" in path or "/ids/" in path]
    assert "mixed/stages/mix/dropped/work-web.jsonl.zst.jsonl.zst" in files
    assert any("/quarantine/" in path for path in files)
    capsys.readouterr()
    verify.main([str(tmp_path / "out")])
    damaged = tmp_path / "out/base/stages/ingest/parts/work"
    record = next(damaged.glob("web*.json"))
    record.write_text(record.read_text().replace('"xxh3_128": "', '"xxh3_128": "0', 1))
    assert f"{record.relative_to(tmp_path / 'out')} has " in refusal(verify.main, [str(tmp_path / "out")], capsys)


def test_absolute_names_in_shards_become_relative(made: Made, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from data_tools.publish.assemble import Assembled, Options, assemble
    from olmo_train.data.document_index import DocumentRow, read_rows, write_index
    from olmo_train.data.shards import Corpus

    shutil.copytree(made.folder, tmp_path / "own", ignore=shutil.ignore_patterns("release", "small"))
    monkeypatch.chdir(tmp_path / "own")
    shutil.rmtree("shards/stages")
    corpus = Corpus("shards")
    source = Path("mixed/documents/web.jsonl.zst").absolute()
    for file in corpus.files:
        rows = [DocumentRow(r.start, r.end, r.id, str(source), r.loc) for r in read_rows(file.index.rows_path)]
        write_index(file.index.prefix, file.index.rows_path, rows, file.entry.tokens, corpus.manifest.heldout_frac)
    done: Assembled = assemble(Options(["mixed", "shards"], tmp_path / "work"))
    for file in corpus.files:
        path = f"shards/{file.entry.rows}"
        assert {row.src for row in read_rows(done.files[path])} == {"mixed/documents/web.jsonl.zst"}
        assert path in done.rewritten


def test_documents_with_paths_of_this_machine_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    rows = [{"id": "1", "text": f"about {tmp_path}/d/x", "source": "s"}, {"id": "2", "text": "", "source": "s", "metadata": {"from": [f"{tmp_path}/d/raw.txt"]}}]  # fmt: skip
    write_lines(tmp_path / "d/documents/a.jsonl", rows)
    words = ["folders=[d]", "target=out", "name=x", "licenses={s: mit}"]
    assert refusal(command.main, words, capsys) == (
        f"1 documents or files hold paths of this machine, e.g. {tmp_path}/d/raw.txt in d/documents/a.jsonl line 2; ingest from "
        "relative paths, or remove them; allow_paths=true publishes them"
    )
    assert not (tmp_path / "out").exists()
    command.main([*words, "allow_paths=true"])
    assert files_of(tmp_path / "out/d/documents") == files_of(tmp_path / "d/documents")


def test_licenses_and_fields_are_checked(here: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["folders=[mixed]", f"target={tmp_path}/x", "name=x"]
    assert refusal(command.main, [*words, "licenses={web: mit, wep: mit}"], capsys) == (
        "2 problems in the configuration:\n  1. licenses: none for books; give 'licenses={books: odc-by}', or default\n"
        "  2. licenses: no source is called wep; there are books, web"
    )
    assert "folders is empty; give datasets or shards" in refusal(command.main, ["folders=[]", *words[1:]], capsys)
    assert "name is empty; it is the title of the card" in refusal(command.main, [*words[:2], "name="], capsys)
    message = refusal(command.main, ["folders=[mixed]", "target=mixed", "name=x"], capsys)
    assert message == "target=mixed is one of folders; give another"
    message = refusal(command.main, [*words, "private=true"], capsys)
    assert message == f"private=true is for hubs; for {tmp_path}/x set the rights of the folder or bucket"
    message = refusal(command.main, ["folders=[mixed]", "target=hf://x", "name=x"], capsys)
    assert message == "hf://x is no dataset of a hub: hf://owner/name"
    assert refusal(command.main, ["folders=[mixed]", "target=nonsense://x", "name=x"], capsys).startswith("nonsense://x: ")


def test_what_is_not_as_its_stage_wrote_it_is_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(made.folder, tmp_path / "own", ignore=shutil.ignore_patterns("release", "small"))
    monkeypatch.chdir(tmp_path / "own")
    path = find_document_files(["mixed"])[0].path
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(ShardError, match=f"{path}: {len(data) - 1:,} bytes, not {len(data):,}, as mix wrote it"):
        command.main([*WORDS, "target=out"])


def test_names_of_files_and_texts_are_told_apart(here: Made) -> None:
    roots = {root.path.name: root for root in lineage("mixed")}
    names, mix = Names(roots), roots["mixed"].stages[0]
    folder = str(here.folder)
    assert names.clean({"path": "base/documents/web.jsonl.zst", "id": f"{folder}/x", "n": 1}, mix) == {
        "path": "../base/documents/web.jsonl.zst", "id": f"{folder}/x", "n": 1,
    }  # fmt: skip
    told = names.clean({"detail": f"{folder}/base/documents/web.jsonl.zst: damaged after line 3; see https://x.org/a/b"}, mix)
    assert told == {"detail": "../base/documents/web.jsonl.zst: damaged after line 3; see https://x.org/a/b"}
    assert names.clean(["text/plain", "/nowhere/at/all here"], mix) == ["text/plain", "/nowhere/at/all here"]
    assert names.leak(f"x {folder}/base/raw") == f"{folder}/base/raw"
    assert names.leak("file:///home/somebody/x") == "/home/somebody/x"
    assert names.leak("https://x.org/home/page/x and and/or/root/x") is None


def test_shards_that_lie_elsewhere_are_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    files = sorted(str(p) for p in made.shards.rglob("part-*.npy"))
    write_manifest.main([f"sources={{a: {json.dumps(files)}}}", "folder=m", "dtype=uint16", "vocab_size=300", "eos_id=0"])
    message = refusal(command.main, ["folders=[m]", "target=out", "name=x", "licenses={a: mit}"], capsys)
    assert message.startswith("m/manifest.json names ")
    assert message.endswith("which lies elsewhere; publish shards that lie in one folder with it")
