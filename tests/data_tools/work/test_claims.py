"""Who works on a part: claims of the dead are taken over by one of those who wait, those of the living are not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_tools.work.claims import Claims

ELSEWHERE = json.dumps({"machine": "another", "pid": 1, "start": "7", "id": "x"})
TAKE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from data_tools.work.claims import Claims
assert Claims().take(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def take_at_last(claims: Claims, path: Path) -> bool:
    deadline = time.monotonic() + 30
    while not (taken := claims.take(path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return taken


@pytest.mark.parametrize("text", [ELSEWHERE, "", '{"machine": "half of', "[1]", "\udcff"])
def test_a_claim_that_another_machine_does_not_renew_is_taken_over(tmp_path: Path, text: str) -> None:
    path, claims = tmp_path / "a.claim", Claims(stale_s=0.05)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for second in range(5):  # its holder is slow, and lives
        os.utime(path, (second, second))
        assert not claims.take(path)
        time.sleep(0.06)
    assert take_at_last(claims, path)
    claims.release_all()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_ended_here_is_dead_even_if_its_parent_does_not_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.claim"
    with subprocess.Popen([sys.executable, "-c", TAKE_AND_DIE, str(path)]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays in the table of processes
        assert Path(f"/proc/{child.pid}/stat").exists()
        assert Claims().take(path)
    assert child.returncode == -signal.SIGKILL


def test_one_of_five_that_wait_takes_over(tmp_path: Path) -> None:
    before, everybody = set(threading.enumerate()), [Claims(stale_s=0) for _ in range(5)]
    for number in range(50):
        path = tmp_path / f"{number}.claim"
        path.write_text(ELSEWHERE)
        for claims in everybody:
            assert not claims.take(path)  # seen for the first time
        barrier, took = threading.Barrier(5), []

        def race(claims: Claims, path: Path = path, barrier: threading.Barrier = barrier, took: list[Claims] = took) -> None:
            barrier.wait()
            if claims.take(path):
                took.append(claims)

        threads = [threading.Thread(target=race, args=(claims,)) for claims in everybody]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(took) == 1
        took[0].release_all()
    assert list(tmp_path.iterdir()) == []
    for claims in everybody:
        claims.release_all()
    deadline = time.monotonic() + 60
    while (
        left := {thread for thread in threading.enumerate() if thread.name == "claims"} - before
    ) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left


def test_a_claim_that_was_taken_over_is_not_given_back_by_its_first_holder(tmp_path: Path) -> None:
    path, first = tmp_path / "a.claim", Claims()
    assert first.take(path)
    path.write_text(ELSEWHERE)
    first.release_all()
    assert path.read_text() == ELSEWHERE
