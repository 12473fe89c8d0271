"""Stages that are interrupted, short of disk, or whose inputs change: told, nothing half-written, and the same command goes on."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_tools.documents import find_files
from data_tools.work.part import Part, PartContext, disk_error
from data_tools.work.stage import Plan, Stage
from olmo_train.errors import ShardError
from tests.data_tools.texts import write_lines
from tests.data_tools.work.counting import count_words, run
from tests.data_tools.work.test_stage import config_of, contents, corpus_of, start


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".tmp-" in path.name or path.suffix == ".claim"]


def members(group: int) -> list[str]:
    """Processes of a group that live."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, of = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(of) == group and state != "Z":
            found.append(folder.name)
    return found


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_an_interrupted_stage_ends_at_once_and_leaves_nothing(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    documents = corpus_of(tmp_path / "in", slow=["SLEEP well"])
    folder = tmp_path / "x"
    task = start(folder, documents, f"processes={processes}", group=True)
    deadline = time.monotonic() + 60
    while not list((folder / "words").glob(".slow*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(task.pid, number)  # as a terminal, and as Slurm
    _, errors = task.communicate(timeout=30)
    assert task.returncode == 128 + number, errors
    assert errors.splitlines()[-1] == "words: interrupted; the same command goes on where it ended"
    assert "Traceback" not in errors
    while members(task.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert members(task.pid) == leftovers(folder) == []
    (folder / "alive").touch()
    assert run(folder, config_of(documents))["totals"] == {"words": 65}


def test_what_killed_processes_left_is_gone_when_the_stage_is_finished(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 2)
    run(tmp_path / "x", config_of(documents))
    clean = contents(tmp_path / "x")
    (tmp_path / "x/summary.json").unlink()
    for name in ("words/.0.jsonl.txt.tmp-0123456789ab.txt", "parts/count/.0.json.tmp-7", "parts/count/0.jsonl.claim"):
        (tmp_path / "x" / name).write_text("half")
    run(tmp_path / "x", config_of(documents))
    assert contents(tmp_path / "x") == clean


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 900 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_that_takes_no_more_is_told_and_nothing_half_written_stays(tmp_path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    documents = corpus_of(tmp_path / "in", 2, long=["word"] * 100)
    folder = tmp_path / "x"
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    with pytest.raises(ShardError) as caught:
        run(folder, config_of(documents))
    assert str(caught.value) == (
        f"{folder}: part long.jsonl of count: File too large; finished parts stay: allow larger files (ulimit -f), and the same "
        "command goes on"
    )
    assert leftovers(folder) == []
    assert not (folder / "words/long.jsonl.txt").exists()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    assert run(folder, config_of(documents))["totals"] == {"words": 109}


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (28, "No space left on device (x); finished parts stay: make room"),
        (30, "Read-only file system (x); finished parts stay: make it writable, or give another folder"),
        (36, "File name too long (x); finished parts stay: shorten the name"),
        (24, "Too many open files (x); finished parts stay: allow more open files (ulimit -n)"),
        (5, "Input/output error (x); finished parts stay: mend that"),
    ],
)
def test_what_a_disk_refuses_names_file_and_remedy(number: int, remedy: str) -> None:
    assert str(disk_error("here", OSError(number, os.strerror(number), "x"))) == f"here: {remedy}, and the same command goes on"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ShardError, match=r"file/x: it cannot be begun: Not a directory \(.*/file/x\); finished parts stay: mend that"
    ):
        run(tmp_path / "file/x", config_of(corpus_of(tmp_path / "in", 1)))


# ---- inputs that change ------------------------------------------------------------------------------------------------------


def test_an_input_that_changes_after_planning_is_told(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 1)
    path = documents / "0.jsonl"
    with Stage(tmp_path / "x", Plan("words", {}, find_files([str(documents)])), config_of(documents)) as stage:
        size = path.stat().st_size
        write_lines(path, [{"id": "1", "text": "four words are here", "source": "s"}] * 2)
        with pytest.raises(ShardError) as caught:
            stage.run("count", [Part("0", str(path), 1)], count_words)
    assert str(caught.value) == (
        f"{path}: had {size} bytes when the stage was planned, and {path.stat().st_size} when it was read; bring it back, or "
        f"remove {tmp_path / 'x'} and begin anew"
    )
    assert not (tmp_path / "x/parts/count/0.json").exists()


def read_twice(context: PartContext, _: Any) -> None:
    """Reads, changes a letter, and leaves the time stamp as it was."""
    path = Path(context.part.payload)
    assert len(list(context.read(path))) == 1
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def write_to(context: PartContext, _: Any) -> None:
    """Somebody writes to what is read."""
    path = Path(context.part.payload)
    for _line in context.read(path):
        path.touch()


def test_an_input_that_changes_between_phases_or_while_it_is_read_is_told(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 1)
    path = documents / "0.jsonl"
    with Stage(tmp_path / "x", Plan("words", {}, [path]), config_of(documents)) as stage:
        part = Part("0", str(path), 1)
        with pytest.raises(ShardError, match=r"0.jsonl: was changed while it was read; run the same command when nobody"):
            stage.run("shaken", [part], write_to)
        stage.run("count", [part], read_twice)
        with pytest.raises(
            ShardError, match=r"0.jsonl: was read twice with different contents; bring it back, or remove .*/x and"
        ):
            stage.run("again", [part], count_words)


def test_other_contents_of_the_same_size_are_told_when_the_stage_goes_on(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 2, bad=["FAIL"])
    with pytest.raises(RuntimeError):
        run(tmp_path / "x", config_of(documents))
    path = documents / "1.jsonl"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"two", b"TWO"))
    os.utime(path, (1, 1))
    with pytest.raises(ShardError, match=r"x: was begun by another plan: .*1.jsonl was read with other contents; give the same"):
        run(tmp_path / "x", config_of(documents))
    path.write_bytes(data)  # the same again, at another time
    os.utime(path, (2, 2))
    (tmp_path / "x/alive").touch()
    assert run(tmp_path / "x", config_of(documents))["totals"] == {"words": 10}


