"""Our torchrun: the ranks' exit status comes back, and signals reach the ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BEGIN = "import os, pathlib, signal, sys, time\nrank = int(os.environ['RANK'])\n"


def start(folder: Path, script: str) -> subprocess.Popen[str]:
    (folder / "ranks.py").write_text(BEGIN + script)
    command = [sys.executable, "-m", "olmo_train.parallel.torchrun", "--standalone", "--nproc-per-node=2", "ranks.py"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("sys.exit(0)", 0, ""),
        ("sys.exit('rank 1 has nothing to say' if rank == 1 else 0)", 1, "rank 1 has nothing to say\n"),
        ("sys.exit(75 if rank == 0 else time.sleep(60))", 75, ""),
        (
            "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)",
            128 + signal.SIGKILL,
            "error: rank 1 was ended by SIGKILL; the other ranks were stopped\n",
        ),
    ],
)
def test_the_status_is_that_of_the_first_rank_that_failed(tmp_path: Path, script: str, status: int, says: str) -> None:
    process = start(tmp_path, script)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    assert err == says


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_reach_the_ranks_and_their_end_is_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    script = f"""
got = []
signal.signal({int(number)}, lambda *_: got.append(1))
pathlib.Path(f"ready{{rank}}").touch()
while not got:
    time.sleep(0.01)
time.sleep(0.5)
pathlib.Path(f"saved{{rank}}").touch()
"""
    process = start(tmp_path, script)
    try:
        while len(list(tmp_path.glob("ready*"))) < 2 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert sorted(path.name for path in tmp_path.glob("saved*")) == ["saved0", "saved1"]
