"""The loop of attempts: start the ranks, wait, read what they left behind, tell it, decide, and start again if that is it.

Where ranks run is a `Site`: an allocation of Slurm's (allocation.py) or this machine (local.py). Whether an attempt was good is
never taken from a launcher's exit status, which hides a crash behind a peer's, but from the ranks' own words and step folders.
"""

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Protocol

from launch.attempts import (
    GOOD,
    Attempt,
    explain,
    history,
    is_over,
    newest_step,
    reported_ends,
    sick,
    without_a_word,
)
from launch.guard import Heart
from launch.job_folder import Job, new_folder
from launch.restart import Action, Decision, Situation, decide, failures_in_a_row, largest, pick
from launch.slurm import SlurmError
from olmo_train.attempt import blamed_nodes, node_name, read_ends
from olmo_train.errors import EXIT_FAILED, EXIT_STOPPED
from olmo_train.step_folder import list_set_aside

SETTLE_S = 3.0
"""For srun to end after the last rank that lives has; longer, and it waits for a lost node."""
MISSING_S = 10.0
"""The same while nothing is known of some ranks, after the last news of the others."""
SETTLE_GOOD_S = 60.0
"""The same after good ends."""
POLL_S = 0.5
SELDOM_S = 10.0
"""Between questions to Slurm while ranks are watched that another supervisor started, and nothing is heard of them."""
FRESH_S = 10.0
"""For which a node that answered, or did not, is not asked again."""
REFUSED_S = 900.0
"""For which the job folder may be on a full or failing file system, before the job ends."""


class Site(Protocol):
    """Where ranks run: an `Allocation`, or this machine (local.py)."""

    can_requeue: bool

    def look(self) -> tuple[list[str], float | None]:
        """Nodes that can be used, and seconds left (None: no limit)."""

    def start(self, attempt: Attempt) -> "Popen[bytes]":
        """Start the ranks."""

    def said(self, attempt: Attempt) -> list[str]:
        """What the launcher said of them."""

    def probe(self, nodes: list[str], enough: int) -> list[str]:
        """Those of the nodes that answer, at least `enough` if so many do."""

    def steps(self) -> list[str]:
        """What runs."""

    def stop(self, process: "Popen[bytes] | None") -> None:
        """Kill what is left of the ranks."""


