"""Sites and stand-ins for Slurm's tools, for tests of launching."""

import os
import sys
from pathlib import Path

import pytest

SITE = {
    "gpus_per_node": "0",
    "ranks_per_node": "1",
    "cpus_per_rank": "1",
    "environment": f"{{kind: none, python: {sys.executable}}}",
}
GPU_SITE = {
    "gpus_per_node": "8",
    "gpu_memory_gib": "78",
    "cpus_per_rank": "12",
    "environment": f"{{kind: none, python: {sys.executable}}}",
}


def write_site(folder: Path, base: dict[str, str] = SITE, **values: str | None) -> Path:
    """A site's file: the lines of `base` with `values` in place; None leaves a line out."""
    lines = {**base, **values}
    path = folder / "site.yaml"
    path.write_text("".join(f"{name}: {value}\n" for name, value in lines.items() if value is not None))
    return path


def put_tool(folder: Path, name: str, script: str) -> None:
    """A program on PATH that answers as one of Slurm's would."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(0o755)


def only_tools(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new PATH that has the system's programs, but none of Slurm's; returns the folder to put some in."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("bash", "cat", "sleep", "git", "env", "sed"):
        found = next((Path(part, name) for part in os.environ["PATH"].split(":") if Path(part, name).exists()), None)
        if found is not None:
            (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    return tools
