"""What follows the end of an attempt: done, again at once, back into the queue, or no more. Pure decisions; supervise.py acts."""

from dataclasses import dataclass, field
from enum import StrEnum

from olmo_train.attempt import EndKind, RankEnd, first_failure
from olmo_train.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE


class Action(StrEnum):
    """What the supervisor does next."""

    FINISHED = "finished"
    """End with 0: the run, or this part of it, is saved."""
    AGAIN = "again"
    """Start in the same allocation."""
    REQUEUE = "requeue"
    """Give the nodes back and go on when Slurm gives others."""
    END = "end"
    """End, not 0, and start nothing."""


@dataclass(frozen=True)
class Situation:
    """All that is known when the ranks of an attempt are gone."""

    ends: list[RankEnd]
    step_before: int
    """Newest step saved when it began; -1: none."""
    step_after: int
    failures: int = 0
    """Attempts in a row before this one that failed without a newer step saved."""
    max_failures: int = 3
    n_nodes: int = 1
    """Nodes that can be used now."""
    node_counts: list[int] = field(default_factory=lambda: [1])
    left_s: float | None = None
    """Until the time limit; None: there is none."""
    margin_s: float = 120.0
    """With less left than this nothing is started any more: Slurm's warning for the ranks is past."""
    cancelled: bool = False
    told_to_end: bool = False
    """The supervisor has had SIGTERM."""
    n_silent: int = 0
    """Ranks that left no word. Where others were stopped, one of these may have died first, and its launcher stopped them."""
    lost: bool = False
    """The supervisor was lost, and no rank left a word: Slurm took the nodes away, or the only one died."""
    can_requeue: bool = True
    """There is a queue to go back to."""


@dataclass(frozen=True)
class Decision:
    """What to do, and why, in words for the log."""

    action: Action
    why: str
    exit_status: int = 0
    n_nodes: int = 0
    """For AGAIN."""
    wait_s: float = 0.0
    """Before AGAIN: what fails at once may have a cause that needs time, as a file system that is away."""


def decide(now: Situation) -> Decision:
    """Decide from rank 0's word where the end was good (it alone saves), else from the failure that explains the others."""
    word = next((end.kind for end in now.ends if end.rank == 0), None)
    failure = first_failure(now.ends)
    if word is EndKind.COMPLETE:
        return Decision(Action.FINISHED, "the run is complete and saved")
    if word is EndKind.PAUSED:
        return Decision(Action.FINISHED, "stop_at_step is reached and saved")
    if now.cancelled:
        return Decision(Action.END, "it was cancelled (`olmo cancel`); nothing starts again", EXIT_STOPPED)
    if word is EndKind.STOPPED and not now.n_silent:
        return _stopped(now)
    if failure is not None and failure.kind is EndKind.CONFIG:
        return Decision(Action.END, "a wrong config or wrong data: starting again would end alike", EXIT_USAGE)
    return _failed(now)


def _stopped(now: Situation) -> Decision:
    why = "a signal asked it to stop (the time limit is near, or another job needs the nodes) and it has saved"
    if now.told_to_end and not _is_out_of_time(now):
        # scancel; or a preemption, after which Slurm requeues by itself
        return Decision(Action.END, f"the job was told to end (SIGTERM), and it has saved{_if_slurm(now)}", EXIT_STOPPED)
    if now.can_requeue:
        return Decision(Action.REQUEUE, why, EXIT_STOPPED)
    return Decision(Action.END, "a signal asked it to stop and it has saved; the same command goes on", EXIT_STOPPED)


def _failed(now: Situation) -> Decision:
    if now.told_to_end and _is_out_of_time(now):
        return Decision(Action.REQUEUE, "the time limit came before the ranks had saved", EXIT_STOPPED)
    if now.told_to_end:
        return Decision(Action.END, f"the job was told to end (SIGTERM){_if_slurm(now)}", EXIT_STOPPED)
    failures = failures_in_a_row(now)
    if failures > now.max_failures:
        told = (
            f"{failures} attempts in a row failed and saved no newer step; max_failures={now.max_failures} restarts are allowed"
        )
        return Decision(Action.END, told, EXIT_FAILED)
    if _is_out_of_time(now):
        return Decision(Action.REQUEUE, f"only {now.left_s:.0f} s of the time limit are left", EXIT_STOPPED)
    n_nodes = largest(now.node_counts, now.n_nodes)
    if n_nodes is None:
        told = f"{now.n_nodes} nodes can be used and the run needs {min(now.node_counts)}"
        if now.can_requeue:
            return Decision(Action.REQUEUE, told, EXIT_STOPPED)
        return Decision(Action.END, told, EXIT_FAILED)
    if now.lost:
        why = "the ranks went with their supervisor, and left no word"
    elif failures == 0:
        why = f"it had saved up to step {now.step_after}, which counts as progress"
    else:
        why = f"restart {failures} of {now.max_failures} that are allowed without a newer step saved"
    return Decision(Action.AGAIN, why, n_nodes=n_nodes, wait_s=wait_s(failures))


def _if_slurm(now: Situation) -> str:
    """Of whoever sent SIGTERM nothing is known."""
    return "; after a requeue or a preemption Slurm starts it again" if now.can_requeue else ""


def _is_out_of_time(now: Situation) -> bool:
    return now.can_requeue and now.left_s is not None and now.left_s < now.margin_s


def failures_in_a_row(now: Situation) -> int:
    """Attempts up to this one that failed without a newer step saved; 0 if this one saved one.

    One that was told to end, or that left no word because its supervisor went with it, is Slurm's doing and does not count.
    """
    if now.step_after > now.step_before:
        return 0
    return now.failures + (not now.told_to_end and not now.lost)


def wait_s(failures: int) -> float:
    """Seconds before a restart: none after the first failure, then 10, 20, 40, ... up to five minutes."""
    return 0.0 if failures < 2 else min(300.0, 10.0 * 2 ** (failures - 2))


def largest(node_counts: list[int], available: int) -> int | None:
    """The most wanted number of nodes that is there; None if there are too few for any."""
    return next((count for count in node_counts if count <= available), None)


def pick(nodes: list[str], count: int, last_choice: set[str]) -> list[str]:
    """`count` of the `nodes`, those of `last_choice` only if the others do not suffice; in the order of the allocation."""
    ordered = [node for node in nodes if node not in last_choice] + [node for node in nodes if node in last_choice]
    chosen = set(ordered[:count])
    return [node for node in nodes if node in chosen]
