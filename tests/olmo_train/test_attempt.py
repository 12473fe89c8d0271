"""What a rank leaves behind when it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from olmo_train.attempt import EndKind, RankEnd, blamed_nodes, end_of, first_failure, make_end, read_ends, write_end
from olmo_train.errors import (
    CheckpointError,
    ConfigError,
    CorruptionError,
    PeerError,
    RendezvousError,
    ShardError,
    StoppedBySignal,
    TrainingError,
    UnhealthyError,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (ConfigError("x"), EndKind.CONFIG, 2),
        (ShardError("x"), EndKind.CONFIG, 2),
        (CheckpointError("x"), EndKind.FAILED, 1),
        (TrainingError("x"), EndKind.FAILED, 1),
        (RendezvousError("x"), EndKind.FAILED, 1),
        (PeerError("x"), EndKind.PEER, 1),
        (UnhealthyError("x", ["a"]), EndKind.UNHEALTHY, 77),
        (CorruptionError("x", ["a"]), EndKind.CORRUPT, 78),
        (StoppedBySignal(), EndKind.STOPPED, 75),
        (KeyError("x"), EndKind.EXCEPTION, 1),
        (MemoryError(), EndKind.EXCEPTION, 1),
    ],
)
def test_every_error_has_its_kind_and_exit_status(error: BaseException, kind: EndKind, status: int) -> None:
    assert end_of(error) == (kind, status)


def test_an_end_carries_the_nodes_that_its_error_blames() -> None:
    end = make_end(UnhealthyError("the GPU miscounts", ["n3"]), rank=4, step=7)
    assert (end.rank, end.step, end.message, end.bad_nodes) == (4, 7, "the GPU miscounts", ["n3"])
    assert make_end(ConfigError("x"), 0).traceback == ""  # no bug of ours: the message says all
    assert make_end(ValueError("x"), 0).message == "ValueError: x"


def test_the_first_word_stays_and_files_cut_short_are_passed_over(tmp_path: Path) -> None:
    write_end(tmp_path, RankEnd(0, "a", EndKind.FAILED, 1, 3, "first"))
    write_end(tmp_path, RankEnd(0, "a", EndKind.COMPLETE, 0, 4))
    (tmp_path / "rank-00001.end.json").write_text('{"rank": 1, "node"')
    (end,) = read_ends(tmp_path)
    assert (end.kind, end.message) == (EndKind.FAILED, "first")


def test_the_failure_that_explains_the_others_is_found() -> None:
    ends = [
        RankEnd(0, "a", EndKind.PEER, 1, 3, order=1),
        RankEnd(1, "a", EndKind.EXCEPTION, 1, 3, order=3),
        RankEnd(2, "b", EndKind.EXCEPTION, 1, 3, order=2),
        RankEnd(3, "b", EndKind.COMPLETE, 0, 3),
    ]
    assert first_failure(ends) == ends[2]
    assert first_failure([ends[0], ends[3]]) == ends[0]
    assert first_failure([ends[3], RankEnd(4, "c", EndKind.STOPPED, 75, 3)]) is None


def hung(rank: int, node: str, *blames: str) -> RankEnd:
    return RankEnd(rank, node, EndKind.HUNG, 76, 3, bad_nodes=list(blames))


def test_a_node_that_was_cut_off_does_not_get_the_others_excluded() -> None:
    others = [hung(0, "a", "c"), hung(1, "b", "c"), hung(3, "d", "c")]
    assert blamed_nodes([*others, hung(2, "c", "a")]) == ["c"]
    assert blamed_nodes([hung(0, "a", "b"), hung(1, "b", "a")]) == ["b"]  # of two, rank 0's word counts
    assert blamed_nodes([hung(1, "b", "a"), hung(2, "c", "a"), hung(0, "a", "b", "c")]) == ["a"]
    assert blamed_nodes([hung(1, "b", "b"), hung(0, "a")]) == ["b"]  # one may blame itself, as by the health check
    assert blamed_nodes([hung(0, "a", "b", "c"), hung(3, "d", "b", "c")]) == ["b", "c"]
    assert blamed_nodes([]) == []


def rank(folder: Path, script: str) -> subprocess.Popen[str]:
    code = f"import sys\nfrom olmo_train.attempt import run_rank\nfrom olmo_train.errors import *\n{script}\nsys.exit(run_rank(main))"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OLMO_ATTEMPT_DIR": str(folder), "RANK": "0"}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("script", "status", "says", "kind"),
    [
        ("def main(argv): raise ConfigError('optim.lr=-1')", 2, "error: optim.lr=-1\n", "config"),
        ("def main(argv): raise PeerError('rank 3 failed')", 1, "error: rank 3 failed\n", "peer"),
        ("def main(argv): 1 / 0", 1, "ZeroDivisionError: division by zero\n", "exception"),
        # a thread that never ends, as those of a process group whose members are gone, holds nobody up
        (
            "import threading\ndef main(argv):\n threading.Thread(target=threading.Event().wait).start()\n 1 / 0",
            1,
            "by zero\n",
            "exception",
        ),
    ],
)
def test_a_rank_that_fails_leaves_word_and_ends(tmp_path: Path, script: str, status: int, says: str, kind: str) -> None:
    process = rank(tmp_path, script)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err[-len(says) :]) == (status, says)
    assert json.loads((tmp_path / "rank-00000.end.json").read_text())["kind"] == kind


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_begins_is_a_stop(tmp_path: Path, number: signal.Signals) -> None:
    process = rank(tmp_path, "import time\ndef main(argv):\n print('ready', flush=True)\n time.sleep(60)")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(60) == 75
    assert json.loads((tmp_path / "rank-00000.end.json").read_text())["kind"] == "stopped"


def test_a_signal_to_a_rank_that_ends_with_an_error_changes_nothing(tmp_path: Path) -> None:
    script = "import os\nos.environ['RANK'] = '1'\ndef main(argv):\n print('ready', flush=True)\n raise ConfigError('x')"
    process = rank(tmp_path, script)
    assert process.stdout is not None
    process.stdout.readline()
    path = tmp_path / "rank-00001.end.json"
    while not path.exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGTERM)  # it waits for rank 0 to tell
    assert process.wait(60) == 2
