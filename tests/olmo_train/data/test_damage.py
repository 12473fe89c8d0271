"""Shards that are not what they claim to be: each damage is named with file and place, and nothing is overwritten."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from olmo_train.data.document_index import read_rows
from olmo_train.data.manifest import BLOCK_BYTES, read_manifest
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions
from olmo_train.errors import ShardError
from tests.corpora import EOS, VOCAB, Spec, write_corpus
from tests.olmo_train.data.published import describe, dolma_shard


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "own")
    return tmp_path / "own"


def first_file(folder: Path) -> Path:
    return folder / read_manifest(folder).files[0].path


def test_a_truncated_file_is_named_with_its_offset(own: Path) -> None:
    path = first_file(own)
    data = path.read_bytes()
    path.write_bytes(data[:101])
    corpus = Corpus(own)
    (problem,) = corpus.verify("size")
    assert (
        f"{path}: 101 bytes, the manifest says {len(data) // 2} tokens of uint16 = {len(data)} bytes; they part at token 50 (byte 100)"
        in problem
    )
    with pytest.raises(
        ShardError, match=r"part-00000\.npy: ends at token 50 \(byte 101\), asked for \[40, 60\): the file was truncated"
    ):
        corpus.files[0].read(40, 60)


def test_a_changed_file_is_named_with_its_block(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "big", WriterOptions("uint16", VOCAB, EOS)) as writer:
        writer.add("a", ("d", "f", 1), np.full(BLOCK_BYTES, 5), 1)  # two blocks of 2 bytes a token
        writer.close()
    path = tmp_path / "big/a/part-00000.npy"
    data = bytearray(path.read_bytes())
    data[BLOCK_BYTES + 10] ^= 4
    path.write_bytes(data)
    corpus = Corpus(tmp_path / "big")
    assert corpus.verify("size") == []
    for level in ("spot", "full"):
        (problem,) = corpus.verify(level)
        assert (
            f"{path}: changed somewhere in bytes [{BLOCK_BYTES}, {2 * BLOCK_BYTES}) = tokens from {BLOCK_BYTES // 2}: crc32 "
            in problem
        )


def test_an_id_beyond_the_vocabulary_is_named_with_its_place(own: Path) -> None:
    path = first_file(own)
    tokens = np.fromfile(path, "<u2")
    tokens[77] = 500
    tokens.tofile(path)
    with pytest.raises(
        ShardError,
        match=r"part-00000\.npy: token 77 \(byte 154\) is id 500, beyond the vocabulary of 97: the dtype uint16 is wrong",
    ):
        Corpus(own).files[0].read(50, 100)
    assert "token 77 (byte 154)" in Corpus(own).check_ids()[0]


def test_a_missing_token_file_is_named(own: Path) -> None:
    first_file(own).unlink()
    (problem,) = Corpus(own).verify("size")
    assert problem == f"{first_file(own)}: No such file or directory; the manifest lists it"
    with pytest.raises(ShardError, match=r"cannot read tokens \[0, 1\): .*No such file"):
        Corpus(own).files[0].read(0, 1)


@pytest.mark.parametrize(("dtype", "message"), [("uint32", "documents end at token"), ("uint8", "documents end at token")])
def test_a_wrong_dtype_is_noticed_by_the_sidecar(tmp_path: Path, dtype: str, message: str) -> None:
    dolma_shard(tmp_path / "web", dtype="uint16")
    size = (tmp_path / "web/part-0-00000.npy").stat().st_size
    if size % 4:  # make both readings possible
        dolma_shard(tmp_path / "web", n=41)
    with pytest.raises(
        ShardError,
        match=r"no multiple of 4|documents end at token \d+, the token file holds \d+: the file is truncated, or its dtype",
    ):
        describe(tmp_path / "web", tmp_path / "manifest", dtype=dtype)


def test_a_file_of_half_a_token(tmp_path: Path) -> None:
    dolma_shard(tmp_path / "web")
    path = tmp_path / "web/part-0-00000.npy"
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(
        ShardError, match=rf"{len(data) + 1} bytes is no multiple of 2: truncated at byte {len(data)}, or the dtype is not uint16"
    ):
        describe(tmp_path / "web", tmp_path / "manifest")


def test_a_missing_sidecar_is_named_with_two_remedies(tmp_path: Path) -> None:
    dolma_shard(tmp_path / "web")
    (tmp_path / "web/part-0-00000.csv.gz").unlink()
    with pytest.raises(
        ShardError, match=r"part-0-00000\.csv\.gz is missing: the sidecar .* copy it from where the shards came, or infer it"
    ):
        describe(tmp_path / "web", tmp_path / "manifest")
    with pytest.raises(ShardError, match="inferring documents needs the end-of-text id: give eos_id"):
        describe(tmp_path / "web", tmp_path / "manifest", infer_documents=True, eos_id=None)


def test_a_damaged_sidecar_is_named_with_its_row(tmp_path: Path) -> None:
    dolma_shard(tmp_path / "web")
    sidecar = tmp_path / "web/part-0-00000.csv.gz"
    data = sidecar.read_bytes()
    sidecar.write_bytes(data[:-30])
    with pytest.raises(ShardError, match=r"csv\.gz: damaged after row \d+: .*; copy it again"):
        describe(tmp_path / "web", tmp_path / "manifest")
    sidecar.write_bytes(gzip.compress(b"0,5,a,b,1\n5,x,a,b,2\n"))
    with pytest.raises(ShardError, match=r"row 2 is \['5', 'x', 'a', 'b', '2'\], must be start,end,id,src,loc"):
        list(read_rows(sidecar))
    sidecar.write_bytes(gzip.compress(b"0,5,a,b,1\n6,9,c,d,2\n"))
    with pytest.raises(ShardError, match=r"document 1 \('c'\) spans tokens \[6, 9\), must start at 5, where the one before ends"):
        describe(tmp_path / "web", tmp_path / "manifest2")


def test_a_changed_sidecar_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """Whatever byte of the gzip file changed: it is named, or the rows are still the same."""
    dolma_shard(tmp_path / "web")
    path = tmp_path / "web/part-0-00000.csv.gz"
    whole = path.read_bytes()
    rows = list(read_rows(path))
    refusals = []
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert list(read_rows(path)) == rows
        except ShardError as error:
            refusals.append(str(error))
    assert len(refusals) > len(whole) / 14
    assert all(message.startswith(f"{path}: ") for message in refusals)


def test_an_id_may_hold_any_end_of_line(tmp_path: Path) -> None:
    ids = ["a\rb", "a\nb", "a\r\nb", '"', ",", " a "]
    with ShardWriter(tmp_path / "shards", WriterOptions("uint16", VOCAB, EOS)) as writer:
        for n, name in enumerate(ids):
            writer.add("web", (name, "x\r.jsonl", n + 1), np.array([1, EOS]), 1)
        writer.close()
    index = Corpus(tmp_path / "shards").files[0].index
    assert [index.row(n).id for n in range(len(ids))] == ids
    assert [index.find(name) for name in ids] == [[n] for n in range(len(ids))]
    assert [row.id for row in read_rows(tmp_path / "shards/web/part-00000.csv.gz")] == ids


@pytest.mark.parametrize("suffix", [".starts.idx", ".ids.idx", ".blocks.idx"])
def test_an_empty_index_is_named(tmp_path: Path, suffix: str) -> None:
    write_corpus(tmp_path / "shards", Spec(n_documents=4))
    path = tmp_path / f"shards/index/a/part-00000{suffix}"
    path.write_bytes(b"")
    index = Corpus(tmp_path / "shards").files[0].index
    with pytest.raises(ShardError, match=re.escape(f"{path}: document index cannot be read: ")):
        index.find("a/0"), index.row(0), index.span(0)


def test_a_dtype_too_small_for_the_vocabulary_is_refused(tmp_path: Path) -> None:
    dolma_shard(tmp_path / "web")
    with pytest.raises(
        ShardError, match=r"dtype=uint16 holds ids up to 65535, vocab_size=100278 has ids up to 100277; one of them is wrong"
    ):
        describe(tmp_path / "web", tmp_path / "manifest", vocab_size=100278)
    assert not (tmp_path / "manifest").exists()


def test_no_file_matches(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"source web: no file matches .*\*\.npy"):
        describe(tmp_path / "nowhere", tmp_path / "manifest")
    with pytest.raises(ShardError, match="dtype=int16 is not one of uint8, uint16, uint32, uint64"):
        describe(tmp_path / "nowhere", tmp_path / "manifest", dtype="int16")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "cannot be read as JSON"),
        (lambda text: text.replace('"version": 1', '"version": 9'), "is not a manifest of format olmo_train.shards version 1"),
        (
            lambda text: text.replace('"vocab_size": 97', '"vocab_size": 98'),
            "was changed by hand or damaged (fingerprint does not fit)",
        ),
        (
            lambda text: text.replace('"dtype": "uint16"', '"dtype": "int16"'),
            "was changed by hand or damaged (dtype int16 does not fit)",
        ),
        (lambda text: text.replace('"eos_id": 0,', ""), "has wrong fields"),
        (
            lambda text: text.replace('"token_bytes": "index/token_bytes.idx",', ""),
            "was changed by hand or damaged (lacks ['token_bytes'] does not fit)",
        ),
    ],
)
def test_a_bad_manifest_is_refused(own: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = own / "manifest.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(ShardError) as caught:
        Corpus(own)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_manifest_and_a_missing_index(own: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="does not exist; write it with `olmo data tokenize` or `olmo data manifest`"):
        Corpus(tmp_path / "nowhere")
    index = own / "index/a/part-00000.starts.idx"
    index.write_bytes(b"x")
    with pytest.raises(
        ShardError, match=r"starts\.idx: document index cannot be read: .*; write it again with `olmo data manifest`"
    ):
        _ = Corpus(own).files[0].index.starts
    (own / "a/part-00000.csv.gz").write_bytes(b"")
    with pytest.raises(ShardError, match=r"csv\.gz: block 0 \(documents from 0\) cannot be read"):
        Corpus(own).files[0].index.row(3)
    (own / "index/token_bytes.idx").write_bytes(b"x")
    with pytest.raises(ShardError, match=r"token_bytes\.idx: cannot be read"):
        Corpus(own).token_bytes()
    with open(own / "index/token_bytes.idx", "wb") as file:
        np.save(file, np.ones(5, np.uint16))
    with pytest.raises(ShardError, match="5 entries, the vocabulary has 97"):
        Corpus(own).token_bytes()


def test_rows_of_another_file_and_blocks_beyond_the_rows_file_are_refused(own: Path) -> None:
    """Either would name a document that does not hold the tokens, or ask for gigabytes."""
    index = Corpus(own).files[0].index
    start, end = index.span(3)
    starts = index.path(".starts.idx")
    moved = np.array(index.starts)
    moved[4] += 1
    with open(starts, "wb") as file:
        np.save(file, moved)
    index = Corpus(own).files[0].index
    with pytest.raises(ShardError) as caught:
        index.row(3)
    said = f"spans tokens [{start}, {end}), {starts} says [{start}, {end + 1}): one of them was damaged or exchanged; copy both"
    assert said in str(caught.value)
    blocks = np.array(index.load(".blocks.idx"))
    blocks[1] = 2**60
    with open(index.path(".blocks.idx"), "wb") as file:
        np.save(file, blocks)
    with pytest.raises(ShardError, match=rf"csv\.gz: block 0 \(documents from 0\) cannot be read: .*bytes \[0, {2**60}\)"):
        Corpus(own).files[0].index.row(0)


def test_the_writer_refuses_what_would_lose_or_spoil_data(tmp_path: Path) -> None:
    options = WriterOptions("uint16", VOCAB, EOS)
    (tmp_path / "there").mkdir()
    with pytest.raises(ShardError, match="there exists already; shards are never overwritten"):
        ShardWriter(tmp_path / "there", options)
    with pytest.raises(ShardError, match="document 'd': id 97 is beyond the vocabulary of 97"):
        with ShardWriter(tmp_path / "new", options) as writer:
            writer.add("a", ("d", "f", 1), np.array([97]), 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]  # nothing half-written is left
