"""A task of srun becomes a rank, in the same process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from olmo_train.errors import ConfigError
from olmo_train.parallel.srun import rank_environment, tasks_per_node

ROOT = Path(__file__).parents[3]
TASK = {"SLURM_PROCID": "5", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_TASKS_PER_NODE": "4,3"}


def test_rank_and_sizes_come_from_slurm() -> None:
    assert rank_environment(TASK) == {"RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}


def test_a_step_on_a_part_of_the_job_counts_its_own_ranks() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    assert rank_environment(TASK | step)["WORLD_SIZE"] == "4"
    assert rank_environment(TASK | step)["LOCAL_WORLD_SIZE"] == "2"


@pytest.mark.parametrize(("text", "counts"), [("8", [8]), ("4(x3)", [4, 4, 4]), ("2(x2),1", [2, 2, 1])])
def test_slurms_short_form_of_tasks_is_understood(text: str, counts: list[int]) -> None:
    assert tasks_per_node(text) == counts


def test_without_srun_the_message_names_what_to_do() -> None:
    with pytest.raises(ConfigError, match="SLURM_PROCID, SLURM_NTASKS.* not set: start ranks with srun, as `olmo launch` does"):
        rank_environment({})


def task(folder: Path, script: str, shell: str = '"$@"') -> subprocess.CompletedProcess[str]:
    """Run `script` as the module of a task, through a shell that may close files first."""
    (folder / "module_of_a_rank.py").write_text(script)
    command = [sys.executable, "-m", "olmo_train.parallel.srun", "-m", "module_of_a_rank", "a", "b=1"]
    environment = os.environ | TASK | {"PYTHONPATH": f"{ROOT}:{folder}", "OLMO_ATTEMPT_DIR": str(folder), "MASTER_ADDR": "x"}
    return subprocess.run(["sh", "-c", shell, "sh", *command], env=environment, capture_output=True, text=True, timeout=120)


def test_the_module_runs_in_the_same_process_with_its_words(tmp_path: Path) -> None:
    script = "import os, sys\nprint(__name__, sys.argv[1:], os.environ['RANK'], 'MASTER_ADDR' in os.environ, os.getppid())"
    done = task(tmp_path, script, 'echo $$; exec "$@"')
    assert done.returncode == 0, done.stderr
    pid, line = done.stdout.splitlines()
    assert line.startswith("__main__ ['a', 'b=1'] 5 False")
    assert line.split()[-1] != pid  # no process between


def test_a_module_that_cannot_be_imported_leaves_word(tmp_path: Path) -> None:
    done = task(tmp_path, "import wonder_of_the_world")
    assert done.returncode == 1
    end = json.loads((tmp_path / "rank-00005.end.json").read_text())
    assert (end["kind"], end["message"]) == ("exception", "ModuleNotFoundError: No module named 'wonder_of_the_world'")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_standard_files_do_not_matter(tmp_path: Path, closed: str) -> None:
    script = f"f = open('{tmp_path}/first', 'w')\nf.write(str(f.fileno()))\nprint('hello')\nimport subprocess\nsubprocess.run(['true'], check=True)"
    done = task(tmp_path, script, f'exec "$@" {closed}')
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "first").read_text()) > 2


def test_words_without_a_module_are_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "olmo_train.parallel.srun", "train"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: expected -m MODULE ARGS, got train\n"
