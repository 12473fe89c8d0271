"""What documents say of themselves, kept beside an index: every document's own fields come back, or a clear refusal."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.files import LineWriter
from data_tools.trace import verify_index
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.metadata import Metadata, build_metadata, metadata_problems, url_of
from olmo_train.data.shards import Corpus
from olmo_train.errors import ShardError
from tests.data_tools.texts import make_documents, tokenize, write_lines
from tests.data_tools.trace.indexes import contents

Values = dict[str, Any]
REMEDY = "give the documents the shards were made from as documents=, or leave it out"


def described(n: int, source: str, seed: int) -> list[Values]:
    """Documents with fields of all kinds; every second has none; ids are the same in every source."""
    documents = make_documents(n, (source,), seed)
    for i, document in enumerate(documents[::2]):
        document |= {
            "added": f"2025-01-{i % 28 + 1:02d}",
            "metadata": {"url": f"https://x.org/{source}/{i}", "n": [i, None, "é\u2028"]},
        }
        document["version"] = i
    return documents


@pytest.fixture(scope="module")
def dolma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of documents of two sources, one gzipped, with empty lines. Read only."""
    folder = tmp_path_factory.mktemp("documents")
    write_lines(folder / "a" / "one.jsonl", described(400, "a", 1))
    path = write_lines(folder / "b" / "one.jsonl", described(300, "b", 2))
    with gzip.open(folder / "b" / "more.jsonl.gz", "wt") as file:
        file.write("\n\n" + "".join(json.dumps({**d, "id": f"more {d['id']}"}) + "\n\n" for d in described(50, "b", 3)))
    assert path.exists()
    return folder


