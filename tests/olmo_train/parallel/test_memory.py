"""Freed activations are used again instead of being faulted in anew."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from olmo_train.parallel.memory import keep_freed_memory

ROOT = Path(__file__).resolve().parents[3]
GLIBC = platform.libc_ver()[0] == "glibc"
CODE = """
import ctypes, os, resource, sys
from olmo_train.parallel.memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        block = libc.malloc(2**26)  # as torch asks for an activation of 64 MiB, and frees it after the operation
        ctypes.memset(block, 1, 2**26)
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(kept, os.environ.get("THP_MEM_ALLOC_ENABLE"), faults())
"""


def in_a_new_process(mode: str) -> list[str]:
    """Whether it was set, torch's variable, and page faults of ten allocations of 64 MiB."""
    env = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", CODE, mode], capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    return done.stdout.split()


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_large_blocks_are_faulted_in_once() -> None:
    kept, huge_pages, few = in_a_new_process("keep")
    assert (kept, huge_pages) == ("True", "1")
    _, _, many = in_a_new_process("leave")
    assert int(few) * 4 < int(many)


@pytest.mark.skipif(not GLIBC, reason="the settings are glibc's")
def test_a_choice_about_huge_pages_is_respected() -> None:
    code = (
        "import os; from olmo_train.parallel.memory import keep_freed_memory as f; print(f(), os.environ['THP_MEM_ALLOC_ENABLE'])"
    )
    env = os.environ | {"THP_MEM_ALLOC_ENABLE": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    assert done.stdout.split() == ["True", "0"]


def test_elsewhere_than_on_linux_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