class Story:
    """Lines for people, each with the time and the name of this node, on stdout and in a file if one is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def __call__(self, *lines: str) -> None:
        """Tell; one fact a line. Indented lines belong to the one before."""
        for line in lines:
            head = "" if line.startswith(" ") else f"{time.strftime('%Y-%m-%d %H:%M:%S')} {node_name()}: "
            with contextlib.suppress(OSError):  # no room in the log is no reason to end a run; Python keeps the line for later
                print(f"{head}{line}", flush=True)
            if self._path is not None:
                with contextlib.suppress(OSError), open(self._path, "a") as file:
                    file.write(f"{head}{line}\n")


@dataclass
class Supervisor:
    """One supervisor's view of a job."""

    folder: Path
    job: Job
    site: Site
    tell: Story
    slurm_id: str | None = None
    heart: Heart | None = None
    lost: frozenset[str] = frozenset()
    """Nodes lost before this supervisor took over."""
    told_to_end: bool = False
    sent_back: bool = False
    """This job is in the queue again, or another in its place."""
    limit_at: float | None = None
    """Of the time limit, on this process's clock: of a job that is being ended Slurm does not tell it any more."""
    aside: frozenset[str] = frozenset()
    """Step folders that were moved away before the attempt that runs."""

    asked_at: float = float("-inf")
    """When Slurm was last asked for steps."""
    probed: tuple[float, list[str], list[str]] | None = None
    """When which suspects were asked for a sign of life, and which of them answered."""
    taken_up: bool = False
    """`run` was interrupted by a file system that refused, and goes on."""

    def run(self) -> tuple[Action, str, int]:
        """Run attempts until something else than another attempt has to follow: (what, why, exit status).

        Raises:
            OSError: the file system of the job folder refused for `REFUSED_S`.
        """
        refused_since = refused_at = float("-inf")
        while True:
            try:
                return self._run()
            except FileNotFoundError:
                raise  # no srun, or no job folder any more
            except OSError as error:
                if self.told_to_end:
                    return Action.END, f"the job was told to end, and its folder cannot be used: {error}", EXIT_STOPPED
                if time.monotonic() - refused_at > 60.0:
                    refused_since = time.monotonic()
                    self.tell(f"the job folder cannot be used: {error}; trying again for {REFUSED_S:.0f} s")
                elif time.monotonic() - refused_since > REFUSED_S:
                    raise
                self.taken_up, refused_at = True, time.monotonic()
                time.sleep(10 * POLL_S)

    def _run(self) -> tuple[Action, str, int]:
        past = history(self.folder)
        if past and past[-1].ended is None:
            is_new = self.taken_up or bool(self.lost) or self._some_run()
            decision = self._settle(past[-1], is_new)
            # With nothing running it has been in the queue since.
            if decision.action in (Action.FINISHED, Action.END) or (is_new and decision.action is Action.REQUEUE):
                return decision.action, decision.why, decision.exit_status
        elif past and past[-1].action == Action.FINISHED:
            return Action.FINISHED, past[-1].why, 0
        while True:
            if (self.folder / "cancelled").exists():
                return Action.END, "it was cancelled (`olmo cancel`)", EXIT_STOPPED
            if self.told_to_end:
                return Action.END, "the job was told to end (SIGTERM)", EXIT_STOPPED
            nodes, left_s = self.look()
            if self.told_to_end:
                continue
            usable = self._usable(nodes)
            count = largest(self.job.node_counts, len(usable))
            if count is None:
                why = f"{len(usable)} of {len(nodes)} nodes can be used and the run needs {min(self.job.node_counts)}"
                return (Action.REQUEUE if self.site.can_requeue else Action.END), why, EXIT_FAILED
            decision = self._attempt(pick(usable, count, self.suspects()), usable, left_s)
            if decision.action is not Action.AGAIN:
                return decision.action, decision.why, decision.exit_status
            self._wait(decision.wait_s)

    def look(self) -> tuple[list[str], float | None]:
        """What Slurm says of the allocation; waits for an answer, without signs of life, so that the guard can take over.

        Raises:
            TakenOverError: it did.
        """
        silent = False
        while True:
            self._check_mine()
            try:
                found = self.site.look()
            except SlurmError as error:
                if not silent:
                    self.tell(f"Slurm does not answer from here: {error}", "waiting; a guard on another node may take over")
                silent = True
                if self.heart:
                    self.heart.pause()
                time.sleep(2 * POLL_S)
                continue
            if self.heart:
                self.heart.go_on()
            nodes, left_s = found
            if not nodes and not self.told_to_end:
                self.tell("Slurm says that this job has no nodes any more")
                self.told_to_end = True
            if left_s is not None and not self.told_to_end:
                self.limit_at = time.monotonic() + left_s
            return nodes, None if self.limit_at is None else self.limit_at - time.monotonic()

    def _check_mine(self) -> None:
        if self.heart and not self.heart.check():
            raise TakenOverError

    def sick_nodes(self) -> set[str]:
        """Nodes that compute wrongly."""
        return {node for attempt in history(self.folder) for node in attempt.sick_nodes}

    def suspects(self) -> set[str]:
        """Nodes of which nothing was heard in this allocation."""
        if self.slurm_id is None:
            return set()  # one machine: there is no other
        named = {node for attempt in history(self.folder) if attempt.slurm_id == self.slurm_id for node in attempt.bad_nodes}
        return named | self.lost

    def _usable(self, nodes: list[str], quietly: bool = False) -> list[str]:
        """The nodes without those that are sick and, where others do not suffice, with the suspects that answer."""
        sick_nodes, suspects = self.sick_nodes(), self.suspects()
        well = [node for node in nodes if node not in sick_nodes and node not in suspects]
        asked = [node for node in nodes if node in suspects and node not in sick_nodes]
        if len(well) >= self.job.node_counts[0] or not asked:
            return well
        enough = self.job.node_counts[0] - len(well)
        if self.probed is None or self.probed[1] != asked or time.monotonic() - self.probed[0] > FRESH_S:
            answered = self.site.probe(asked, enough)
            self.probed = (time.monotonic(), asked, answered)
        alive = self.probed[2]
        for node in [] if quietly else asked if len(alive) < enough else alive:
            self.tell(f"{node}, which ranks called silent, {'answers: used again' if node in alive else 'does not answer'}")
        return [node for node in nodes if node in well or node in alive]

    def _attempt(self, nodes: list[str], usable: list[str], left_s: float | None) -> Decision:
        attempt = self.begin(nodes)
        before = attempt.step_before
        spare = [node for node in usable if node not in nodes]
        where = f"{_count(attempt.n_ranks, 'rank')} on {_count(len(nodes), 'node')}: {' '.join(nodes)}"
        start = "the beginning" if before < 0 else f"step {before}"
        limit = "" if left_s is None else f"; {_duration(left_s)} until the time limit"
        self.tell(f"attempt {attempt.number} from {start}, {where}{f'; spare: {chr(32).join(spare)}' if spare else ''}{limit}")
        if len(nodes) < self.job.node_counts[0]:
            self.tell(f"{_count(len(nodes), 'node')} instead of {self.job.node_counts[0]}: same batches, fewer ranks, slower")
        process = self.site.start(attempt)
        self._watch(attempt, process)
        self.site.stop(process)
        return self._finish(attempt)

    def begin(self, nodes: list[str]) -> Attempt:
        """Note that an attempt begins."""
        folder = new_folder(self.folder / "attempts")
        before = newest_step(Path(self.job.run_dir))
        self.aside = frozenset(list_set_aside(Path(self.job.run_dir) / "steps"))
        attempt = Attempt(str(folder), nodes, self.job.ranks_per_node, before, slurm_id=self.slurm_id)
        try:
            attempt.write()
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return attempt

    def _watch(self, attempt: Attempt, process: "Popen[bytes] | None") -> None:
        """Wait until the launcher ends (without one: the step), or ranks have ended and it does not."""
        n_told, told_at = 0, time.monotonic()
        while process.poll() is None if process else self._some_run(SELDOM_S if time.monotonic() - told_at > SELDOM_S else 0.0):
            time.sleep(POLL_S)
            if self.heart and not self.heart.is_mine:
                if process:
                    process.kill()
                raise TakenOverError
            ends, reported = read_ends(Path(attempt.folder)), reported_ends(self.site.said(attempt))
            if len(ends) + len(reported) > n_told:
                n_told, told_at = len(ends) + len(reported), time.monotonic()
            waited = time.monotonic() - told_at
            if process is None and waited > self.job.silent_s + MISSING_S and not is_over(attempt, ends, reported):
                gone = self._gone(attempt)
                if gone:  # whoever lives had to leave word by now; Slurm lists a step with a lost node for as long as it likes
                    self.tell(f"{gone} does not answer, and no rank has told of it for {waited:.0f} s; not waiting for any")
                    return
                told_at = time.monotonic()
            if not any(end.kind not in GOOD for end in ends):
                if len(ends) == attempt.n_ranks and waited > SETTLE_GOOD_S:
                    self.tell("all ranks have ended; what is left of them is killed")
                    return
            elif waited > (SETTLE_S if is_over(attempt, ends, reported, self.lost) else MISSING_S):
                missing = without_a_word(attempt, ends, reported)
                ranks = " ".join(f"{rank} ({attempt.node_of(rank)})" for rank in missing[:8])
                told = f"{len(ends)} of {attempt.n_ranks} ranks left word; not waiting for {ranks}"
                self.tell(told if missing else "all ranks have ended; what is left of them is killed")
                return

    def _gone(self, attempt: Attempt) -> str:
        """Those nodes of an attempt, among the lost, that do not answer."""
        lost = [node for node in attempt.nodes if node in self.lost]
        answered = self.site.probe(lost, len(lost)) if lost else []
        return " ".join(node for node in lost if node not in answered)

    def _some_run(self, every_s: float = 0.0) -> bool:
        time.sleep(2 * POLL_S)
        if time.monotonic() - self.asked_at < every_s:
            return True
        self.asked_at = time.monotonic()
        try:
            return bool(self.site.steps())
        except SlurmError:
            return True

    def _settle(self, attempt: Attempt, runs: bool) -> Decision:
        """Finish an attempt whose supervisor was lost: wait for its ranks, if there are any."""
        if not self.taken_up:
            self.tell(f"attempt {attempt.number} has lost its supervisor{'; watched from here' if runs else ''}")
        self._watch(attempt, None)
        self.site.stop(None)
        return self._finish(attempt, lost=True)

    def _finish(self, attempt: Attempt, lost: bool = False) -> Decision:
        ends, said = read_ends(Path(attempt.folder)), self.site.said(attempt)
        after = newest_step(Path(self.job.run_dir))
        attempt.step_after, attempt.ended = after, time.time()
        missing_ranks = without_a_word(attempt, ends, set())
        missing = {attempt.node_of(rank) for rank in without_a_word(attempt, ends, reported_ends(said))}
        attempt.bad_nodes = sorted(set(blamed_nodes(ends)) | (missing if ends else set()))
        attempt.sick_nodes = sorted(sick(ends))
        attempt.write()  # before Slurm is asked, which may take long
        seconds = attempt.ended - attempt.started
        span = f"step {after} is the newest saved" + (f", {attempt.step_before} was before" if attempt.step_before >= 0 else "")
        span = span if after >= 0 else "no step is saved"
        self.tell(f"attempt {attempt.number} ended after {_duration(seconds)}; {span}")
        for name in sorted({*list_set_aside(Path(self.job.run_dir) / "steps")} - self.aside):
            _, step, word = name.split(".")
            self.tell(f"{step} was {word.split('-')[0]}: moved to steps/{name}, and the step before it used; why: rank 0's log")
        self.tell(*explain(attempt, ends, said))
        if attempt.sick_nodes:
            self.tell(f"not used again by this job: {' '.join(attempt.sick_nodes)}")
        nodes, left_s = self.look()
        past = [entry for entry in history(self.folder) if entry.folder < attempt.folder]
        n_usable = len(self._usable(nodes, quietly=True))
        now = Situation(
            ends=ends, step_before=attempt.step_before, step_after=after, failures=_failures_before(past),
            max_failures=self.job.max_failures, n_nodes=n_usable, node_counts=self.job.node_counts, left_s=left_s,
            cancelled=(self.folder / "cancelled").exists(), told_to_end=self.told_to_end, lost=lost and not ends,
            can_requeue=self.site.can_requeue, n_silent=len(missing_ranks), margin_s=self.job.margin_s,
        )  # fmt: skip
        decision = decide(now)
        attempt.failures = failures_in_a_row(now) if decision.action is not Action.FINISHED else 0
        attempt.action, attempt.why = decision.action, decision.why
        attempt.write()
        wait = f" in {decision.wait_s:.0f} s" if decision.wait_s else " at once" if decision.action is Action.AGAIN else ""
        self.tell(f"next: {NEXT[decision.action]}{wait}: {decision.why}")
        return decision

    def _wait(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline and not self.told_to_end and not (self.folder / "cancelled").exists():
            time.sleep(POLL_S)


def _failures_before(past: list[Attempt]) -> int:
    """Of the attempts before; whoever starts a job again that had given up starts counting again."""
    return past[-1].failures if past and past[-1].action != Action.END else 0


class TakenOverError(Exception):
    """A guard on another node works now."""


NEXT = {
    Action.FINISHED: "nothing, all is done",
    Action.AGAIN: "start again",
    Action.REQUEUE: "back into the queue",
    Action.END: "nothing, the job ends",
}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
