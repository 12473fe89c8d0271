"""Manifests of published shards: headerless arrays with or without sidecars, described by the verb and left as they are."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from data_tools import write_manifest
from olmo_train.data.shards import Corpus
from tests.corpora import EOS, VOCAB, document_ids
from tests.data_tools.texts import refusal

N_DOCUMENTS = 30


def publish(folder: Path, name: str = "part-0-00000", dtype: str = "uint16", sidecar: bool = True, seed: int = 0) -> Path:
    """Write a token file, and its `.csv.gz`, as `dolma tokens` does."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    documents = [document_ids(rng, 50) for _ in range(N_DOCUMENTS)]
    np.concatenate(documents).astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{name}.npy")
    ends = np.cumsum([len(ids) for ids in documents]).tolist()
    if sidecar:
        with gzip.open(folder / f"{name}.csv.gz", "wt", newline="") as file:
            spans = zip([0, *ends], ends, strict=False)
            csv.writer(file).writerows((a, b, f"{name}:{n}", "x.jsonl.gz", n + 1) for n, (a, b) in enumerate(spans))
    return folder / f"{name}.npy"


def arguments(sources: str, folder: Path, *overrides: str) -> list[str]:
    fixed = {"dtype": "uint16", "vocab_size": VOCAB, "eos_id": EOS, "processes": 1}
    given = {word.split("=")[0] for word in overrides}
    words = [f"{name}={value}" for name, value in fixed.items() if name not in given]
    return [f"sources={{{sources}}}", f"folder={folder}", *words, *overrides]


def describe(sources: str, folder: Path, *overrides: str) -> Corpus:
    write_manifest.main(arguments(sources, folder, *overrides))
    return Corpus(folder)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_published_shards_are_described_and_left_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    paths = [publish(tmp_path / "wiki", f"part-{i}", dtype, seed=i) for i in (1, 0)] + [publish(tmp_path / "web", "p", dtype)]
    before = {p: p.read_bytes() for folder in ("wiki", "web") for p in (tmp_path / folder).iterdir()}
    sources = f"wiki: [{tmp_path}/wiki/*.npy], web: [{tmp_path}/web/p.npy]"
    corpus = describe(sources, tmp_path / "m", f"dtype={dtype}", "heldout_frac=0.2")
    assert {p: p.read_bytes() for folder in ("wiki", "web") for p in (tmp_path / folder).iterdir()} == before
    assert [(f.entry.source, Path(f.entry.path)) for f in corpus.files] == [
        ("wiki", paths[1]), ("wiki", paths[0]), ("web", paths[2]),
    ]  # fmt: skip
    for file in corpus.files:
        assert np.array_equal(file.read(0, file.entry.tokens), np.fromfile(file.path, dtype))
        assert [file.index.row(n).id for n in (0, 29)] == [f"{file.path.stem}:0", f"{file.path.stem}:29"]
    totals = corpus.manifest.totals()
    assert totals["wiki"]["documents"] == 2 * N_DOCUMENTS
    assert totals["wiki"]["heldout_tokens"] > 0
    assert capsys.readouterr().out.splitlines() == [
        *(
            f"{source}: {row['documents']:,} documents, {row['tokens']:,} tokens, held out {row['heldout_tokens']:,}"
            for source, row in totals.items()
        ),
        f"{tmp_path}/m/manifest.json: fingerprint {corpus.manifest.fingerprint()[:16]}...",
    ]
    assert corpus.verify("full") == []


def test_documents_end_at_the_end_of_text_where_there_is_no_sidecar(tmp_path: Path) -> None:
    publish(tmp_path / "web", "with")
    path = publish(tmp_path / "web", "without", sidecar=False)
    corpus = describe(f"web: [{tmp_path}/web/*.npy]", tmp_path / "m", "infer_documents=true")
    told, inferred = (file.index for file in corpus.files)
    assert told.starts.tolist() == inferred.starts.tolist()
    row = inferred.row(4)
    assert (told.row(4).id, row.id, row.src, row.loc) == ("with:4", "without.npy:4", str(path), 5)


