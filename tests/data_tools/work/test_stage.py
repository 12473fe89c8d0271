"""Parts are done once, whole or not at all, by however many processes, whatever kills them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_tools.files import InputFile, LineWriter, lines
from data_tools.work.config import DocumentsConfig, StageConfig, stage_problems
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Part, PartContext
from data_tools.work.stage import Plan, Stage
from olmo_train.errors import ShardError
from tests.data_tools.texts import write_lines
from tests.data_tools.work.counting import run

COMMAND = [sys.executable, "-m", "tests.data_tools.work.counting"]


def write_corpus(folder: Path, texts: dict[str, list[str]]) -> Path:
    for name, each in texts.items():
        write_lines(folder / name, [{"id": f"{name}:{i}", "text": text, "source": "s"} for i, text in enumerate(each)])
    return folder


def corpus_of(folder: Path, n: int = 6, **more: list[str]) -> Path:
    texts = {f"{i}.jsonl": ["one two three"] * (i + 1) for i in range(n)}
    return write_corpus(folder, texts | {f"{name}.jsonl": text for name, text in more.items()})


def config_of(documents: Path, **values: Any) -> DocumentsConfig:
    return DocumentsConfig(documents=[str(documents)], **{"processes": 1, **values})


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in ("summary.json", "alive")
    }


def start(folder: Path, documents: Path, *words: str, group: bool = False) -> "subprocess.Popen[str]":
    command = [*COMMAND, str(folder), f"documents={documents}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=group)


@pytest.mark.parametrize("processes", [1, 2])
def test_any_number_of_processes_writes_the_same(tmp_path: Path, processes: int) -> None:
    documents = corpus_of(tmp_path / "in", tail=["", "x y"])
    assert run(tmp_path / "a", config_of(documents))["totals"] == {"words": 65}
    summary = run(tmp_path / "b", config_of(documents, processes=processes))
    assert summary["lines"] == 23
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "b").rglob("*.claim")) + list((tmp_path / "b").rglob(".*tmp*"))


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in")
    run(tmp_path / "x", config_of(documents))
    (tmp_path / "x" / "summary.json").unlink()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*.txt")}
    gone = tmp_path / "x" / "words" / "3.jsonl.txt"
    gone.unlink()
    run(tmp_path / "x", config_of(documents, processes=2))
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "x").rglob("*.txt")}
    assert {p for p in before if before[p] != after[p]} == {gone}


def test_a_killed_process_is_told_and_the_same_command_goes_on(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", killer=["KILL me"])
    folder = tmp_path / "x"
    with pytest.raises(ShardError) as caught:
        run(folder, config_of(documents, processes=2))
    assert str(caught.value) == (
        f"{folder}: a process was killed, for want of memory perhaps; finished parts stay, the same command goes on: "
        "give fewer processes (now 2) or less memory_mb (now 300)"
    )
    assert not (folder / "summary.json").exists()
    (folder / "alive").touch()
    assert run(folder, config_of(documents, processes=2))["totals"] == {"words": 65}
    assert not list(folder.rglob(".*tmp*"))


def test_an_error_of_the_work_is_raised_and_its_outputs_are_gone(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", bad=["FAIL"])
    with pytest.raises(RuntimeError, match="told to fail by bad"):
        run(tmp_path / "x", config_of(documents))
    assert not (tmp_path / "x/words/bad.jsonl.txt").exists()
    assert not list((tmp_path / "x").rglob(".*tmp*"))


def test_tasks_share_the_parts_and_all_finish(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 12)
    tasks = [start(tmp_path / "x", documents, f"task={i}", "n_tasks=3", "processes=1") for i in range(3)]
    outputs = [task.communicate(timeout=60) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], outputs
    assert {out for out, _ in outputs} == {"{'words': 234}\n"}
    run(tmp_path / "alone", config_of(documents))
    assert contents(tmp_path / "x") == contents(tmp_path / "alone")


def test_a_task_that_dies_leaves_its_part_to_the_others(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", slow=["SLEEP well"])
    folder = tmp_path / "x"
    first = start(folder, documents, "task=0", "n_tasks=2", "processes=1")
    claim = folder / "parts/count/slow.jsonl.claim"
    deadline = time.monotonic() + 30
    while not claim.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    second = start(folder, documents, "task=1", "n_tasks=2", "processes=1")
    while len(list((folder / "words").glob("[0-9]*"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert second.poll() is None  # it waits for the part of the first
    (folder / "alive").touch()
    first.send_signal(signal.SIGKILL)
    first.wait()
    out, errors = second.communicate(timeout=30)
    assert (out, second.returncode) == ("{'words': 65}\n", 0), errors


def test_another_plan_is_refused(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 2)
    run(tmp_path / "x", config_of(documents), {"limit": 3})
    more = write_lines(documents / "new.jsonl", [])
    with pytest.raises(ShardError) as caught:
        run(tmp_path / "x", config_of(documents), {"limit": 4})
    assert str(caught.value) == (
        f"{tmp_path / 'x'}: was begun by another plan: settings.limit was 3, now 4; {more} was not there; give the same, another "
        "output, or remove it"
    )


def test_a_plan_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 1)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/stage.json").write_text("{")
    with pytest.raises(ShardError, match=r"x/stage.json: cannot be read: .*; remove .* to begin anew"):
        run(tmp_path / "x", config_of(documents))


# ---- what is no document ---------------------------------------------------------------------------------------------------


def quarantine(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted((folder / "quarantine").iterdir()) for line in lines(path, InputFile(path))]


def test_what_is_rejected_lies_in_quarantine_and_too_much_fails(tmp_path: Path) -> None:
    documents = corpus_of(tmp_path / "in", 1)
    bad = documents / "bad.jsonl"
    bad.write_bytes(b'{"id": "1", "text": "x", "source": "s"}\n{"id": 7}\nnonsense\n\xff\n')
    with pytest.raises(ShardError) as caught:
        run(tmp_path / "x", config_of(documents))
    assert str(caught.value) == (
        f"words: 3 of 5 lines are no documents (not_json 1, not_utf8 1, wrong_type 1), more than max_rejected_frac=0.001; each "
        f"with place and reason in {tmp_path / 'x/quarantine'}; mend them, or raise the limit: the same command then goes on "
        "without them"
    )
    told = quarantine(tmp_path / "x")
    assert [(q["line"], q["reason"]) for q in told] == [(2, "wrong_type"), (3, "not_json"), (4, "not_utf8")]
    assert (told[1]["raw"], told[2]["raw_base64"], told[1]["path"]) == ("nonsense", "/w==", str(bad))
    summary = run(tmp_path / "x", config_of(documents, max_rejected_frac=0.7))
    assert summary["rejected"] == {"wrong_type": 1, "not_json": 1, "not_utf8": 1}
    assert summary["totals"] == {"words": 4}


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_that_is_cut_short_fails_unless_allowed(tmp_path: Path, ending: str) -> None:
    documents = corpus_of(tmp_path / "in", 1)
    path = documents / f"x.jsonl.{ending}"
    with LineWriter(path) as writer:
        for i in range(20_000):
            writer.write(b'{"id": "%d", "text": "%d", "source": "s"}' % (i, i * 7919))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        ShardError, match=r"words: 1 damaged files, max_damaged_files=0; each with place and reason in .*; get them again"
    ):
        run(tmp_path / "x", config_of(documents))
    summary = run(tmp_path / "x", config_of(documents, max_damaged_files=1))
    assert summary["rejected"] == {"cut_short": 1}
    assert 10_000 < summary["totals"]["words"] < 20_000
    assert "damaged after line" in quarantine(tmp_path / "x")[0]["detail"]


def test_bad_fields_are_told_together() -> None:
    config = DocumentsConfig(processes=0, memory_mb=1, task=3, n_tasks=2, max_rejected_frac=2, max_damaged_files=-1, documents=[])
    assert stage_problems(config) == [
        "processes=0 must be positive; null takes one per core",
        "memory_mb=1 must be at least 100",
        "task=3 is not in 0 .. 1; n_tasks=2",
        "max_rejected_frac=2 is not in [0, 1]",
        "max_damaged_files=-1 must not be negative",
        "documents is empty; give files, folders or globs of Dolma documents",
    ]
    assert stage_problems(DocumentsConfig(n_tasks=0, documents=["x"])) == ["n_tasks=0 must be positive"]
    assert stage_problems(DocumentsConfig(n_tasks=2, documents=["x"])) == ["n_tasks=2 needs task, the number of this one"]


class Told:
    """What parts are told; counts how often it was packed for another process."""

    packed = 0

    def __reduce__(self) -> tuple[type["Told"], tuple[()]]:
        Told.packed += 1
        return Told, ()


def note_told(context: PartContext, shared: Told) -> None:
    """Which object this process was told, which is one for all of its parts."""
    context.counts.update(told={f"{os.getpid()} {id(shared)}": 1}, workers={str(os.getpid()): 1})


def test_what_all_parts_are_told_is_sent_once_and_not_with_each(tmp_path: Path) -> None:
    Told.packed = 0
    with Stage(tmp_path / "s", Plan("told", {}, []), StageConfig(processes=2)) as stage:
        records = stage.run("told", [Part(str(i), None) for i in range(20)], note_told, Told())
        folder = Path(stage.pool()._folder.name)
        assert [path.name for path in folder.iterdir()] == ["1.pickle"]
    total: Counts = {}
    for record in records:
        add_counts(total, record.counts)
    assert Told.packed == 1
    assert len(total["told"]) == len(total["workers"])
    assert not folder.exists()
