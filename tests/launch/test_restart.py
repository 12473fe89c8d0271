"""What follows the end of an attempt: a table of situations."""

from dataclasses import replace

import pytest

from launch.restart import Action, Decision, Situation, decide, failures_in_a_row, largest, pick, wait_s
from olmo_train.attempt import EndKind, RankEnd
from olmo_train.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USAGE


def ends(*kinds: EndKind | None) -> list[RankEnd]:
    """Ends of ranks 0, 1, ...; None: left no word."""
    return [RankEnd(rank, f"node{rank}", kind, 1, 7, "why") for rank, kind in enumerate(kinds) if kind is not None]


C, P, S, X, H, PEER = (
    EndKind.COMPLETE,
    EndKind.PAUSED,
    EndKind.STOPPED,
    EndKind.EXCEPTION,
    EndKind.HUNG,
    EndKind.PEER,
)
FAILED = Situation(ends(PEER, None), step_before=10, step_after=20, n_nodes=2, node_counts=[2, 1])
NO_PROGRESS = replace(FAILED, step_after=10)


@pytest.mark.parametrize(
    ("now", "action", "status", "words"),
    [
        (replace(FAILED, ends=ends(C, C)), Action.FINISHED, 0, "complete"),
        (replace(FAILED, ends=ends(P, P)), Action.FINISHED, 0, "stop_at_step"),
        # rank 0 saves: what happens to others after it said so takes nothing away
        (replace(FAILED, ends=ends(C, None)), Action.FINISHED, 0, "complete"),
        (replace(FAILED, ends=ends(C, X)), Action.FINISHED, 0, "complete"),
        # and without its word nothing is complete
        (replace(FAILED, ends=ends(None, C)), Action.AGAIN, 0, "progress"),
        (replace(FAILED, ends=ends(X, C)), Action.AGAIN, 0, "progress"),
        (replace(FAILED, ends=ends(S, S)), Action.REQUEUE, EXIT_STOPPED, "a signal"),
        # a rank died without a word before anything was saved, and its launcher stopped the others
        (replace(NO_PROGRESS, ends=ends(S, None), n_silent=1), Action.AGAIN, 0, "restart 1 of 3"),
        (replace(NO_PROGRESS, ends=ends(S, None), n_silent=1, failures=3), Action.END, EXIT_FAILED, "4 attempts in a row"),
        (replace(FAILED, ends=ends(S, S), cancelled=True), Action.END, EXIT_STOPPED, "olmo cancel"),
        (replace(FAILED, ends=ends(S, S), can_requeue=False), Action.END, EXIT_STOPPED, "the same command goes on"),
        # scancel sends SIGTERM, and the ranks save; near the time limit it is the time limit's
        (replace(FAILED, ends=ends(S, S), told_to_end=True), Action.END, EXIT_STOPPED, "told to end (SIGTERM), and it has saved"),
        (replace(FAILED, ends=ends(S, S), told_to_end=True, left_s=600.0), Action.END, EXIT_STOPPED, "told to end (SIGTERM)"),
        (replace(FAILED, ends=ends(S, S), told_to_end=True, left_s=3.0), Action.REQUEUE, EXIT_STOPPED, "a signal"),
        (replace(FAILED, ends=ends(C, C), cancelled=True), Action.FINISHED, 0, "complete"),
        (replace(FAILED, cancelled=True), Action.END, EXIT_STOPPED, "olmo cancel"),
        (replace(FAILED, ends=ends(EndKind.CONFIG, EndKind.CONFIG)), Action.END, EXIT_USAGE, "would end alike"),
        # the config error is what explains the peers
        (replace(FAILED, ends=ends(PEER, EndKind.CONFIG)), Action.END, EXIT_USAGE, "would end alike"),
        (FAILED, Action.AGAIN, 0, "it had saved up to step 20"),
        (replace(FAILED, ends=[]), Action.AGAIN, 0, "progress"),
        (replace(FAILED, ends=ends(H, H)), Action.AGAIN, 0, "progress"),
        (replace(FAILED, ends=ends(EndKind.UNHEALTHY, PEER)), Action.AGAIN, 0, "progress"),
        (NO_PROGRESS, Action.AGAIN, 0, "restart 1 of 3"),
        (replace(NO_PROGRESS, failures=2), Action.AGAIN, 0, "restart 3 of 3"),
        (replace(NO_PROGRESS, failures=3), Action.END, EXIT_FAILED, "4 attempts in a row failed"),
        (replace(FAILED, failures=3), Action.AGAIN, 0, "progress"),
        (replace(NO_PROGRESS, max_failures=0), Action.END, EXIT_FAILED, "max_failures=0"),
        # a damaged step was set aside: fewer steps than before are no progress
        (replace(NO_PROGRESS, step_after=5, failures=3), Action.END, EXIT_FAILED, "saved no newer step"),
        (replace(FAILED, n_nodes=1), Action.AGAIN, 0, "progress"),
        (replace(FAILED, n_nodes=1, node_counts=[2]), Action.REQUEUE, EXIT_STOPPED, "1 nodes can be used and the run needs 2"),
        (replace(FAILED, n_nodes=0, can_requeue=False), Action.END, EXIT_FAILED, "0 nodes can be used and the run needs 1"),
        (replace(FAILED, left_s=60.0), Action.REQUEUE, EXIT_STOPPED, "only 60 s of the time limit"),
        (replace(FAILED, left_s=600.0), Action.AGAIN, 0, "progress"),
        (replace(FAILED, told_to_end=True, left_s=600.0), Action.END, EXIT_STOPPED, "told to end"),
        (replace(FAILED, told_to_end=True, left_s=3.0), Action.REQUEUE, EXIT_STOPPED, "before the ranks had saved"),
        (replace(FAILED, told_to_end=True), Action.END, EXIT_STOPPED, "told to end"),
        # Slurm took the nodes away three times before a step was saved: not the run's failure
        (replace(NO_PROGRESS, ends=[], lost=True, failures=3), Action.AGAIN, 0, "went with their supervisor"),
        (replace(NO_PROGRESS, ends=[], lost=True, failures=4), Action.END, EXIT_FAILED, "saved no newer step"),
    ],
)  # fmt: skip
def test_what_follows(now: Situation, action: Action, status: int, words: str) -> None:
    decision = decide(now)
    assert (decision.action, decision.exit_status) == (action, status)
    assert words in decision.why


