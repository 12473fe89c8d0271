"""Building an index: parts within limits, together or interrupted, always the same bytes; and what is refused."""

import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data_tools.trace.build_index import build, index_folder_of, main
from data_tools.trace.config import IndexConfig
from data_tools.trace.index_folder import NAME, read_index_manifest
from data_tools.trace.plan_index import GIB, MAX_TOKENS, plan_of, plan_parts, problems_of
from olmo_train.data.document_index import DocumentRow, write_index
from olmo_train.data.manifest import Manifest, write_manifest
from olmo_train.data.shards import Corpus, file_entry
from olmo_train.errors import ConfigError, ShardError
from tests.corpora import Spec, write_corpus
from tests.data_tools.texts import refusal
from tests.data_tools.trace.indexes import Kind, check_by_sorting, contents, random_documents, write_shards


def config(shards: Path, output: Path | None = None, **values: object) -> IndexConfig:
    return IndexConfig(str(shards), None if output is None else str(output), **{"processes": 1, **values})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of several files that make many parts of 1000 tokens. Read only."""
    folder = tmp_path_factory.mktemp("many") / "shards"
    write_corpus(folder, Spec(n_documents=150))
    return folder


@pytest.fixture(scope="module")
def undisturbed(many: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The index of `many`, built by one process in one go."""
    return contents(build(config(many, tmp_path_factory.mktemp("undisturbed") / "index", max_tokens_per_part=1000)))


# ---- what comes out --------------------------------------------------------------------------------------------------------


def test_parts_are_whole_documents_within_the_limit_and_cover_every_file(many: Path) -> None:
    corpus = Corpus(many)
    parts = plan_parts(corpus, plan_of(config(many, max_tokens_per_part=1000), corpus))
    assert [part.number for part in parts] == list(range(len(parts)))
    for number, file in enumerate(corpus.files):
        mine = [part for part in parts if part.file == number]
        assert (mine[0].start, mine[-1].end) == (0, file.entry.tokens)
        assert all(a.end == b.start for a, b in itertools.pairwise(mine))
        assert {part.start for part in mine} <= set(file.index.starts.tolist())
        assert all(part.end - part.start <= 1000 for part in mine)


def test_a_document_longer_than_a_part_is_a_part_alone(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "x", [[1] * 5, [2] * 300, [], [3] * 5], Kind(heldout_frac=0))
    folder = build(config(shards, max_tokens_per_part=20))
    manifest = read_index_manifest(folder)
    assert [(part.start, part.end) for part in manifest.parts] == [(0, 6), (6, 307), (307, 314)]
    check_by_sorting(folder, manifest, Corpus(shards))


def test_less_memory_makes_smaller_parts_than_asked_for(tmp_path: Path) -> None:
    corpus = described(tmp_path, [10_000] * 5_000)
    wide = plan_parts(corpus, plan_of(config(tmp_path, memory_gib=4.0), corpus))
    narrow = plan_parts(corpus, plan_of(config(tmp_path, memory_gib=0.5), corpus))
    assert (len(wide), len(narrow)) == (1, 3)
    sizes = [part.end - part.start for part in narrow]
    assert max(sizes) - min(sizes) <= 20_000  # about equally many in each


