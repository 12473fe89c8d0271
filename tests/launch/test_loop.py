"""The loop of attempts on this machine, with ranks that end as each test wants."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from launch.attempts import history
from launch.job_folder import Job
from launch.local import Here
from launch.loop import Story, Supervisor
from launch.restart import Action
from olmo_train.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE

ROOT = Path(__file__).parents[2]
RANKS = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from olmo_train.attempt import EndKind, RankEnd, attempt_folder, write_end

run = Path(sys.argv[1])
acts = json.loads((run / "acts.json").read_text())  # of each attempt: [[kind of each rank or null], step it saves or null, seconds]
kinds, saves, seconds = acts[min(int(attempt_folder().name), len(acts)) - 1]
print("ranks of attempt", attempt_folder().name, flush=True)
if saves is not None:
    (run / f"steps/step{{saves:08d}}").mkdir(parents=True)
    (run / f"steps/step{{saves:08d}}/manifest.json").touch()
    (run / "steps/step00000005").exists() and saves == 9 and (run / "steps/step00000005").rename(run / "steps/.step00000005.damaged-77")
for rank, kind in enumerate(kinds):
    if kind:
        write_end(attempt_folder(), RankEnd(rank, "here", EndKind(kind), 1, 3, f"rank {{rank}} says {{kind}}"))
time.sleep(seconds)
"""


def supervisor(folder: Path, acts: list[tuple[list[str | None], int | None, float]], max_failures: int = 2) -> Supervisor:
    """Of a job whose attempts go as `acts` say, the last one again and again."""
    job_folder = folder / "jobs/0001"
    job_folder.mkdir(parents=True)
    (folder / "acts.json").write_text(json.dumps(acts))
    (folder / "ranks.py").write_text(RANKS.format(root=str(ROOT)))
    command = [sys.executable, str(folder / "ranks.py"), str(folder)]
    job = Job("run", str(folder), "train", command, ranks_per_node=2, max_failures=max_failures, silent_s=5.0, requeue=False)
    job.write(job_folder)
    return Supervisor(job_folder, job, Here(job), Story(job_folder / "job-local.log"))


def test_failures_are_followed_by_another_attempt_until_the_run_is_complete(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["peer", "exception"], 5, 0), (["peer", None], None, 0), (["complete", "complete"], 9, 0)])
    assert this.run()[0] is Action.FINISHED
    past = history(this.folder)
    assert [(attempt.step_before, attempt.step_after, attempt.failures) for attempt in past] == [(-1, 5, 0), (5, 5, 1), (5, 9, 0)]
    assert [attempt.action for attempt in past] == ["again", "again", "finished"]
    story = (this.folder / "job-local.log").read_text().splitlines()
    told = [line.split(": ", 1)[-1] for line in story]
    assert told[0].startswith("attempt 1 from the beginning, 2 ranks on 1 node: ")
    assert told[2] == "FIRST ERROR: rank 1 on here, at step 3, exception: rank 1 says exception"
    assert "attempt 3 from step 5" in "\n".join(told)
    aside = "step00000005 was damaged: moved to steps/.step00000005.damaged-77, and the step before it used; why: rank 0's log"
    assert told.count(aside) == 1
    assert told[-1] == "next: nothing, all is done: the run is complete and saved"
    assert (this.folder / "attempts/0003/rank-00000.log").read_text() == "ranks of attempt 0003\n"


def test_restarts_without_a_newer_step_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.restart.wait_s", lambda failures: 0.0)
    this = supervisor(tmp_path, [(["exception", "peer"], None, 0)], max_failures=2)
    action, why, status = this.run()
    assert (action, status) == (Action.END, EXIT_FAILED)
    assert why == "3 attempts in a row failed and saved no newer step; max_failures=2 restarts are allowed"
    assert len(history(this.folder)) == 3