@pytest.fixture(scope="module")
def shards(dolma: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of them in several files, shuffled, with an index. Read only."""
    output = tokenize(dolma, tokenizer, tmp_path_factory.mktemp("shards") / "x", "heldout_frac=0.1", "max_tokens_per_file=20000")
    build(IndexConfig(str(output), documents=[str(dolma)], processes=1))
    return output


def wanted(documents: Path) -> dict[tuple[str, str], Values]:
    """(src, id) -> fields that are kept."""
    found = {}
    for path in sorted(documents.rglob("*.jsonl*")):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in data.decode().split("\n"):
            if line:
                values = json.loads(line)
                found[f"{path.parent.name}/{path.name}", values["id"]] = {
                    k: v for k, v in values.items() if k not in ("id", "text", "source")
                }
    return found


def all_of(corpus: Corpus, metadata: Metadata) -> dict[tuple[str, str], Values]:
    found = {}
    for number, file in enumerate(corpus.files):
        for ordinal in range(file.entry.documents):
            row = file.index.row(ordinal)
            found[row.src, row.id] = metadata.get(number, ordinal)
    return found


def test_every_document_has_its_own_fields(dolma: Path, shards: Path) -> None:
    metadata = Metadata.of(shards / "trace")
    assert metadata is not None
    corpus = Corpus(shards)
    assert len(corpus.files) > 2
    assert all_of(corpus, metadata) == wanted(dolma)


def test_there_is_none_without_documents_and_it_can_be_added_later(dolma: Path, shards: Path, tmp_path: Path) -> None:
    folder = build(IndexConfig(str(shards), str(tmp_path / "x"), processes=1))
    assert Metadata.of(folder) is None
    before = contents(folder)
    build(IndexConfig(str(shards), str(tmp_path / "x"), documents=[str(dolma)], processes=1))
    assert {name: data for name, data in contents(folder).items() if not name.startswith("metadata")} == before
    assert contents(folder) == contents(shards / "trace") | {"index.json": before["index.json"]}


def test_tasks_share_the_files_and_what_is_done_is_not_done_again(dolma: Path, shards: Path, tmp_path: Path) -> None:
    corpus = Corpus(shards)
    assert not build_metadata(corpus, tmp_path, [str(dolma)], (1, 2))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert build_metadata(corpus, tmp_path, [str(dolma)], (0, 2)) or build_metadata(corpus, tmp_path, [str(dolma)])
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    whole = {name: data for name, data in contents(shards / "trace").items() if name.startswith("metadata")}
    assert contents(tmp_path) == whole
    assert build_metadata(corpus, tmp_path, ["nothing is looked for any more"])


def test_documents_that_moved_are_found_by_the_end_of_their_paths(dolma: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(dolma, tmp_path / "moved")
    (tmp_path / "x").mkdir()
    assert build_metadata(Corpus(shards), tmp_path / "x", [str(tmp_path / "moved")])
    assert all_of(Corpus(shards), Metadata(tmp_path / "x")) == wanted(dolma)


def refused(shards: Path, folder: Path, patterns: list[Path]) -> str:
    folder.mkdir(exist_ok=True)
    with pytest.raises(ShardError) as caught:
        build_metadata(Corpus(shards), folder, [str(path) for path in patterns])
    assert not (folder / "metadata.json").exists()
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return str(caught.value)


def test_documents_that_are_missing_or_could_be_two_are_refused(dolma: Path, shards: Path, tmp_path: Path) -> None:
    said = refused(shards, tmp_path / "x", [dolma / "b"])
    assert said.startswith(f"{dolma / 'b/one.jsonl'}: line ")  # though its documents have the same ids
    assert said.endswith(f" is of source 'b', {shards / 'a/part-00000.npy'} of 'a': another file of the same name; {REMEDY}")
    lone = write_lines(tmp_path / "other" / "two.jsonl", described(3, "a", 1))
    said = refused(shards, tmp_path / "x", [lone])
    assert said == (
        f"documents: 'a/one.jsonl', where {shards / 'a' / 'part-00000.csv.gz'} says its documents are from, is not among them; "
        f"{REMEDY}"
    )
    for name in ("p", "q"):
        shutil.copytree(dolma, tmp_path / name)
    said = refused(shards, tmp_path / "x", [tmp_path / "p", tmp_path / "q"])
    assert said.endswith(f"could be {tmp_path / 'p/a/one.jsonl'} or {tmp_path / 'q/a/one.jsonl'}; {REMEDY}")


@pytest.mark.parametrize("how", ["another", "fewer", "no id", "no JSON", "cut short"])
def test_documents_that_changed_are_refused(dolma: Path, shards: Path, tmp_path: Path, how: str) -> None:
    shutil.copytree(dolma, tmp_path / "moved")
    path = tmp_path / "moved/a/one.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    number, rows = 7, shards / "a/part-00000.csv.gz"
    if how == "fewer":
        lines = lines[:-1]
        number = len(lines) + 1
    else:
        lines[number - 1] = {"another": lines[20], "no id": "{}", "no JSON": "{", "cut short": lines[number - 1]}[how]
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(text[: 3 * len(text) // 4] + b"\xff" if how == "cut short" else text)
    said = refused(shards, tmp_path / "x", [tmp_path / "moved"])
    wanted_id = next(i for s, i in wanted(dolma) if s == "a/one.jsonl" and i.startswith("d6,"))
    expected = {
        "another": f"{path}: line 7 is document {json.loads(lines[6])['id'] if how == 'another' else ''!r}, ",
        "fewer": f"{path}: has no line {number}, where ",
        "no id": f"{path}: line 7 is not a Dolma document ('id'); {REMEDY}",
        "no JSON": f"{path}: line 7 is not a Dolma document (",
        "cut short": f"{path}: damaged after line ",
    }[how]
    assert said.startswith(expected)
    assert said.endswith("; get it again" if how == "cut short" else REMEDY)
    if how == "another":
        assert f"has {wanted_id!r} there: the documents were changed, or are others" in said
    assert rows.exists()


def test_documents_that_were_packed_since_are_read(dolma: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(dolma, tmp_path / "moved")
    path = tmp_path / "moved/a/one.jsonl.zst"
    with LineWriter(path) as writer:
        for line in (tmp_path / "moved/a/one.jsonl").read_bytes().splitlines():
            writer.write(line)
    (tmp_path / "moved/a/one.jsonl").unlink()
    corpus = Corpus(shards)
    for file in corpus.files:  # as if the shards had been made from packed documents
        rows = gzip.decompress(file.index.rows_path.read_bytes()).decode().replace("a/one.jsonl,", "a/one.jsonl.zst,")
        (tmp_path / file.entry.source).mkdir(exist_ok=True)
        file.index.rows_path = tmp_path / file.entry.source / file.index.rows_path.name
        file.index.rows_path.write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "x").mkdir()
    assert build_metadata(corpus, tmp_path / "x", [str(tmp_path / "moved")])
    before = {name: data for name, data in contents(shards / "trace").items() if name.startswith("metadata")}
    assert contents(tmp_path / "x") == before


def test_damage_is_named_when_it_is_read_and_when_it_is_verified(dolma: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "own")
    folder = tmp_path / "own/trace"
    assert verify_index.verify_index(folder, "full") == []
    path, remedy = folder / "metadata-00000.zz", "remove metadata* there and build again with documents="
    data = bytearray(path.read_bytes())
    data[10] ^= 255
    path.write_bytes(data)
    metadata = Metadata(folder)
    with pytest.raises(ShardError) as caught:
        metadata.get(0, 0)
    assert str(caught.value).startswith(f"{path}: block 0 cannot be read: ")
    assert str(caught.value).endswith(f"; {remedy}")
    [problem] = verify_index.verify_index(folder, "full")
    assert problem.startswith(f"{path}: SHA-256 ")
    assert problem.endswith(f"...; {remedy}")
    with pytest.raises(ShardError, match="document 100000 cannot be read|block 390 cannot be read"):
        Metadata(shards / "trace").get(0, 100_000)
    offsets = folder / "metadata-00000.idx"
    array = np.fromfile(offsets, "<i8")
    array[1] = 2**60
    offsets.write_bytes(array.tobytes())
    with pytest.raises(ShardError, match=rf"block 0 cannot be read: .*says that it is bytes \[0, {2**60}\)"):
        Metadata(folder).get(0, 0)
    (folder / "metadata-00001.json").unlink()
    assert f"{folder / 'metadata-00001.json'} is missing; {remedy}" in metadata_problems(
        folder, 2, Corpus(shards).manifest.fingerprint()
    )
    assert metadata_problems(folder, 2, "x") == [f"{folder / 'metadata.json'}: of other shards; {remedy}"]
    (folder / "metadata-00001.json").write_text("[]")
    assert metadata_problems(folder, 2, Corpus(shards).manifest.fingerprint())[0].startswith(
        f"{folder / 'metadata.json'}: cannot be used: {folder / 'metadata-00001.json'} cannot be used: "
    )


@pytest.mark.parametrize(
    "values, document_id, url",
    [
        ({"metadata": {"url": "https://x.org/a?b#c"}}, "id", "https://x.org/a?b#c"),
        ({"url": "http://x.org", "metadata": {"url": "http://y.org"}}, "id", "http://x.org"),
        ({"metadata": {"WARC-Target-URI": "HTTP://x.org"}}, "id", "HTTP://x.org"),
        ({}, "https://x.org/by-id", "https://x.org/by-id"),
        ({"metadata": {"url": "javascript:alert(1)"}}, "id", None),
        ({"metadata": {"url": ["http://x.org"]}}, "id", None),
        ({"metadata": {"url": "https://x.org/ onclick=1"}}, "id", None),
        ({"metadata": "https://x.org"}, "id", None),
        ({"metadata": None}, "id", None),
    ],
    ids=str,
)
def test_only_a_web_address_is_a_link(values: Values, document_id: str, url: str | None) -> None:
    assert url_of(values, document_id) == url