def test_an_input_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"a.jsonl: cannot be read: No such file or directory; it was there a moment ago"):
        Stage(tmp_path / "x", Plan("words", {}, [tmp_path / "a.jsonl"]), config_of(tmp_path))


# ---- others ------------------------------------------------------------------------------------------------------------------


def write_scratch(context: PartContext, _: Any) -> None:
    """What a later phase would read."""
    context.output(context.folder / "scratch/x").write_text("x")


def test_a_task_that_comes_late_to_a_finished_stage_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, config, parts = Plan("words", {}, []), config_of(tmp_path), [Part("0", None)]
    late = Stage(tmp_path / "x", plan, config)
    with Stage(tmp_path / "x", plan, config) as first:
        first.run("one", parts, write_scratch)
        first.finish({}, remove=["scratch"])
    with pytest.raises(SystemExit) as caught, late:
        late.run("one", parts, write_scratch)
    assert caught.value.code == 0
    assert f"{tmp_path / 'x'}: was finished meanwhile by another task" in capsys.readouterr().err
    assert not (tmp_path / "x/scratch").exists()


class OddError(Exception):
    """One that does not arrive at another process: it is made of two arguments and knows one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def raise_odd(context: PartContext, _: Any) -> None:
    """Fails."""
    raise OddError("document 7", "is odd")


def test_an_error_that_cannot_travel_keeps_its_words_and_its_place(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"test_disturbed.OddError: document 7: is odd") as caught,
        Stage(tmp_path / "x", Plan("words", {}, []), config_of(tmp_path, processes=2)) as stage,
    ):
        stage.run("odd", [Part("0", None), Part("1", None)], raise_odd)
    assert 'raise OddError("document 7", "is odd")' in str(caught.value.__cause__)
