"""The verb: what it refuses, what it prints, and that whatever kills it changes nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_tools.dedupe import command
from data_tools.dedupe.command import main
from tests.data_tools.dedupe.corpora import contents, corpus, remove, run, write
from tests.data_tools.texts import refusal

KILLED = """
import os, signal, sys
from data_tools.dedupe.command import main
from data_tools.work import part
write, left = part.write_atomic, [int(sys.argv[1])]
def write_or_die(path, data):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
part.write_atomic = write_or_die
main(sys.argv[2:])
"""
"""Dies when it would write the record of its n-th part, whose outputs lie there already."""


@pytest.mark.parametrize(("words", "kills"), [(["by=document"], (3, 5, 4)), (["by=paragraph", "paragraph.exact=false"], (7, 4))])
def test_killed_in_any_phase_and_begun_again_it_writes_the_same(tmp_path: Path, words: list[str], kills: tuple[int, ...]) -> None:
    datasets = corpus(tmp_path, 2, 20)
    run(datasets, *words)
    whole = contents(datasets)
    remove(datasets)
    argv = [f"documents=[{datasets[0]},{datasets[1]}]", "name=x", "processes=1", *words]
    for at in kills:  # of 6 files: among the keys, in the only range, among the attributes
        done = subprocess.run([sys.executable, "-c", KILLED, str(at), *argv], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.parent.name: len(list(path.parent.glob("*.json"))) for path in datasets[0].glob("stages/*/parts/*/*.json")}
    assert left == {"keys": 6, "compare": 1, "attributes": 2}
    run(datasets, *words)
    assert contents(datasets) == whole
    assert not (datasets[0] / "stages/dedupe-x/scratch").exists()


def test_a_finished_run_tells_its_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a", "b", "a", "é"]
    write(tmp_path / "documents/x.jsonl", [{"id": str(i), "text": text, "source": "s"} for i, text in enumerate(texts)])
    run([tmp_path])
    folder = tmp_path / "stages/dedupe-x"
    table = (
        f"{folder}: documents duplicate 1, text bytes duplicate 1, documents out 3, text bytes out 4, documents in 4, "
        "text bytes in 5\n  s: documents 3, text bytes 4\n"
    )
    assert capsys.readouterr().out == table
    (folder / "scratch").mkdir()  # killed between the summary and the end
    run([tmp_path])
    assert capsys.readouterr().out == f"{folder}: was finished before\n{table}"
    assert not (folder / "scratch").exists()


def test_another_stage_s_attributes_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "documents/x.jsonl", [])
    path = tmp_path / "attributes/x"
    path.mkdir(parents=True)
    assert refusal(main, [f"documents=[{tmp_path}]", "name=x"], capsys) == (
        f"name=x: {path} was not written by this stage; give another name, or remove it"
    )


def test_all_problems_of_a_config_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "name=a__b",
        "by=paragraph",
        "normalize=case",
        "priority=[x,y,x]",
        "paragraph.separator=''",
        "paragraph.min_words=-1",
    ]
    words += ["paragraph.false_positive_rate=1", "paragraph.expected=0"]
    told = refusal(main, words, capsys)
    for problem in (
        "documents is empty; give files, folders or globs of Dolma documents",
        "name='a__b' names a folder and begins an attribute; give letters, digits, _ and -, and no __",
        "normalize=case is of by=document, not by=paragraph; leave it out",
        "priority=['x', 'y', 'x'] names x twice; name each source once",
        "paragraph.separator is empty; give what stands between two paragraphs",
        "paragraph.min_words=-1 must not be negative",
        "paragraph.false_positive_rate=1.0 is not in (0, 1)",
        "paragraph.expected=0 must be positive; null counts them first",
    ):
        assert problem in told
    many = refusal(main, ["documents=[x]", "name=x", f"priority=[{','.join(f's{i}' for i in range(256))}]"], capsys)
    assert many == "priority names 256 sources, at most 255 can be told apart"


def test_more_files_than_numbers_have_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "MOST_FILES", 1)  # 16,777,216 files are too many for a test
    for name in ("x", "y"):
        write(tmp_path / f"documents/{name}.jsonl", [])
    told = refusal(main, [f"documents=[{tmp_path}]", "name=x"], capsys)
    assert told == "documents: 2 files are more than 1; give larger ones"
    assert not (tmp_path / "stages").exists()


def test_a_priority_that_no_document_has_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "web", [{"id": "1", "text": "x", "source": "web"}])
    main([f"documents=[{path}]", "name=x", "priority=[web,wbe]", "processes=1"])
    assert capsys.readouterr().err.endswith("note: priority names wbe, but no document has this source\n")
