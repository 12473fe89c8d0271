"""What a supervisor asks Slurm of its allocation."""

from pathlib import Path

import pytest

from launch.allocation import Allocation
from launch.job_folder import Job
from launch.slurm import SlurmError
from tests.launch.sites import only_tools, put_tool


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Allocation:
    """Of nodes n1, where this runs, and n2."""
    tools = only_tools(tmp_path, monkeypatch)
    put_tool(tools, "squeue", "echo 'n[1-2]|59:00'")
    put_tool(tools, "scontrol", "echo n1; echo n2")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    return Allocation("7", Job("run", str(tmp_path), "train", []), tmp_path)


def sinfo(folder: Path, *lines: str) -> None:
    put_tool(folder / "tools", "sinfo", "\n".join(f"echo '{line}'" for line in lines))


def test_a_lost_node_is_left_out(site: Allocation, tmp_path: Path) -> None:
    sinfo(tmp_path, "n1|allocated", "n2|down*")
    assert site.look() == (["n1"], 3540)


def test_a_controller_that_has_not_heard_of_this_node_yet_is_not_believed_of_others(site: Allocation, tmp_path: Path) -> None:
    sinfo(tmp_path, "n1|allocated*", "n2|allocated*")
    with pytest.raises(SlurmError, match="Slurm calls n1 down, from where this is asked"):
        site.look()
