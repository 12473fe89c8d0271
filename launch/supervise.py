"""Run the ranks of a job, again where they fail, until the run is complete: `python -m launch.supervise JOB_FOLDER`

The batch script becomes this program, on the first node of the allocation. It starts all ranks as one Slurm step and decides
from what they leave behind (never from srun's exit status, which hides a crash behind a peer's) whether to start again at once
on the nodes that are left, to go back into the queue, or to end. It never ends with 0 unless the run is complete or paused.
Its output is the log of the job, for people. Only Python's own library is needed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from launch.allocation import Allocation, own_job_id
from launch.guard import Heart, wait_for_silence
from launch.job_folder import Job
from launch.loop import Story, Supervisor, TakenOverError
from launch.restart import Action
from launch.slurm import SlurmError
from olmo_train.attempt import node_name
from olmo_train.errors import EXIT_FAILED, EXIT_STOPPED, ConfigError
from olmo_train.files import write_atomic


def main(argv: list[str]) -> int:
    """Supervise the job of the folder `argv[0]`; with `--guard LOG`, wait until its supervisor is lost, and then do."""
    folder, tell = Path(argv[0]), Story()
    job = Job.read(folder)
    is_guard = argv[1:2] == ["--guard"]
    job_id = own_job_id()
    site = Allocation(job_id, job, folder)
    supervisor = Supervisor(folder, job, site, tell, slurm_id=job_id)
    if is_guard:
        node = _guard(folder, max(job.silent_s, 10.0), site, argv[2], tell)
        if node is None:
            return 0
        supervisor.lost = frozenset([node])
    supervisor.heart = Heart(folder, min(5.0, job.silent_s / 6))
    if is_guard and not supervisor.heart.confirm():
        return EXIT_FAILED
    signal.signal(signal.SIGTERM, lambda *_: _on_term(supervisor, site))
    if not is_guard:
        restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
        again = f", back from the queue (restart {restarts})" if restarts != "0" else ""
        tell(f"Slurm job {job_id}{again}: run {job.run_name} in {job.run_dir}")
    threading.Thread(target=_keep_guard, args=(supervisor, site), daemon=True).start()
    try:
        action, why, status = supervisor.run()
    except TakenOverError:
        tell("a supervisor on another node has taken over; this one only waits, because its end would end the job")
        signal.pause()
        return EXIT_FAILED
    return _close(supervisor, site, action, why, status, is_guard)


def _guard(folder: Path, silent_s: float, site: Allocation, log_path: str, tell: Story) -> str | None:
    """Wait until the supervisor is silent and Slurm answers from here (else this node is the one cut off); return its node.

    None: another works now.
    """
    while True:
        node = wait_for_silence(folder, silent_s)
        if node is None:
            return None
        try:
            site.look()
            write_atomic(folder / "guard.json", b"{}\n")  # the supervisor may be silent because the disk is full
        except (SlurmError, OSError):
            continue
        with open(log_path, "a") as log:
            os.dup2(log.fileno(), 1)  # from here on the story is told here
            os.dup2(log.fileno(), 2)
        tell(f"the supervisor on {node} has given no sign of life for {silent_s:.0f} s; this one takes over")
        return node


def _on_term(supervisor: Supervisor, site: Allocation) -> None:
    if not supervisor.told_to_end:
        supervisor.told_to_end = True
        supervisor.tell("SIGTERM: Slurm ends this job (cancelled, requeued, preempted, or out of time); waiting for the ranks")
        threading.Thread(target=_rescue, args=(supervisor, site), daemon=True).start()


def _rescue(supervisor: Supervisor, site: Allocation) -> None:
    """At the time limit, go back into the queue at once: in seconds Slurm kills this process, saved or not."""
    if not (supervisor.folder / "cancelled").exists() and site.is_at_time_limit():
        supervisor.tell("the time limit came before the ranks had saved and left")
        _send_back(supervisor, site)


def _keep_guard(supervisor: Supervisor, site: Allocation) -> None:
    """Keep a guard on another node of the allocation, and start one elsewhere when its node is lost."""
    command = [sys.executable, "-m", "launch.supervise", str(supervisor.folder), "--guard", str(_job_log(supervisor))]
    log = supervisor.folder / "guard.log"
    guard, node, wait_s = None, "", 5.0
    while not supervisor.told_to_end:
        if guard is not None and (guard.poll() is not None or node in supervisor.suspects()):
            _end_guard(guard)
            guard, wait_s = None, min(2 * wait_s, 300.0)
        if guard is None:
            try:
                nodes = [name for name in site.look()[0] if name != node_name() and name not in supervisor.suspects()]
            except SlurmError:
                nodes = []
            if nodes:
                # The last one: it is the likeliest to be a spare, and never rank 0's.
                node, guard = nodes[-1], site.start_guard(nodes[-1], command, log)
        time.sleep(wait_s)


def _end_guard(guard: "subprocess.Popen[bytes]") -> None:
    guard.terminate()  # srun passes it on: two guards would be one too many
    try:
        guard.wait(5.0)
    except subprocess.TimeoutExpired:
        guard.kill()  # its node is lost
        guard.wait()


def _job_log(supervisor: Supervisor) -> Path:
    """The file that the batch script writes to."""
    target = os.readlink("/proc/self/fd/1")
    return Path(target) if target.startswith("/") else supervisor.folder / f"job-{supervisor.slurm_id}.log"


def _close(supervisor: Supervisor, site: Allocation, action: Action, why: str, status: int, is_guard: bool) -> int:
    tell = supervisor.tell
    if action is Action.REQUEUE and not supervisor.sent_back:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))  # how Slurm ends this process then
        status = _send_back(supervisor, site)
    tell({0: "the end: complete"}.get(status, f"the end, exit status {status}: {why}"))
    if is_guard:
        tell("the batch script is lost, so the Slurm job is ended by scancel, whatever was reached")
        site.cancel()
    return status


def _send_back(supervisor: Supervisor, site: Allocation) -> int:
    """Requeue, or submit anew where that is not allowed or where sick nodes must be named; return the exit status."""
    supervisor.sent_back = True
    tell, without = supervisor.tell, sorted(supervisor.sick_nodes())
    if supervisor.job.requeue and not without:
        try:
            tell(f"job {site.job_id} is requeued: Slurm ends it now, and starts it again when there are nodes")
            site.requeue()
            for _ in range(600):  # Slurm ends this process meanwhile
                time.sleep(1.0)
            tell("Slurm has accepted the requeue and has not ended this job in 600 s")
        except SlurmError as error:
            tell(f"the requeue was refused: {error}")
    try:
        job_id = site.submit_anew(without)
        tell(f"submitted anew as job {job_id}{f', without {chr(32).join(without)}' if without else ''}; this one ends")
        return EXIT_STOPPED
    except SlurmError as error:
        tell(f"submitting anew was refused: {error}", f"by hand: sbatch {supervisor.folder}/job.sbatch")
        return EXIT_FAILED


if __name__ == "__main__":
    try:
        raise SystemExit(main(sys.argv[1:]))
    except ConfigError as error:
        print(f"error: {error}", flush=True)
        raise SystemExit(EXIT_FAILED) from None
    except Exception:
        Story()(f"the supervisor itself failed\n{traceback.format_exc()}")
        raise SystemExit(EXIT_FAILED) from None
