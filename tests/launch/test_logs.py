"""Logs of a job: the first error on top, the story, a rank; stacks of ranks that stood alike."""

from pathlib import Path

import pytest

from launch.logs import last_lines, main, new_lines, sizes
from olmo_train.attempt import EndKind, log_path, stacks_path
from olmo_train.errors import ConfigError
from tests.launch.folders import end_start, make_job, make_run, make_start

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: planted'
STACK = (
    "---- 2026-11-21 18:00:0{second} rank stacks: no progress\n"
    'Thread 0x{address}1 (most recent call first):\n  File "loader.py", line {line} in read\n\n'
    'Thread 0x{address}2 (most recent call first):\n  File "trainer.py", line {line} in fit\n'
)


def test_the_first_error_is_on_top_then_the_story_then_rank_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    job = make_job(run)
    make_start(job, (0, EndKind.PEER, 7, "rank 1 failed"), (1, EndKind.EXCEPTION, 7, "ValueError: planted"), traceback=TRACEBACK)
    (job / "job-7.log").write_text("start 1\nstart 1 failed\n")
    main([str(run), "--lines", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["==> first error: start 0001, rank 1 on node2, after step 7: exception <==", *TRACEBACK.splitlines()]
    assert lines[5:] == [
        f"==> {job / 'job-7.log'} <==", "start 1", "start 1 failed", "",
        f"==> {job / 'attempts/0001/rank-00000.log'} <==", "line 99", "line 100", "",
    ]  # fmt: skip


def test_while_a_new_start_runs_the_error_of_the_one_before_is_still_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    job = make_job(run)
    make_start(job, (0, EndKind.FAILED, 7, "the loss is not finite"))
    make_start(job)
    main([str(run)])
    out = capsys.readouterr().out
    assert out.startswith("==> first error: start 0001, rank 0 on node1, after step 7: failed <==\nthe loss is not finite\n")
    assert "0002/rank-00000.log" in out
    make_start(job, (0, EndKind.COMPLETE, 10, ""))
    main([str(run)])
    assert "first error" not in capsys.readouterr().out


def test_a_rank_that_was_killed_is_named_by_what_the_supervisor_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    start = make_start(make_job(run), (0, EndKind.PEER, 7, "rank 1 on node2 is gone"))
    end_start(start, ["node1", "node2"], why="no newer step was saved")
    (start / "srun.log").write_text("srun: error: node2: task 1: Killed\n")
    main([str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "==> first error: start 0001 on 2 nodes, from step 0 <=="
    text = "\n".join(lines)
    assert "ended without a word (killed, or the node is lost): rank 1 (node2)" in lines[1]
    assert "srun: error: node2: task 1: Killed" in text
    assert "what followed: again: no newer step was saved" in lines


def test_a_rank_and_a_start_are_chosen_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    first = make_start(make_job(run))
    log_path(first, 3).write_text("hello\nfrom three\n")
    make_start(make_job(run))
    main([str(run), "--job", "1", "--attempt", "1", "--rank", "3"])
    assert capsys.readouterr().out == f"==> {log_path(first, 3)} <==\nhello\nfrom three\n\n"


def test_what_is_not_there_is_said_with_what_is(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match="has no job folder: it was started without `olmo launch`, and its log is where it was"):
        main([str(run)])
    job = make_job(run)
    with pytest.raises(ConfigError, match=r"--attempt=1: .*0001 has no start yet"):
        main([str(run), "--attempt", "1"])
    with pytest.raises(ConfigError, match=r"--rank=0: .* has not started its ranks yet"):
        main([str(run), "--rank", "0"])
    make_start(job)
    for words, said in (
        (["--job", "2"], "--job=2: .* has jobs 1"),
        (["--attempt", "9"], "--attempt=9: .* has starts 1"),
        (["--rank", "5"], r"--rank=5: not in .*, its ranks are 0 to 0"),
        (["--stacks"], "no stacks in .*: they are written only when a hang is ended"),
        (["--lines", "0"], "--lines=0 must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            main([str(run), *words])


def test_ranks_whose_training_threads_stood_alike_are_shown_once_the_odd_one_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path)
    job = make_job(run)
    start = make_start(job)
    for rank, line in enumerate((10, 10, 99, 10)):
        stacks_path(start, rank).write_text(STACK.format(second=rank, address=f"00007f{rank}", line=line))
    stacks_path(make_start(job), 0).write_text("")  # of the start that runs: opened, nothing in it
    main([str(run), "--stacks"])
    odd, others = capsys.readouterr().out.split("\n\n")[:2]
    assert odd.splitlines() == [
        "==> start 0001, rank 2 <==", "rank stacks: no progress", "Thread 0x... (most recent call first):",
        '  File "trainer.py", line 99 in fit',
    ]  # fmt: skip
    assert others.startswith("==> start 0001, ranks 0-1, 3 <==\n")
    main([str(run), "--stacks", "--rank", "2"])
    out = capsys.readouterr().out
    assert out.count("==>") == 1
    assert "loader.py" in out


def test_the_end_of_a_large_log_is_read_and_a_progress_bar_shows_its_last_state(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {i}\n" for i in range(50_000)) + "10%\r20%\r30%\nlast")
    assert last_lines(path, 3) == ["line 49999", "30%", "last"]
    assert last_lines(path, 10**6)[0] == "line 0"
    path.write_bytes(b"\xff\xfe broken\n")
    assert last_lines(path, 5) == ["\ufffd\ufffd broken"]
    path.write_text("")
    assert last_lines(path, 5) == []


def test_following_shows_whole_new_lines_of_the_story_and_of_new_starts(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    job = make_job(run)
    story = job / "job-7.log"
    story.write_text("old\n")
    places = sizes(job, 0)
    make_start(job)
    with open(story, "a") as file:
        file.write("new\nhalf")
    lines = new_lines(job, 0, places)
    assert next(lines) == "new"
    assert [next(lines) for _ in range(2)] == ["[0001 rank 0] line 1", "[0001 rank 0] line 2"]
    with open(story, "a") as file:
        file.write(" a line\n")
    assert [next(lines) for _ in range(99)][-1] == "half a line"
