"""Where a run stands, told from its folder; with a real Slurm: tests/slurm/test_jobs.py."""

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from launch.job_folder import Job, add_slurm_id, new_folder
from launch.jobs import details, duration, main, table
from launch.slurm import QueuedJob
from launch.status import find_run, last_lines, read_array, read_status
from olmo_train.attempt import EndKind
from olmo_train.errors import ConfigError
from tests.launch.folders import end_start, make_job, make_run, make_start, make_step, write_metrics

RUNNING = QueuedJob("7", "first", "RUNNING", "", ["node1", "node2"], 60, 7200, "main", 1, "2026-01-01T00:00:00")
PENDING = QueuedJob("7", "first", "PENDING", "Priority", [], 0, 7200, "main", 0, "2026-01-01T00:00:00")


def test_a_running_job_shows_step_speed_and_when_it_is_done(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    job = make_job(run, "6", "7")
    make_start(job, (0, EndKind.FAILED, 20, "first"))
    make_start(job)
    write_metrics(run, 44)
    with open(run / "metrics.jsonl", "a") as file:
        slowest = {"slowest": {"rank": 3, "node": "node2", "excess": 0.25}}
        file.write(
            json.dumps({"step": 45, "tokens": 45 * 4096, "loss": 4.55, "tokens_per_s": 2048, "eta_s": 110, "ranks": slowest})
        )
    make_step(run, 30)
    make_step(run, 40)
    status = read_status(run, {"7": RUNNING})
    assert (status.state, status.slurm_id, status.nodes, status.starts, status.requeues) == (
        "running",
        "7",
        ["node1", "node2"],
        2,
        1,
    )
    assert (status.step, status.last_step, status.tokens, status.loss) == (45, 100, 45 * 4096, 4.55)
    assert status.tokens_per_s == 2048
    assert status.eta_s == 110
    assert status.saved_step == 40
    (head, row) = table([status])
    assert head.split() == ["RUN", "STATE", "NODES", "STARTS", "STEP", "LOSS", "TOKENS/S", "ETA", "SAVED"]
    assert row.split()[:8] == ["first", "running", "2", "2", "45/100", "4.5500", "2,048", "1m"]
    text = "\n".join(details(status))
    assert "Slurm job 7, 2h00m until its time limit" in text
    assert "nodes    node1 node2" in text
    assert "slowest  rank 3 on node2, 25.0% more own work than the median" in text
    assert "starts   2, the Slurm job requeued 1 times" in text
    assert "0001/0001  failed on rank 0, node1, after step 20: first" in text
    assert "0001/0002  it goes on" in text


def test_between_two_intervals_the_time_left_shrinks_by_the_steps_done(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run, 45)
    assert read_status(run, {}).eta_s == pytest.approx(110)  # 120 s at step 40, of which 5 steps of 2 s have passed


def test_a_waiting_job_says_why_and_until_when(tmp_path: Path) -> None:
    run = tmp_path / "first"
    make_job(run, "7")
    status = read_status(run, {"7": PENDING})
    assert (status.state, status.reason, status.step, status.tokens_per_s, status.saved_step) == (
        "pending",
        "Priority",
        None,
        None,
        None,
    )
    assert table([status])[2] == "  Priority; expected to start 2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("ends", "state", "reason"),
    [
        ([(0, EndKind.COMPLETE, 9, "")], "complete", "complete after step 9"),
        ([(0, EndKind.STOPPED, 9, "")], "stopped", "stopped after step 9"),
        (
            [(0, EndKind.PEER, 9, "rank 1 failed"), (1, EndKind.EXCEPTION, 8, "ValueError: x\nmore")],
            "failed",
            "exception on rank 1, node2, after step 8: ValueError: x",
        ),
        ([], "ended", "no rank could say how it ended"),
    ],
)
def test_a_job_that_left_the_queue_tells_how_it_ended(
    tmp_path: Path, ends: list[tuple[int, EndKind, int, str]], state: str, reason: str
) -> None:
    run = make_run(tmp_path)
    make_start(make_job(run, "7"), *ends)
    status = read_status(run, {})
    assert (status.state, status.reason) == (state, reason)


def test_a_start_that_the_supervisor_judged_is_told_with_what_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start = make_start(make_job(run, "7"), (0, EndKind.PEER, 9, "rank 1 is gone"))
    end_start(start, ["node1", "node2"], why="4 attempts in a row failed", action="end")
    assert read_status(run, {}, slurm_answers=False).state == "failed"  # the supervisor's last word needs no Slurm
    status = read_status(run, {})
    assert status.state == "failed"
    assert status.reason == "ended without a word (killed, or the node is lost): rank 1 (node2); 4 attempts in a row failed"