def test_a_job_folder_that_cannot_be_written_for_a_while_does_not_end_the_job(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["complete", "complete"], 9, 0)])
    (this.folder / "attempts").touch()  # where a folder should be made

    def mend() -> None:
        deadline = time.monotonic() + 60
        while "cannot be used" not in (this.folder / "job-local.log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        (this.folder / "attempts").unlink()

    (this.folder / "job-local.log").touch()
    mender = threading.Thread(target=mend)
    mender.start()
    assert this.run()[0] is Action.FINISHED
    mender.join()
    story = (this.folder / "job-local.log").read_text()
    assert "the job folder cannot be used: [Errno 17] File exists" in story
    assert [attempt.number for attempt in history(this.folder)] == [1]


def test_a_job_that_is_told_to_end_does_not_wait_for_its_folder(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["complete", "complete"], 9, 0)])
    (this.folder / "attempts").touch()
    threading.Timer(1.0, lambda: setattr(this, "told_to_end", True)).start()
    action, why, status = this.run()
    assert (action, status) == (Action.END, EXIT_STOPPED)
    assert "told to end" in why
    assert history(this.folder) == []


def test_a_wrong_config_is_not_tried_twice(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["config", "config"], None, 0)])
    assert this.run() == (Action.END, "a wrong config or wrong data: starting again would end alike", EXIT_USAGE)
    assert len(history(this.folder)) == 1


def test_a_run_that_saved_because_a_signal_came_ends_with_the_status_that_says_so(tmp_path: Path) -> None:
    action, _, status = supervisor(tmp_path, [(["stopped", "stopped"], 4, 0)]).run()
    assert (action, status) == (Action.END, EXIT_STOPPED)


def test_nothing_starts_where_the_run_was_cancelled(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["complete", "complete"], 4, 0)])
    (this.folder / "cancelled").touch()
    assert this.run()[2] == EXIT_STOPPED
    assert history(this.folder) == []


def test_what_is_complete_does_not_start_again(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["complete", "complete"], 4, 0)])
    this.run()
    assert this.run() == (Action.FINISHED, "the run is complete and saved", 0)
    assert len(history(this.folder)) == 1


def test_a_launcher_that_hangs_after_its_ranks_ended_is_ended(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["hung", "hung"], 2, 10_000), (["complete", "complete"], 3, 0)])
    began = time.monotonic()
    assert this.run()[0] is Action.FINISHED
    assert time.monotonic() - began < 120
    assert "all ranks have ended; what is left of them is killed" in (this.folder / "job-local.log").read_text()


def test_an_attempt_whose_supervisor_was_lost_is_settled_first(tmp_path: Path) -> None:
    this = supervisor(tmp_path, [(["complete", "complete"], 4, 0)])
    lost = this.begin([this.site.look()[0][0]])
    assert history(this.folder)[0].ended is None
    assert this.run()[0] is Action.FINISHED
    first, second = history(this.folder)
    assert (first.folder, first.action, first.failures) == (lost.folder, "again", 0)
    assert second.action == "finished"
    assert "attempt 1 has lost its supervisor" in (this.folder / "job-local.log").read_text()


def test_a_job_that_gave_up_and_is_started_again_counts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.restart.wait_s", lambda failures: 0.0)
    this = supervisor(tmp_path, [(["exception", "peer"], None, 0)], max_failures=1)
    this.run()
    assert this.run()[0] is Action.END
    assert [attempt.failures for attempt in history(this.folder)] == [1, 2, 1, 2]


def test_the_status_of_the_command_and_signals_to_its_ranks(tmp_path: Path) -> None:
    """By the command line: `olmo launch local --restarts` is stopped by a signal that reaches the ranks."""
    program = "import os,signal,sys; from launch.local import Here; from launch.job_folder import Job\n"
    program += "h = Here(Job('r', '/', 'train', ['sleep', '1000'])); from launch.attempts import Attempt\n"
    program += f"p = h.start(Attempt({str(tmp_path)!r}, ['n'], 1, 0)); h.pass_on(signal.SIGUSR1); print(p.wait())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.strip() == str(-signal.SIGUSR1), done.stderr
