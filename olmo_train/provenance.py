"""What produced a run: code, versions, hardware, command."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "hydra-core",
    "tokenizers",
    "safetensors",
    "flash-attn-4",
    "flash-attn",
    "quack-kernels",
    "megablocks",
    "torchao",
)


def provenance(n_ranks: int, device: torch.device) -> dict[str, Any]:
    """Facts about this start of a run, for provenance.json; no secrets, no environment."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        # The name is `olmo train`, two words, or that of a script; quoted as one it could not be pasted into a shell.
        "command": f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}",
        "git": git_state(),
        "python": platform.python_version(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "device": hardware,
        "n_ranks": n_ranks,
        "threads_per_rank": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit of this code, and whether files differ from it; None outside a checkout. A job's copy of the code says it beside."""
    root = Path(__file__).resolve().parent.parent
    if root.name == "code" and (root.parent / "code.json").is_file():
        told = json.loads((root.parent / "code.json").read_text())
        return {"commit": told["commit"], "has_changes": told["has_changes"]} if told["commit"] else None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "has_changes": bool(status.strip())}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