def test_of_several_problems_the_first_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    start = make_start(
        make_job(run, "7"), (0, EndKind.CONFIG, 0, "2 problems in the configuration:\n  1. optim.lr=2\n  2. seed=1")
    )
    end_start(start, ["node1"], why="starting again would end alike", action="end")
    assert read_status(run, {}).reason.endswith("problems in the configuration: 1. optim.lr=2; starting again would end alike")


def test_step_folders_that_were_set_aside_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_step(run, 10)
    for name in (".step00000020.damaged-17", ".step00000015.suspect-3", ".step00000030.tmp-ab"):
        (run / "steps" / name).mkdir()
    status = read_status(run, {})
    assert status.set_aside == [".step00000015.suspect-3", ".step00000020.damaged-17"]
    assert any("not used, in " in line and ".step00000015.suspect-3" in line for line in details(status))


def test_a_task_of_an_array_is_found_by_the_array_that_was_submitted_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    make_job(run, "7_3", "8")
    assert read_status(run, {"8_3": replace(RUNNING, id="8_3")}).slurm_id == "8_3"
    assert read_status(run, {"7_3": replace(RUNNING, id="7_3")}).slurm_id == "7_3"
    assert read_status(run, {"7_2": replace(RUNNING, id="7_2")}).state == "not started"


def test_complete_cancelled_and_not_started_are_seen_in_the_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path, last_step=10)
    job = make_job(run, "7")
    assert read_status(run, {}).state == "not started"
    (job / "cancelled").write_text("")
    assert read_status(run, {}).state == "cancelled"
    make_step(run, 10)
    assert read_status(run, {}).state == "complete"


def test_without_slurm_a_job_of_slurm_is_unknown_and_a_run_of_this_machine_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = make_run(tmp_path / "runs", "far")
    make_job(run, "7")
    here = make_run(tmp_path / "runs", "here")
    write_metrics(here, 20)
    with open(here / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        main(["--runs", str(tmp_path / "runs"), "--json"])
        states = {line["name"]: line["state"] for line in map(json.loads, capsys.readouterr().out.splitlines())}
        assert states == {"far": "unknown", "here": "training"}
        main(["--runs", str(tmp_path / "runs")])
    out = capsys.readouterr().out
    assert "Slurm could not be asked: squeue: not found; run this where Slurm's tools are, e.g. on a login node" in out
    assert "2,048" in next(line for line in out.splitlines() if line.startswith("here"))


def test_a_run_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--runs=.*/none: there is no run in it; start one with `olmo launch`"):
        main(["--runs", str(tmp_path / "none")])
    run = make_run(tmp_path)
    with pytest.raises(ConfigError, match=r"RUN=fist: neither a run's folder nor a run below .* \(there: first\)"):
        main(["fist", "--runs", str(tmp_path)])
    assert find_run(Path("elsewhere"), str(run)) == run == find_run(tmp_path, "first")


def test_only_the_end_of_metrics_is_read_and_half_lines_are_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_metrics(run, 20_000, timed_every=1000, width=100)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 20001, "lo')
    lines = last_lines(run / "metrics.jsonl")
    assert lines[-1]["step"] == 20_000
    assert lines[-1]["tokens_per_s"] == 2048
    assert lines[0]["step"] > 19_000
    write_metrics(run, 300, timed_every=20, width=10_000)  # the speed is further back than the first look
    os.truncate(run / "metrics.jsonl", os.path.getsize(run / "metrics.jsonl") - 200)
    lines = last_lines(run / "metrics.jsonl")
    assert lines[-1]["step"] == 299
    assert any("tokens_per_s" in line for line in lines)
    assert last_lines(run / "nothing") == []


def test_an_array_of_data_tasks_says_how_many_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = new_folder(tmp_path / "jobs")
    Job("olmo-trace-index", str(folder), "tasks", ["python"]).write(folder)
    (folder / "tasks.json").write_text('{"n_tasks": 5, "max_parallel": null}')
    add_slurm_id(folder, "9", 0.0)
    for name in ("done/0", "done/1", "tasks/00000.log", "tasks/00001.log", "tasks/00002.log", "tasks/00003.log"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    queued = {"9_3": replace(RUNNING, id="9_3"), "9_4": replace(PENDING, id="9_4"), "7": RUNNING}
    array = read_array(folder, queued)
    assert (array.n_tasks, array.done, array.running, array.waiting, array.failed) == (5, 2, 1, 1, 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    main([])
    out = capsys.readouterr().out
    assert out.startswith("jobs/0001  olmo-trace-index: 2 of 5 done, 0 run, 0 wait\n")
    assert "Slurm could not be asked" in out


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0s"), (59.9, "59s"), (61, "1m"), (3725, "1h02m"), (273_600, "3d04h")]
)
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
