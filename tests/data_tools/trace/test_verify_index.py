"""Verifying an index: a whole one passes at every level, and each kind of damage is named with its file."""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import NAME, read_index_manifest
from data_tools.trace.verify_index import AGAIN, REMEDY, main, verify_index
from olmo_train.errors import ShardError
from tests.data_tools.texts import refusal
from tests.data_tools.trace.indexes import Kind, random_documents, write_shards

LEVELS = ("size", "spot", "full", "order")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with an index of several parts. Read only."""
    shards = tmp_path_factory.mktemp("built") / "shards"
    write_shards(shards, random_documents(np.random.default_rng(0), 200, 50), Kind(max_tokens_per_file=3000))
    build(IndexConfig(str(shards), max_tokens_per_part=1500, processes=1))
    return shards


@pytest.fixture
def own(built: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(built, tmp_path / "own")
    return tmp_path / "own"


def damage(path: Path, change: Callable[[np.ndarray], object], dtype: str = "u1") -> None:
    data = np.fromfile(path, dtype)
    change(data)
    data.tofile(path)


def resign(folder: Path) -> None:
    """Write the sums of the files as they are now: only a look at their contents finds damage then."""
    values = json.loads((folder / NAME).read_text())
    for part in values["parts"]:
        for what in part["sha256"]:
            path = folder / f"part-{part['number']:05d}.{what}"
            part["sha256"][what] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / f"part-{part['number']:05d}.json").write_text(json.dumps(part))
    for name in values["sha256"]:
        values["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / NAME).write_text(json.dumps(values))


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_index_passes(built: Path, level: str) -> None:
    assert verify_index(built / "trace", level) == []


def test_the_command_says_what_was_checked(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = built / "trace"
    parts = read_index_manifest(folder).parts
    said = f"{folder}: {len(parts)} parts, {sum(p.end - p.start for p in parts):,} tokens: every byte as it was built, of these shards"
    main([str(folder)])
    assert capsys.readouterr().out == f"{said}\n"
    main([str(folder), "--order"])
    assert capsys.readouterr().out == f"{said}, positions and their order\n"


@pytest.mark.parametrize("name", ["part-00001.train.sa", "part-00000.heldout.sa", "part-00002.train.top", "ranks.idx", "unigrams.idx", "part-00001.unigrams.zz"])  # fmt: skip
def test_one_changed_bit_of_any_file_is_named(own: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "trace" / name
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    damage(path, lambda data: data.__setitem__(len(data) // 2, data[len(data) // 2] ^ 1))
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    said = refusal(main, [str(own / "trace")], capsys)
    assert said == f"{path}: SHA-256 {after[:16]}..., the index says {before[:16]}...; {REMEDY}"
    assert verify_index(own / "trace", "size") == []


def test_a_look_at_a_few_blocks_finds_damage_there(own: Path) -> None:
    path = own / "trace/part-00000.train.sa"
    damage(path, lambda data: data.__setitem__(7, data[7] ^ 1))
    [problem] = verify_index(own / "trace", "spot")
    assert problem.startswith(f"{path}: changed somewhere in bytes [0, 4194304): crc32 ")
    assert problem.endswith(f"; {REMEDY}")


@pytest.mark.parametrize("level", LEVELS)
def test_every_file_that_is_missing_or_cut_short_is_told_at_once(own: Path, level: str) -> None:
    folder = own / "trace"
    (folder / "part-00000.train.sa").unlink()
    (folder / "part-00001.unigrams.zz").unlink()
    (folder / "ranks.idx").write_bytes(b"1234")
    assert verify_index(folder, level) == [
        f"{folder / 'ranks.idx'}: 4 bytes, the index says 200; build it again with `olmo trace index`",
        f"{folder / 'part-00000.train.sa'}: No such file or directory; part of the index: build it again with `olmo trace index`",
        f"{folder / 'part-00001.unigrams.zz'} is missing; {REMEDY}",
    ]


@pytest.mark.parametrize("level", ["spot", "full", "order"])
def test_changed_shards_are_named(own: Path, level: str) -> None:
    damage(own / "all/part-00000.npy", lambda data: data.__setitem__(9, data[9] ^ 1))
    [problem] = verify_index(own / "trace", level)
    assert "all/part-00000.npy: changed somewhere in bytes [0, 4194304) = tokens from 0: crc32 " in problem


def test_other_shards_are_refused(own: Path, built: Path, tmp_path: Path) -> None:
    shutil.rmtree(own / "all")
    shutil.rmtree(own / "index")
    (own / "manifest.json").unlink()
    other = write_shards(tmp_path / "other", [[1, 2, 3]])
    shutil.copytree(other, own, dirs_exist_ok=True)
    [problem] = verify_index(own / "trace", "size")
    wanted = read_index_manifest(own / "trace").fingerprint[:16]
    assert problem.startswith(f"{own / 'trace'}: the index is of the shards with fingerprint {wanted}..., ")
    assert problem.endswith("...: the shards were changed or exchanged; build the index again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.update(shards=5), "shards=5"),
        (lambda v: v.update(fingerprint=None), "fingerprint=None"),
        (lambda v: v.update(vocab_size="x"), "vocab_size='x'"),
        (lambda v: v.update(sha256=None), "sha256=None"),
        (lambda v: v.update(documents_sha256="x"), "documents_sha256='x'"),
        (lambda v: v["parts"][0].update(file=-1), "parts[0].file=-1"),
        (lambda v: v["parts"][1].update(start="a"), "parts[1].start='a'"),
        (lambda v: v["parts"][1].update(train=True), "parts[1].train=True"),
        (lambda v: v["parts"][0].update(number=1), "parts[0].number=1"),
        (lambda v: v["parts"][0].update(separated="no"), "parts[0].separated='no'"),
        (lambda v: v["parts"][0].update(block_crc32=None), "parts[0].block_crc32=None"),
        (lambda v: v["parts"][0]["sha256"].update({"../../x": "y"}), "parts[0].sha256={"),
    ],
)
def test_a_value_of_index_json_that_cannot_be_is_named(own: Path, change: Callable[[dict], None], said: str) -> None:
    path = own / "trace" / NAME
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ShardError) as error:
        verify_index(own / "trace", "size")
    assert str(error.value).startswith(f"{path} cannot be used: {said}")
    assert str(error.value).endswith(" cannot be; build it again with `olmo trace index`")


@pytest.mark.parametrize("level", LEVELS)
def test_parts_that_are_not_the_token_files_are_refused(own: Path, level: str) -> None:
    path = own / "trace" / NAME
    values = json.loads(path.read_text())
    last = values["parts"].pop()
    path.write_text(json.dumps(values))
    [problem] = verify_index(own / "trace", level)
    assert problem.startswith(f"{path}: its parts end at token {last['start']} of ")
    assert problem.endswith(f"which has {last['end']}; {AGAIN}")
    values["parts"].append({**last, "start": last["start"] - 1, "end": last["end"] - 1})
    path.write_text(json.dumps(values))
    [problem] = verify_index(own / "trace", level)
    where = f"part {last['number']} is tokens [{last['start'] - 1}, {last['end'] - 1}) of file {last['file']}"
    assert problem == f"{path}: {where}, which does not go on from the part before; {AGAIN}"


def test_a_record_that_is_not_what_index_json_says_is_told(own: Path) -> None:
    first, second, third = (own / "trace" / f"part-{n:05d}.json" for n in range(3))
    first.write_text(json.dumps({**json.loads(first.read_text()), "separated": False}))
    second.unlink()
    third.write_text("{")
    found = verify_index(own / "trace", "full")
    assert found[:2] == [f"{first} is not what {NAME} says of this part; {REMEDY}", f"{second} is missing; {REMEDY}"]
    assert found[2].startswith(f"{third} cannot be used: ")
    assert len(found) == 3


@pytest.mark.parametrize("suffix", [".starts.idx", ".ids.idx", ".heldout.idx", ".blocks.idx"])
def test_a_changed_document_index_of_the_shards_is_named(own: Path, suffix: str) -> None:
    path = own / "index/all" / f"part-00000{suffix}"
    damage(path, lambda data: data.__setitem__(len(data) - 16, data[len(data) - 16] ^ 1))
    [problem] = verify_index(own / "trace", "full")
    assert str(path.relative_to(own)) in problem
    assert problem.endswith("; copy it again")


def test_exchanged_sidecars_of_files_of_one_size_are_found(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "x", [[1, 2, n + 3] for n in range(20)], Kind(heldout_frac=0.0, max_tokens_per_file=40))
    folder = build(IndexConfig(str(shards), processes=1))
    assert verify_index(folder, "full") == []
    one, other = (sorted(path for path in shards.glob(f"*/**/part-0000{n}.*") if path.suffix in (".gz", ".idx")) for n in (0, 1))
    assert len(one) == 5
    for a, b in zip(one, other, strict=True):
        mine, theirs = a.read_bytes(), b.read_bytes()
        a.write_bytes(theirs)
        b.write_bytes(mine)
    found = verify_index(folder, "full")
    assert len(found) == 2
    for n, problem in enumerate(found):
        assert (
            f"part-0000{n}.csv.gz: the documents are not those of the index: the sidecars of this file were exchanged; copy "
            in problem
        )
    path = folder / NAME
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "documents_sha256": ["x"]}))
    assert verify_index(folder, "full") == [f"{path}: sums of 1 files, the shards have 2; {AGAIN}"]
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "documents_sha256"}))
    assert verify_index(folder, "full") == []  # of an index that was built before there were these sums


# ---- contents that are wrong though all sums fit -----------------------------------------------------------------------------


def swap(data: np.ndarray, i: int, j: int) -> None:
    data[i], data[j] = data[j], data[i]


def test_suffixes_out_of_order_are_found(own: Path) -> None:
    path = own / "trace/part-00000.train.sa"
    damage(path, lambda data: swap(data, 300, 900), "<u4")
    resign(own / "trace")
    assert verify_index(own / "trace", "full") == []
    [problem] = verify_index(own / "trace", "order")
    assert problem.startswith(f"{path}: suffix ")
    assert problem.endswith(f"; {REMEDY}")
    assert "must not stand before the next (token " in problem


def test_a_suffix_before_one_that_ends_sooner_is_found(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "x", [[5, 6], [5, 6, 7]], Kind(eos=False, heldout_frac=0.0))
    path = build(IndexConfig(str(shards), processes=1)) / "part-00000.train.sa"
    sa = np.fromfile(path, "<u4").tolist()
    first = sa.index(0)
    assert sa[first + 1] == 2  # [5, 6] comes before [5, 6, 7]
    for change in (lambda data: swap(data, first, first + 1), lambda data: swap(data, sa.index(1), sa.index(3))):
        whole = path.read_bytes()
        damage(path, change, "<u4")
        resign(path.parent)
        assert len(verify_index(path.parent, "order")) == 1
        path.write_bytes(whole)


def test_positions_that_stand_twice_or_belong_to_the_other_split_are_found(own: Path) -> None:
    folder = own / "trace"
    part = read_index_manifest(folder).parts[0]
    heldout = np.fromfile(folder / "part-00000.heldout.sa", "<u4")
    for value, n in ((heldout[0], 1), (2**32 - 1, 1), (None, 1)):
        path = folder / "part-00000.train.sa"
        whole = path.read_bytes()
        damage(path, lambda data, value=value: data.__setitem__(5, data[6] if value is None else value), "<u4")  # type: ignore[misc]
        resign(folder)
        assert verify_index(folder, "order") == [f"{path}: {n} entries are no tokens of this split, or stand twice; {REMEDY}"]
        path.write_bytes(whole)
    assert part.train > 6


def test_leading_ranks_and_unigrams_that_do_not_fit_are_found(own: Path) -> None:
    folder = own / "trace"
    damage(folder / "part-00000.train.top", lambda data: data.__setitem__(0, data[0] + 1), "<u2")
    (folder / "part-00001.unigrams.zz").write_bytes((folder / "part-00000.unigrams.zz").read_bytes())
    resign(folder)
    found = verify_index(folder, "order")
    assert len(found) == 3
    assert found[0].startswith(f"{folder / 'unigrams.idx'}: id ")
    assert found[0].endswith(" is not the sum of its parts; remove index.json and build again")
    assert found[1:] == [
        f"{folder / 'part-00000.train.top'}: other leading tokens than the suffixes have; {REMEDY}",
        f"{folder / 'part-00001.unigrams.zz'}: the shards have other unigrams; {REMEDY}",
    ]


def test_unigrams_of_a_part_that_cannot_be_read_are_refused(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = own / "trace/part-00001.unigrams.zz"
    for data in (b"none", zlib.compress(bytes(8))):
        path.write_bytes(data)
        resign(own / "trace")
        said = refusal(main, [str(own / "trace"), "--order"], capsys)
        assert said.startswith(f"{path}: 1 ids, the shards have 50" if data != b"none" else f"{path} cannot be read: ")
        assert said.endswith("; remove part-00001.* and build again")