def test_processes_tasks_and_repeats_write_the_same_bytes(many: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    two = build(config(many, tmp_path / "two", max_tokens_per_part=1000, processes=2))
    again = {name: (two / name).stat().st_mtime_ns for name in contents(two)}
    assert build(config(many, tmp_path / "two", max_tokens_per_part=1000)) == two
    assert again == {name: (two / name).stat().st_mtime_ns for name in contents(two)}  # nothing was built again
    for task in (2, 0, 1):
        assert not (tmp_path / "tasks" / NAME).exists()
        build(config(many, tmp_path / "tasks", max_tokens_per_part=1000, task=task, n_tasks=3))
    plan = undisturbed["plan.json"]  # processes share the memory, so it is another
    assert {**contents(two), "plan.json": plan} == undisturbed
    assert contents(tmp_path / "tasks") == undisturbed


def test_tasks_that_run_and_end_at_the_same_time_do_not_disturb_each_other(
    many: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    def run(task: int) -> int:
        words = [f"shards={many}", f"output={tmp_path / 'x'}", "max_tokens_per_part=1000", "processes=1", f"task={task % 2}"]
        command = [sys.executable, "-m", "data_tools.trace.build_index", *words, "n_tasks=2"]
        return subprocess.run(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(3))) == [0, 0, 0]  # one of them twice
    build(
        config(many, tmp_path / "x", max_tokens_per_part=1000)
    )  # had two ended in the very same moment, the index is finished now
    assert contents(tmp_path / "x") == undisturbed


def test_a_build_that_is_killed_goes_on_where_it_was(many: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder, words = tmp_path / "x", ["max_tokens_per_part=1000", "processes=2"]
    command = [sys.executable, "-m", "data_tools.trace.build_index", f"shards={many}", f"output={folder}", *words]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list(folder.glob("part-*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    builders = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for pid in builders:  # they end with the process that started them
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            time.sleep(0.05)
    there = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
    assert NAME not in there
    assert all(undisturbed[name] == data for name, data in there.items() if name != "plan.json")  # nothing half
    (folder / ".part-00000.train.sa.tmp-dead").write_bytes(b"half")
    done = {path: path.stat().st_mtime_ns for path in folder.glob("part-*.json")}
    build(config(many, folder, max_tokens_per_part=1000, processes=2))
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    assert {**contents(folder), "plan.json": undisturbed["plan.json"]} == undisturbed  # and no leftover


def children(pid: int) -> list[int]:
    """Builders that a build started; not Python's tracker of resources."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("is_young", [True, False])
def test_a_builder_that_is_killed_is_told_with_what_to_do(many: Path, tmp_path: Path, is_young: bool) -> None:
    """While the others start, or once a part is finished; the build must not wait for ever."""
    folder = tmp_path / "x"
    command = [sys.executable, "-m", "data_tools.trace.build_index", f"shards={many}", f"output={folder}"]
    process = subprocess.Popen([*command, "max_tokens_per_part=100", "processes=2"], stderr=subprocess.PIPE, text=True)
    while not (found := children(process.pid)) or not (is_young or any(folder.glob("part-*.json"))):
        time.sleep(0.001)
    os.kill(found[0], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.splitlines()[-1] == (
        f"error: {folder}: a builder was killed, for want of memory perhaps; finished parts stay, the same command goes on: give "
        "fewer processes (now 2), or remove the folder and give less memory_gib (now 4.0)"
    )


def test_a_part_that_lost_a_file_is_built_again(many: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    folder = build(config(many, tmp_path / "x", max_tokens_per_part=1000))
    (folder / "part-00002.train.sa").unlink()
    (folder / "part-00003.heldout.top").unlink()
    with open(folder / "part-00005.train.sa", "ab") as file:
        file.write(b"more")
    build(config(many, folder, max_tokens_per_part=1000))
    assert contents(folder) == undisturbed


def test_the_end_says_what_was_built_and_how_to_ask(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"shards={many}", f"output={tmp_path / 'x'}", "max_tokens_per_part=1000", "processes=1"]
    main([*words, "task=1", "n_tasks=2"])
    n = len(plan_parts(Corpus(many), plan_of(config(many, max_tokens_per_part=1000), Corpus(many))))
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 'x'}: {n // 2} of {n} parts are there after ")
    assert out.endswith(
        "; the other tasks build the rest. The last to end writes index.json; if none did, run the same command once more\n"
    )
    main([*words, "task=0", "n_tasks=2"])
    out = capsys.readouterr().out
    tokens = sum(file.entry.tokens for file in Corpus(many).files)
    size = sum(path.stat().st_size for path in (tmp_path / "x").iterdir())
    assert out.startswith(
        f"{tmp_path / 'x'}: {tokens:,} tokens of 150 documents in {n} parts, {size / tokens:.2f} bytes per token, "
    )
    assert out.endswith(f" s\nask it: olmo trace text {tmp_path / 'x'} --text '...'\n")


def test_the_index_lies_beside_its_shards_unless_told_otherwise(many: Path) -> None:
    assert index_folder_of(many) == many / "trace"
    assert index_folder_of(many / "manifest.json") == many / "trace"


def test_six_bytes_per_token_hold_an_index_of_either_width(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n, kind in enumerate((Kind(32_768, "uint16"), Kind(100_000, "uint32"))):
        shards = write_shards(tmp_path / str(n), [rng.integers(1, kind.vocab_size, 1000).tolist() for _ in range(1500)], kind)
        folder = build(config(shards))
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 6 * sum(f.entry.tokens for f in Corpus(shards).files)


# ---- what is refused -------------------------------------------------------------------------------------------------------


def test_a_shard_that_changed_is_refused_with_file_and_place(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "x", random_documents(np.random.default_rng(0), 100, 50))
    path = shards / "all/part-00000.npy"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"part-00000.npy: changed somewhere in bytes \[0, 4194304\) = tokens from 0: crc32"):
        build(config(shards))
    assert not (shards / "trace" / NAME).exists()
    assert not list((shards / "trace").glob("part-*"))


def test_parts_of_other_shards_or_another_plan_are_not_mixed(many: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "x", write_shards(tmp_path / "other", [[1, 2, 3]])
    build(config(other, folder, task=0, n_tasks=2))
    build(config(other, folder))
    a, b = Corpus(other).manifest.fingerprint()[:16], Corpus(many).manifest.fingerprint()[:16]
    rest = f" is of shards with fingerprint {a}..., {many} has {b}...: parts of both must not mix; remove {folder}, or give another output="
    assert problems_of(config(many, folder)) == [f"{folder / 'plan.json'}{rest}"]
    (folder / "plan.json").unlink()
    assert problems_of(config(many, folder)) == [f"{folder / NAME}{rest}"]
    (folder / NAME).unlink()
    assert problems_of(config(many, folder)) == [
        f"{folder} holds parts, but no plan.json that says of which shards; remove {folder}, or give another output="
    ]


def test_an_index_that_was_begun_goes_on_with_the_same_parts_only(many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    build(config(many, folder, max_tokens_per_part=1000, memory_gib=2.0, task=0, n_tasks=2))
    assert problems_of(config(many, folder, max_tokens_per_part=1000, memory_gib=3.0)) == []
    for changed, now in (({"max_tokens_per_part": 500, "memory_gib": 2.0}, "500 and 2.00"), ({"max_tokens_per_part": 1000, "memory_gib": 1.0}, "1000 and 1.00")):  # fmt: skip
        assert problems_of(config(many, folder, **changed)) == [
            (
                f"{folder} was begun with max_tokens_per_part=1000 and 2.00 GiB per process; now it is {now} GiB; go on with the same (or "
                f"more memory), or remove {folder}"
            )
        ]


def test_a_part_of_another_range_is_not_taken_for_finished(many: Path, tmp_path: Path) -> None:
    folder = build(config(many, tmp_path / "x", max_tokens_per_part=1000))
    (folder / "part-00000.json").write_bytes((folder / "part-00001.json").read_bytes())
    with pytest.raises(ShardError) as caught:
        build(config(many, folder, max_tokens_per_part=1000))
    first, second = read_index_manifest(folder).parts[:2]
    assert str(caught.value) == (
        f"{folder / 'part-00000.json'}: tokens [{second.start}, {second.end}) of file 0, the plan says [0, {first.end}) of file 0: "
        f"parts of two builds are mixed; remove {folder} and build again"
    )


def test_all_problems_of_a_config_are_told_at_once_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"shards={tmp_path / 'no'}", f"output={tmp_path / 'x'}", "max_tokens_per_part=0", "processes=0", "memory_gib=0.1"]
    said = refusal(main, [*words, "n_tasks=0", f"documents=[{tmp_path / 'none'}]"], capsys)
    for part in (
        f"max_tokens_per_part=0 is not in [1, {MAX_TOKENS}]; 67_108_864 is usual",
        "processes=0 must be positive; null takes one per core",
        "memory_gib=0.1 for 1 processes is too little: a process takes 0.22 GiB before it sorts; give at least 0.5, or fewer processes",
        "n_tasks=0 must be positive",
        f"shards={tmp_path / 'no'}: {tmp_path / 'no' / 'manifest.json'} does not exist",
    ):
        assert part in said
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"n_tasks": 4}, "n_tasks=4 without task=; each task must know its number: task=$SLURM_ARRAY_TASK_ID"),
        ({"n_tasks": 4, "task": 4}, "task=4 is not in [0, n_tasks=4); tasks count from 0 (sbatch --array=0-N)"),
        ({"memory_gib": 3.0, "processes": 10}, "memory_gib=3.0 for 10 processes is too little: a process takes 0.22 GiB before it sorts; give at least 4.4, or fewer processes"),
    ],
    ids=["no task", "no such task", "memory"],
)  # fmt: skip
def test_numbers_that_do_not_go_together_are_refused(many: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(config(many, **values))
    assert caught.value.problems == [message]


def test_documents_that_are_not_there_an_output_that_is_a_file_and_lost_shards_are_refused(many: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert problems_of(config(many, tmp_path / "file")) == [f"output={tmp_path / 'file'} is a file; give a folder"]
    found = problems_of(config(many, documents=[str(tmp_path / "none")]))
    assert found == [
        f"documents: nothing matches {tmp_path / 'none'}; give a .jsonl, .jsonl.gz, .json.gz or .jsonl.zst file, a folder of them, or a glob"
    ]
    shards = write_shards(tmp_path / "x", [[1, 2, 3]])
    (shards / "all/part-00000.npy").write_bytes(b"\0\0")
    assert problems_of(config(shards))[0].startswith(f"{shards / 'all/part-00000.npy'}: 2 bytes, the manifest says 4 tokens")


def described(folder: Path, lengths: list[int], vocab_size: int = 50) -> Corpus:
    """A corpus of documents of these lengths, with a token file of holes."""
    ends = np.cumsum([0, *lengths]).tolist()
    rows = [DocumentRow(a, b, f"d{n}", "", n) for n, (a, b) in enumerate(itertools.pairwise(ends))]
    counts = write_index(folder / "index", folder / "rows.csv.gz", rows, ends[-1], 0.0)
    with open(folder / "tokens.npy", "wb") as file:
        file.truncate(ends[-1])
    entry = file_entry("tokens.npy", "a", ends[-1], counts, ("index", "rows.csv.gz"), (None, None, None))
    write_manifest(folder, Manifest("uint8", vocab_size, None, 0.0, files=[entry]))
    return Corpus(folder)


def test_a_document_that_does_not_fit_into_memory_is_named(tmp_path: Path) -> None:
    described(tmp_path, [10, 40_000_000, 10])
    found = problems_of(config(tmp_path, memory_gib=0.5))
    assert found == [
        (
            f"memory_gib=0.5: document 'd1' ({tmp_path / 'tokens.npy'}, 40000000 tokens) is sorted whole, which takes 0.80 GiB in one "
            "process; give at least memory_gib=0.81, or fewer processes"
        )
    ]
    assert problems_of(config(tmp_path, memory_gib=0.81)) == []
    assert not (tmp_path / "trace").exists()


def test_a_document_beyond_positions_of_four_bytes_is_named(tmp_path: Path) -> None:
    described(tmp_path, [10, 2**32])
    assert problems_of(config(tmp_path, memory_gib=500.0)) == [
        (
            f"document 'd1' ({tmp_path / 'tokens.npy'}, 4294967296 tokens) is longer than {MAX_TOKENS} tokens, which positions of 4 bytes "
            "reach; cut it before tokenizing"
        )
    ]


def test_a_vocabulary_beyond_all_codes_is_refused(tmp_path: Path) -> None:
    described(tmp_path, [10], vocab_size=255 * 65536 + 1)
    assert problems_of(config(tmp_path)) == [f"shards={tmp_path}: 16711681 ids; an index takes up to 16711680"]


def test_too_many_parts_are_refused(tmp_path: Path) -> None:
    described(tmp_path, [1] * 20_001)
    assert problems_of(config(tmp_path, max_tokens_per_part=1)) == [
        (
            "max_tokens_per_part=1 and memory_gib=4.0 make 20,001 parts; every search asks each of them, and at most 20,000 are allowed: "
            "raise them"
        )
    ]


def test_a_disk_without_room_is_told_before_anything_is_built(tmp_path: Path) -> None:
    described(tmp_path, [2**31] * 1024)
    [found] = problems_of(config(tmp_path, memory_gib=100.0))
    assert found.startswith(f"{tmp_path / 'trace'}: the index takes about {4.3 * 2**41 / GIB:.1f} GiB, ")
    assert found.endswith(" are free; make room, or give another output=")