def test_a_missing_sidecar_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path / "web", sidecar=False)
    message = refusal(write_manifest.main, arguments(f"web: [{tmp_path}/web/*.npy]", tmp_path / "m"), capsys)
    assert message.startswith(f"{tmp_path}/web/part-0-00000.csv.gz is missing: the sidecar of document spans")
    assert message.endswith("`olmo data manifest infer_documents=true`")
    assert not (tmp_path / "m/manifest.json").exists()


def test_without_reading_the_tokens_there_are_no_checksums(tmp_path: Path) -> None:
    path = publish(tmp_path / "web")
    read = describe(f"web: [{path}]", tmp_path / "read")
    unread = describe(f"web: [{path}]", tmp_path / "unread", "read_tokens=false")
    assert read.manifest.files[0].sha256 is not None
    assert unread.manifest.files[0].sha256 is unread.manifest.files[0].block_crc32 is None
    assert unread.manifest.totals() == read.manifest.totals()


def test_without_an_end_of_text_and_on_all_cores(tmp_path: Path) -> None:
    path = publish(tmp_path / "web")
    corpus = describe(f"web: [{path}]", tmp_path / "m", "eos_id=null", "processes=null")
    assert corpus.manifest.eos_id is None
    assert corpus.manifest.totals() == describe(f"web: [{path}]", tmp_path / "one").manifest.totals()


def test_a_wrong_dtype_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = publish(tmp_path / "web", dtype="uint32")
    sources = f"web: [{path}]"
    message = refusal(write_manifest.main, arguments(sources, tmp_path / "m"), capsys)
    assert "the file is truncated, or its dtype is not the one given" in message
    message = refusal(write_manifest.main, arguments(sources, tmp_path / "m", "dtype=int16"), capsys)
    assert message == "dtype=int16 is not one of uint8, uint16, uint32, uint64"
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    message = refusal(write_manifest.main, arguments(sources, tmp_path / "m", "dtype=uint32"), capsys)
    assert f"{path}: {len(data) + 1} bytes is no multiple of 4: truncated at byte {len(data)}" in message


def test_ids_beyond_the_vocabulary_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = publish(tmp_path / "web")
    at = int(np.argmax(np.fromfile(path, "<u2") >= 20))
    message = refusal(write_manifest.main, arguments(f"web: [{path}]", tmp_path / "m", "vocab_size=20"), capsys)
    assert f"{path}: token {at} (byte {2 * at}) is id " in message
    assert "beyond the vocabulary of 20" in message


def test_bad_values_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = arguments("", tmp_path / "m", "vocab_size=0", "heldout_frac=1.5", "eos_id=null", "infer_documents=true", "processes=0")
    message = refusal(write_manifest.main, argv, capsys)
    for line in (
        "sources is empty; give 'sources={name: [glob, ...]}'",
        "vocab_size=0 must be positive",
        "heldout_frac=1.5 is not in [0, 1)",
        "infer_documents=true needs eos_id, the id that ends a document",
        "processes=0 must be positive; null takes one per core",
    ):
        assert line in message
    message = refusal(write_manifest.main, arguments("web: [x]", tmp_path / "m", f"eos_id={VOCAB}"), capsys)
    assert message == f"eos_id={VOCAB} is not in 0 .. {VOCAB - 1}, the ids of the vocabulary"
    message = refusal(write_manifest.main, ["sources={web: [x]}"], capsys)
    for name in ("folder", "dtype", "vocab_size"):
        assert f"{name} is missing: give {name}=" in message


def test_a_source_without_files_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(write_manifest.main, arguments(f"web: [{tmp_path}/x/*.npy]", tmp_path / "m"), capsys)
    assert message == f"source web: no file matches {tmp_path}/x/*.npy"
