"""Who is stuck and who is only slow, decided on heartbeats alone."""

import socket

import pytest

from olmo_train.config.faults import FaultsConfig
from olmo_train.parallel.judgement import AwakeClock, RankState, Trouble, find_trouble, knock, tell_hang

FAULTS = FaultsConfig(hang_s=300.0, hang_at_start_s=1800.0, silent_s=60.0)


def ranks(n: int = 4, phase: str = "step", step: int = 10, steps_done: int = 9, **values: object) -> list[RankState]:
    return [RankState(rank, f"n{rank // 2}", phase=phase, step=step, steps_done=steps_done, **values) for rank in range(n)]  # type: ignore[arg-type]


def find(states: list[RankState], now: float, answer: str = "stalled") -> Trouble | None:
    return find_trouble(states, now, FAULTS, lambda asked: [answer for _ in asked])


def alive(states: list[RankState], now: float) -> list[RankState]:
    for state in states:
        state.heard = now
    return states


def test_a_rank_that_says_nothing_is_trouble_after_silent_s() -> None:
    states = alive(ranks(), 61.0)
    states[2].heard = 0.0
    assert find(states, 59.0) is None
    trouble = find(states, 61.0)
    assert trouble is not None
    assert (trouble.kind, trouble.ranks) == ("silent", [2])
    assert "no sign of life for 60 s (faults.silent_s): rank 2 on n1 is there but does nothing" in trouble.message


@pytest.mark.parametrize("phase", ["start", "eval", "save", "end"])
def test_a_process_that_is_there_may_be_silent_for_longer_where_work_may_hold_the_lock(phase: str) -> None:
    states = alive(ranks(phase=phase), 299.0)
    states[1].heard = 0.0
    assert find(states, 299.0, "stalled") is None
    assert find(states, 299.0, "unreachable") is not None
    assert find(alive(states, 0.0), 301.0, "stalled") is not None


def test_a_first_step_that_compiles_may_take_long_and_hold_the_lock() -> None:
    states = alive(ranks(step=1, steps_done=1), 0.0)
    assert find(states, 299.0) is None  # not a word: a compiler may hold the interpreter's lock
    assert find(states, 301.0) is not None
    assert find(alive(states, 1799.0), 1799.0) is None  # signs of life and no progress
    assert find(alive(states, 1801.0), 1801.0) is not None


def test_no_progress_of_any_rank_is_a_hang_after_hang_s() -> None:
    states = alive(ranks(), 301.0)
    assert find(states, 299.0) is None
    trouble = find(states, 301.0)
    assert trouble is not None
    assert trouble.kind == "hung"
    assert trouble.message == "no progress for 300 s (faults.hang_s) around step 10"


def test_a_rank_that_still_saves_or_evaluates_holds_off_the_verdict_on_those_that_wait_for_it() -> None:
    states = alive(ranks(), 1000.0)
    states[0].phase = "save"
    assert find(states, 1000.0) is None
    states[0].phase, states[0].since = "step", 900.0
    assert find(states, 1000.0) is None


def test_a_machine_with_slow_steps_gets_more_time_for_them() -> None:
    state = RankState(0, "a")
    for i in range(6):
        state.progress("step", i + 1, i + 1, now=200.0 * i)
    assert state.longest_s == 200.0
    assert state.hang_limit(FAULTS) == 1000.0


def test_steps_that_compile_do_not_lengthen_the_limit() -> None:
    state = RankState(0, "a")
    for i, now in enumerate([0.0, 1500.0, 1600.0, 1601.0, 1602.0]):
        state.progress("step", i + 1, i + 1, now)
    assert state.hang_limit(FAULTS) == 300.0


def test_heartbeats_without_progress_do_not_count_as_progress() -> None:
    state = RankState(0, "a")
    state.progress("step", 3, 7, now=5.0)
    state.progress("step", 3, 7, now=50.0)
    assert state.since == 5.0


def test_a_suspended_machine_ages_nobody() -> None:
    times = iter([0.0, 0.25, 0.5, 4000.0, 4000.25])
    clock = AwakeClock(60.0, lambda: next(times))
    assert [clock.now() for _ in range(4)] == [0.25, 0.5, 2.5, 2.75]


def test_a_node_is_bad_if_it_does_not_answer_and_none_of_its_ranks_lives() -> None:
    states = ranks(6)
    whole_node = Trouble("silent", [2, 3], "", nodes_gone=("n1", "n1"))
    assert whole_node.bad_nodes(states) == ["n1"]
    assert Trouble("silent", [2], "", nodes_gone=("n1",)).bad_nodes(states) == []
    assert Trouble("hung", [0, 1], "").bad_nodes(states) == []


def test_a_process_that_is_gone_from_a_living_node_does_not_blame_the_node() -> None:
    states = alive(ranks(), 100.0)
    states[2].heard = states[3].heard = 0.0
    trouble = find(states, 100.0, "refused")
    assert trouble is not None
    assert trouble.bad_nodes(states) == []
    trouble = find(states, 100.0, "unreachable")
    assert trouble is not None
    assert trouble.bad_nodes(states) == ["n1"]


HUNG = Trouble("hung", [0, 1, 2, 3], "no progress")


def test_the_rank_that_does_not_wait_for_others_is_the_suspect() -> None:
    states = ranks(where="distributed_c10d.py:1 all_reduce", waits=True)
    states[2].where, states[2].waits = "loader.py:5 read", False
    assert "suspect: rank 2 on n1 does not wait for others, in step at loader.py:5 read" in tell_hang(HUNG, states)
    assert "3 of 4 ranks at distributed_c10d.py:1 all_reduce" in tell_hang(HUNG, states)


def test_the_rank_that_is_behind_is_the_suspect() -> None:
    states = ranks(where="x", waits=True)
    states[3].step = 9
    assert "suspect: rank 3 on n1 is behind, at step 9 of 10, in step" in tell_hang(HUNG, states)


def test_the_rank_that_cannot_say_where_it_stands_is_the_suspect() -> None:
    states = ranks(where="x", waits=True)
    states[1].where = ""
    assert "suspect: rank 1 on n0 could not say where it stands" in tell_hang(HUNG, states)


def test_where_all_wait_for_all_the_message_says_so() -> None:
    assert "every rank waits for the others" in tell_hang(HUNG, ranks(where="x", waits=True))


def test_the_kernel_tells_a_process_that_stands_still_from_one_that_is_gone() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    gone = socket.create_server(("127.0.0.1", 0))
    address = gone.getsockname()
    gone.close()
    there, away = RankState(0, "a", listening.getsockname()), RankState(1, "a", address)
    assert knock([there, away, there]) == ["stalled", "refused", "stalled"]
    listening.close()
