"""Real ranks that die, hang, stop or fail: all end in seconds, and what they leave says who began."""

import ctypes
import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from olmo_train.attempt import EndKind, first_failure, read_ends, stacks_path
from olmo_train.errors import EXIT_HUNG, TrainingError
from olmo_train.parallel.rendezvous import FILE, Meeting
from olmo_train.parallel.watchdog import Watchdog, is_of_communication, where_it_stands
from tests.distributed import RankError, collect, start
from tests.olmo_train.parallel.watched_ranks import FAULTS, PATIENCE_S, run, watched


def fail(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        raise KeyError("the cause")


def test_an_exception_on_one_rank_ends_all_in_seconds_and_is_the_first_error(tmp_path: Path) -> None:
    began = time.monotonic()
    results, ends = run(tmp_path, fail)
    assert time.monotonic() - began < PATIENCE_S  # a collective would wait for 30 minutes
    assert "the cause" in str(results[1])
    assert (ends[1].kind, ends[1].order, ends[1].step) == (EndKind.EXCEPTION, 1, 4)
    assert "KeyError: 'the cause'" in ends[1].traceback
    for rank in (0, 2):
        assert ends[rank].kind == EndKind.PEER
        assert ends[rank].message == "rank 1 on n1 failed: KeyError: 'the cause'"
    assert first_failure(list(ends.values())) == ends[1]
    assert not list(tmp_path.glob("*.stacks.txt"))


def fail_while_others_do_not_listen(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        raise TrainingError("loss is not finite")
    threading.Event().wait()


def test_ranks_that_wait_for_ever_end_too_when_another_fails(tmp_path: Path) -> None:
    results, ends = run(tmp_path, fail_while_others_do_not_listen)
    assert [ends[rank].kind for rank in range(3)] == [EndKind.PEER, EndKind.FAILED, EndKind.PEER]
    assert "killed" in str(results[0])  # ended by its watchdog, without a result


def fail_alike(_rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    raise TrainingError("all find the same")


def test_an_error_that_all_ranks_find_is_every_ranks_own(tmp_path: Path) -> None:
    results, ends = run(tmp_path, fail_alike)
    assert all("all find the same" in str(result) for result in results)
    assert sorted(end.order or 0 for end in ends.values()) == [1, 2, 3]
    assert {end.kind for end in ends.values()} == {EndKind.FAILED}


def die(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def test_a_killed_rank_is_known_at_once_by_ranks_that_are_not_in_a_collective(tmp_path: Path) -> None:
    _, ends = run(tmp_path, die)
    assert sorted(ends) == [0, 1]
    message = "rank 2 on n2 ended without a word: killed, or out of memory"
    assert [(end.kind, end.message, end.bad_nodes) for end in ends.values()] == [(EndKind.PEER, message, [])] * 2


def die_first(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()


def test_when_rank_0_is_killed_the_others_say_so(tmp_path: Path) -> None:
    _, ends = run(tmp_path, die_first)
    assert sorted(ends) == [1, 2]
    assert {end.message for end in ends.values()} == {"rank 0 on n0 ended without a word: killed, or out of memory"}


def wait_for_ever(rank: int, watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        watchdog.beat("data", 5)
        threading.Event().wait()


def test_a_rank_that_waits_for_ever_is_named_with_the_stacks_of_all(tmp_path: Path) -> None:
    results, ends = run(tmp_path, wait_for_ever)
    assert all(isinstance(result, RankError) for result in results)
    for end in ends.values():
        assert (end.kind, end.exit_status, end.bad_nodes) == (EndKind.HUNG, EXIT_HUNG, [])
        assert "no progress for 3 s (faults.hang_s) around step 5" in end.message
        assert "suspect: rank 1 on n1 does not wait for others, in data at " in end.message
        assert "wait_for_ever" in end.message
    assert "wait_for_ever" in stacks_path(tmp_path, 1).read_text()
    assert "all_reduce" in stacks_path(tmp_path, 0).read_text()
    assert "all_reduce" in stacks_path(tmp_path, 2).read_text()


def hold_the_lock(rank: int, watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        watchdog.beat("data", 5)
        time.sleep(1)  # until a heartbeat has told
        ctypes.PyDLL(None).sleep(1000)


def backtrack(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        re.match(r"(a+)+$", "a" * 60 + "b")


def stand_still(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("act", [hold_the_lock, backtrack])
def test_a_rank_that_holds_pythons_lock_for_ever_is_named_and_its_stack_is_there(tmp_path: Path, act: object) -> None:
    _, ends = run(tmp_path, act, stuck=1)  # type: ignore[arg-type]
    assert sorted(ends) == [0, 2]
    for end in ends.values():
        assert end.kind == EndKind.HUNG
        assert "no sign of life for 2 s (faults.silent_s): rank 1 on n1 is there but does nothing" in end.message
    assert act.__name__ in stacks_path(tmp_path, 1).read_text()  # type: ignore[attr-defined]


def test_a_stopped_rank_is_named(tmp_path: Path) -> None:
    _, ends = run(tmp_path, stand_still, stuck=1)
    assert sorted(ends) == [0, 2]
    assert "rank 1 on n1 is there but does nothing" in ends[0].message
    assert ends[0].bad_nodes == ["n1"]


def stand_still_first(rank: int, _watchdog: Watchdog, _meeting: Meeting) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGSTOP)


def test_when_rank_0_is_stopped_the_others_find_out_by_themselves(tmp_path: Path) -> None:
    _, ends = run(tmp_path, stand_still_first, stuck=0)
    assert sorted(ends) == [1, 2]
    assert "rank 0 on n0 is there but does nothing" in ends[1].message
    assert "all_reduce" in stacks_path(tmp_path, 1).read_text()


PATIENT = replace(FAULTS, hang_s=6.0)


def be_slow(rank: int, watchdog: Watchdog, _meeting: Meeting) -> None:
    watchdog.beat("eval" if rank else "save", 5)
    time.sleep(PATIENT.hang_s + 1)
    if rank == 2:
        ctypes.PyDLL(None).sleep(int(PATIENT.hang_s / 2))  # compiles, with the lock held: longer than silent_s


def test_long_evaluations_saves_and_compilations_are_no_hang(tmp_path: Path) -> None:
    results, ends = run(tmp_path, be_slow, faults=PATIENT)
    assert results == [0.0] * 3
    assert ends == {}


def test_a_rank_that_has_finished_may_take_its_time(tmp_path: Path) -> None:
    results, ends = run(tmp_path, finish_and_be_slow)
    assert results == [0.0] * 3
    assert {end.kind for end in ends.values()} == {EndKind.COMPLETE}


def go_on_for_a_while(rank: int, watchdog: Watchdog, meeting: Meeting) -> None:
    Path(os.environ["OLMO_ATTEMPT_DIR"], f"pid{rank}").write_text(str(os.getpid()))
    meeting.store.wait(["resumed"])
    watchdog.beat("step", 6)


def test_a_job_that_is_suspended_and_resumed_goes_on(tmp_path: Path) -> None:
    ranks = start(watched, 3, tmp_path, go_on_for_a_while)
    deadline = time.monotonic() + PATIENCE_S
    while len(list(tmp_path.glob("pid*"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in ranks:
            os.kill(rank.process.pid, number)
        if number == signal.SIGSTOP:
            time.sleep(3 * FAULTS.silent_s)  # the time that passes is what is tested
    place = json.loads((tmp_path / FILE).read_text())
    store = dist.TCPStore("127.0.0.1", place["store_port"], is_master=False, wait_for_workers=False)
    dist.PrefixStore("ranks", store).set("resumed", "")
    assert collect(ranks) == [0.0] * 3
    assert read_ends(tmp_path) == []


def finish_and_be_slow(_rank: int, watchdog: Watchdog, _meeting: Meeting) -> None:
    watchdog.beat("end", 5)
    watchdog.finish(EndKind.COMPLETE)
    time.sleep(FAULTS.hang_s + 2)


def test_only_errors_that_another_ranks_end_can_cause_may_be_echoes() -> None:
    assert is_of_communication(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer"))
    assert not is_of_communication(RuntimeError("CUDA out of memory"))
    assert not is_of_communication(ValueError("Connection"))


def test_where_a_thread_stands_is_told_by_its_innermost_frame() -> None:
    assert where_it_stands(None) == ("no Python frame", False)
    place, waits = where_it_stands(sys._getframe())
    assert "parallel/test_watchdog.py" in place
    assert not waits
