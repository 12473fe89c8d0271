"""Two supervisors: one gives signs of life, the other waits until they end."""

import json
import threading
import time
from pathlib import Path

from launch.guard import FILE, Heart, read, wait_for_silence


def test_a_guard_waits_while_there_are_signs_of_life_and_not_longer(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0.2)
    found: list[str | None] = []
    guard = threading.Thread(target=lambda: found.append(wait_for_silence(tmp_path, 5.0)), daemon=True)
    guard.start()
    guard.join(8.0)
    assert found == []
    heart.pause()
    guard.join(60.0)
    node = json.loads((tmp_path / FILE).read_text())["node"]
    assert found == [node]


def test_whoever_claims_later_works_and_the_other_learns_it(tmp_path: Path) -> None:
    first = Heart(tmp_path, 0.1)
    second = Heart(tmp_path, 0.1)
    assert second.confirm()
    deadline = time.monotonic() + 60
    while first.is_mine and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not first.is_mine
    assert read(tmp_path / FILE)["who"] == second.me  # type: ignore[index]
    assert not first.confirm()


def test_one_that_is_silent_learns_of_a_claim_too(tmp_path: Path) -> None:
    first = Heart(tmp_path, 1000.0)
    first.pause()
    assert first.check()
    Heart(tmp_path, 1000.0)
    assert not first.check()


def test_a_file_that_is_absent_or_cut_short_is_no_sign_of_life(tmp_path: Path) -> None:
    assert read(tmp_path / FILE) is None
    (tmp_path / FILE).write_text('{"who": ')
    assert read(tmp_path / FILE) is None
    assert wait_for_silence(tmp_path, 0.3) == "an unknown node"


def test_a_guard_leaves_when_another_supervisor_works_which_has_its_own(tmp_path: Path) -> None:
    Heart(tmp_path, 1000.0)
    found: list[str | None] = []
    guard = threading.Thread(target=lambda: found.append(wait_for_silence(tmp_path, 60.0)), daemon=True)
    guard.start()
    time.sleep(0.5)
    Heart(tmp_path, 1000.0)
    guard.join(30.0)
    assert found == [None]
