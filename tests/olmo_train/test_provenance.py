"""What a run says about its origin: true, complete, and without secrets."""

import importlib.metadata
import json
import platform
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from olmo_train.provenance import git_state, provenance

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def state_of_copy(folder: Path) -> Any:
    """`git_state` of the copy of the file in `folder`/olmo_train."""
    return runpy.run_path(str(folder / "olmo_train/provenance.py"))["git_state"]()


def test_it_names_the_commit_and_whether_the_code_differs_from_it(tmp_path: Path) -> None:
    (tmp_path / "olmo_train").mkdir()
    copy = tmp_path / "olmo_train/provenance.py"
    copy.write_bytes((ROOT / "olmo_train/provenance.py").read_bytes())
    assert state_of_copy(tmp_path) is None  # no checkout: an installed wheel
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not part of the code")
    assert state_of_copy(tmp_path) == {"commit": commit, "has_changes": False}
    copy.write_text(copy.read_text() + "# changed\n")
    assert state_of_copy(tmp_path) == {"commit": commit, "has_changes": True}


def test_its_facts_are_those_of_this_process() -> None:
    facts = json.loads(json.dumps(provenance(3, CPU)))
    assert facts["n_ranks"] == 3
    assert facts["python"] == platform.python_version()
    for package in ("torch", "numpy", "hydra-core", "tokenizers", "safetensors"):
        assert facts["versions"][package] == importlib.metadata.version(package)
    assert "no-such-package" not in facts["versions"]
    assert facts["threads_per_rank"] == torch.get_num_threads()
    assert facts["cuda"] == torch.version.cuda
    assert facts["device"]
    assert facts["git"] == git_state()


@pytest.mark.parametrize("program", ["olmo train", "/usr/lib/olmo_train/train.py"])
def test_the_command_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    words = ["run_name=x", "data.sources.a.path=shards/with a space", "model.moe={n_experts: 4}", "quote='"]
    monkeypatch.setattr(sys, "argv", [program, *words])
    command = provenance(1, CPU)["command"]
    assert shlex.split(command) == [*Path(program).name.split(), *words]
    assert command.startswith(("olmo train run_name=x", "train.py run_name=x"))


def test_it_holds_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "f00dfeed")
    assert "f00dfeed" not in json.dumps(provenance(1, CPU))