def test_nothing_but_a_finished_run_ends_with_zero() -> None:
    for kind in [None, *EndKind]:
        for more in ({}, {"cancelled": True}, {"told_to_end": True}, {"can_requeue": False}, {"failures": 9}, {"n_nodes": 0}):
            decision = decide(replace(NO_PROGRESS, ends=ends(kind, PEER), **more))  # type: ignore[arg-type]
            if decision.action in (Action.END, Action.REQUEUE):
                assert decision.exit_status != 0, (kind, more)
            assert (decision.action is Action.FINISHED) == (kind in (C, P)), (kind, more)


def test_a_run_that_never_saves_ends_after_the_allowed_restarts() -> None:
    failures, n_attempts = 0, 0
    decision = Decision(Action.AGAIN, "")
    while decision.action is Action.AGAIN:
        now = replace(NO_PROGRESS, failures=failures, max_failures=3)
        decision, failures, n_attempts = decide(now), failures_in_a_row(now), n_attempts + 1
    assert (n_attempts, decision.action) == (4, Action.END)


def test_waiting_grows_with_failures_and_not_at_once() -> None:
    assert [wait_s(failures) for failures in (0, 1, 2, 3, 4, 99)] == [0, 0, 10, 20, 40, 300]
    assert decide(NO_PROGRESS).wait_s == 0
    assert decide(replace(NO_PROGRESS, failures=1)).wait_s == 10


def test_as_many_nodes_as_the_run_allows_are_used() -> None:
    assert [largest([4, 2, 1], available) for available in (5, 4, 3, 2, 1, 0)] == [4, 4, 2, 2, 1, None]
    assert decide(replace(FAILED, n_nodes=3, node_counts=[4, 2])).n_nodes == 2


def test_suspects_are_the_last_choice_and_order_stays() -> None:
    nodes = ["n1", "n2", "n3", "n4"]
    assert pick(nodes, 2, set()) == ["n1", "n2"]
    assert pick(nodes, 3, {"n2"}) == ["n1", "n3", "n4"]
    assert pick(nodes, 3, {"n2", "n1"}) == ["n1", "n3", "n4"]
