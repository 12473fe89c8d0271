"""Verifying shards: whole ones pass at every level, and each kind of damage is named with its file and place."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools import write_manifest
from data_tools.inspect import verify as verify_shards
from olmo_train.data.manifest import FileEntry, read_manifest
from olmo_train.data.manifest import write_manifest as save_manifest
from olmo_train.data.shards import Corpus
from tests.corpora import EOS, VOCAB, Spec, write_corpus
from tests.data_tools.texts import refusal


@pytest.fixture
def own(text_shards: Path, tmp_path: Path) -> Path:
    """A copy of shards with a tokenizer, to be damaged."""
    shutil.copytree(text_shards, tmp_path / "own")
    return tmp_path / "own"


def first(folder: Path) -> FileEntry:
    return read_manifest(folder).files[0]


def damage(path: Path, change: Callable[[bytearray], bytearray | None]) -> None:
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)


def verify(folder: Path, capsys: pytest.CaptureFixture[str], level: str = "full") -> str:
    return refusal(verify_shards.main, [str(folder), "--level", level], capsys)


# ---- whole -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["size", "spot", "full"])
def test_whole_shards_pass(text_shards: Path, capsys: pytest.CaptureFixture[str], level: str) -> None:
    verify_shards.main([str(text_shards), "--level", level])
    manifest = read_manifest(text_shards)
    tokens = sum(entry.tokens for entry in manifest.files)
    line = f"{text_shards}: {len(manifest.files)} files, {tokens:,} tokens, as the manifest says ({level})\n"
    assert capsys.readouterr().out == line


def test_the_level_is_full_unless_said(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_shards.main([str(shards / "manifest.json")])
    assert capsys.readouterr().out.endswith("as the manifest says (full)\n")
    with pytest.raises(SystemExit) as caught:
        verify_shards.main([str(shards), "--level", "some"])
    assert caught.value.code == 2


def test_many_documents_in_one_file_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "x", Spec(n_documents=3000, sources=("a",), max_length=4, max_tokens_per_file=10**6))
    assert first(tmp_path / "x").documents == 3000  # rows in several blocks
    verify_shards.main([str(tmp_path / "x")])


def test_offsets_of_blocks_that_lead_astray_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "x", Spec(n_documents=3100, sources=("a",), max_length=4, max_tokens_per_file=10**6))
    path, rows = tmp_path / "x/index/a/part-00000.blocks.idx", tmp_path / "x/a/part-00000.csv.gz"
    with open(path, "rb") as file:
        _, one, two, three, size = np.load(file).tolist()
    assert size == rows.stat().st_size

    def message(*offsets: int) -> str:
        with open(path, "wb") as file:
            np.save(file, np.array(offsets, np.uint64))
        return verify(tmp_path / "x", capsys)

    for offsets in ((0, two, one, three, size), (0, one, two, three, size + 1), (1, one, two, three, size), (0,)):
        assert message(*offsets) == f"{path}: offsets do not rise from 0 to {size}, the bytes of {rows.name}; copy it again"
    assert message(0, one + 1, two, three, size).startswith(f"{rows}: block 0 (documents from 0) cannot be read: ")
    assert message(0, two, three, size - 1, size) == f"{path}: does not lead to the row of document 1024; copy it again"


def test_described_shards_without_checksums_say_so(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(shards / entry.path) for entry in read_manifest(shards).files]
    fixed = [f"vocab_size={VOCAB}", f"eos_id={EOS}", "dtype=uint16", "processes=1", "read_tokens=false", f"folder={tmp_path}/m"]
    write_manifest.main([f"sources={{x: [{', '.join(paths)}]}}", *fixed])
    capsys.readouterr()
    verify_shards.main([f"{tmp_path}/m"])
    note = f"(full); {len(paths)} without checksums (written with read_tokens=false), only sizes and ids checked\n"
    assert capsys.readouterr().out.endswith(note)


# ---- token files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["size", "spot", "full"])
def test_a_truncated_file_is_named_with_its_offset(own: Path, capsys: pytest.CaptureFixture[str], level: str) -> None:
    path = own / first(own).path
    damage(path, lambda data: data[:101])
    message = verify(own, capsys, level)
    assert message.startswith(f"{path}: 101 bytes, the manifest says {first(own).tokens} tokens of uint16 = ")
    assert "they part at token 50 (byte 100): the file was truncated or exchanged; copy it again" in message


@pytest.mark.parametrize("level", ["size", "spot", "full"])
def test_a_missing_file_is_named(own: Path, capsys: pytest.CaptureFixture[str], level: str) -> None:
    path = own / first(own).path
    path.unlink()
    assert verify(own, capsys, level).splitlines()[0] == f"{path}: No such file or directory; the manifest lists it"


@pytest.mark.parametrize("level", ["spot", "full"])
def test_one_changed_bit_is_named_with_its_block(own: Path, capsys: pytest.CaptureFixture[str], level: str) -> None:
    path = own / first(own).path
    damage(path, lambda data: data.__setitem__(200, data[200] ^ 1))
    verify_shards.main([str(own), "--level", "size"])
    message = verify(own, capsys, level)
    assert message.startswith(f"{path}: changed somewhere in bytes [0, 4194304) = tokens from 0: crc32 ")
    assert message.count("\n") == 0


def test_an_id_beyond_the_vocabulary_is_named_with_its_place(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / first(own).path
    damage(path, lambda data: data.__setitem__(slice(154, 156), b"\xff\xff"))
    assert f"{path}: token 77 (byte 154) is id 65535, beyond the vocabulary of 300" in verify(own, capsys)


def test_every_damaged_file_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = read_manifest(own).files
    (own / entries[0].path).unlink()
    damage(own / entries[1].path, lambda data: data[:-2])
    damage(own / entries[2].path, lambda data: data.__setitem__(0, data[0] ^ 1))
    damage(own / entries[3].rows, lambda data: data[:20])
    lines = verify(own, capsys).splitlines()
    for name in (entries[0].path, entries[1].path, entries[2].path, entries[3].rows):
        assert any(line.startswith(f"{own / name}: ") for line in lines)
    assert len(set(lines)) == len(lines)


# ---- documents -------------------------------------------------------------------------------------------------------------


def test_a_damaged_sidecar_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / first(own).rows
    whole = path.read_bytes()
    for at in (40, len(whole) // 2, len(whole) - 6):
        path.write_bytes(whole)
        damage(path, lambda data, at=at: data.__setitem__(at, data[at] ^ 0x55))
        assert verify(own, capsys).startswith(f"{path}: ")
    path.write_bytes(whole[:10] + b"\x07" + whole[11:])  # a kind of block that does not exist
    assert verify(own, capsys).startswith(f"{path}: damaged")
    path.write_bytes(whole[:-40])
    assert verify(own, capsys).startswith(f"{path}: damaged after row ")
    path.unlink()
    assert verify(own, capsys).startswith(f"{path} is missing: ")


def rewrite(path: Path, old: str, new: str) -> None:
    text = gzip.decompress(path.read_bytes()).decode()
    assert old in text
    path.write_bytes(gzip.compress(text.replace(old, new, 1).encode()))


def test_a_sidecar_of_another_file_is_named_with_its_row(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus(own)
    file = corpus.files[0]
    path, row = file.index.rows_path, file.index.row(2)
    rewrite(path, f"\n{row.start},{row.end},", f"\n{row.start + 1},{row.end},")
    assert f"{path}: document 2 ({row.id!r}) spans tokens [{row.start + 1}, {row.end}), must start at {row.start}" in verify(
        own, capsys
    )
    shutil.copyfile(corpus.files[1].index.rows_path, path)
    message = verify(own, capsys)
    assert message.startswith(f"{path}: documents end at token {corpus.files[1].entry.tokens}, the token file holds ")


def test_changed_ids_and_places_in_a_sidecar_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "x", Spec(sources=("a",), max_tokens_per_file=10**6))
    path, index = tmp_path / "x/a/part-00000.csv.gz", tmp_path / "x/index/a/part-00000"
    whole = path.read_bytes()
    rewrite(path, "a/7,", "A/7,")
    assert verify(tmp_path / "x", capsys).startswith(f"{index}.ids.idx: number ")
    held = next(f for f in Corpus(tmp_path / "x").files)
    some = next(n for n in range(300) if held.index.train_position(held.index.span(n)[0]) is None)
    path.write_bytes(whole)
    rewrite(path, f"a/{some},", "moved,")
    message = verify(tmp_path / "x", capsys)
    assert message.startswith(f"{path}: 300 documents, ")
    assert message.endswith("ids or spans were changed; copy it again")


@pytest.mark.parametrize("suffix", [".starts.idx", ".ids.idx", ".heldout.idx", ".blocks.idx"])
def test_a_damaged_index_is_named(own: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    entry = next(entry for entry in read_manifest(own).files if entry.heldout_documents)
    path = own / f"{entry.index}{suffix}"
    whole = path.read_bytes()
    damage(path, lambda data: data.__setitem__(-8, data[-8] ^ 1))
    assert verify(own, capsys).startswith(f"{path}: ")
    path.write_bytes(whole[:-4])
    assert verify(own, capsys).startswith(f"{path}: document index cannot be read: ")
    path.unlink()
    for level in ("size", "full"):
        assert verify(own, capsys, level).startswith(f"{path} is missing: part of the document index; ")


def test_an_index_of_another_length_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / f"{first(own).index}.starts.idx"
    with open(path, "rb") as file:
        starts = np.load(file)
    with open(path, "wb") as file:
        np.save(file, starts[:-1])
    wanted = f"{path}: shape ({len(starts) - 1},) is not what {Path(first(own).rows).name} gives; copy it again"
    assert verify(own, capsys) == wanted


# ---- tokenizer and manifest ------------------------------------------------------------------------------------------------


def test_another_tokenizer_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "tokenizer.json"
    damage(path, lambda data: data + b"\n")
    message = verify(own, capsys)
    sha256 = read_manifest(own).tokenizer_sha256
    assert message.startswith(f"{path}: SHA-256 ")
    assert message.endswith(f"..., the manifest says {(sha256 or '')[:16]}...; copy it again")
    path.unlink()
    assert verify(own, capsys) == f"{path}: No such file or directory; the manifest names it"


def test_a_damaged_table_of_bytes_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "index/token_bytes.idx"
    damage(path, lambda data: data[:-2])
    assert verify(own, capsys).startswith(f"{path}: cannot be read: ")


def test_a_manifest_that_was_edited_is_refused(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "manifest.json"
    values = json.loads(path.read_text())
    values["vocab_size"] += 1
    path.write_text(json.dumps(values))
    message = verify(own, capsys, "size")
    assert message.startswith(f"{path} was changed by hand or damaged (fingerprint does not fit)")
    assert verify(tmp_path / "x", capsys).startswith(f"{tmp_path}/x/manifest.json does not exist; write it with ")


def test_a_held_out_fraction_that_is_not_that_of_the_index_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(own)
    manifest.heldout_frac = 0.9
    save_manifest(own, manifest)
    assert f"{own / manifest.files[0].rows}: {manifest.files[0].documents} documents, " in verify(own, capsys)
