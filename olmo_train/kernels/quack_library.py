"""quack-kernels, wherever it is installed."""

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any


def quack_module(name: str) -> ModuleType:
    """`quack.<name>`, imported at first use: it brings CUTLASS with it.

    quack fingerprints the functions of its epilogues, and stops at those of other installed packages, which it knows by
    `site-packages` in their path. Installed elsewhere (`pip install --target`), it walks on into CUTLASS, meets a logger, and
    every fused GEMM fails with "no fail-closed semantic key" (0.6.5, quack/gemm_runtime/identity.py). Then what lies in the
    same folder as quack is told to be installed.
    """
    _know_the_folder()
    return importlib.import_module(f"quack.{name}")


@functools.cache
def _know_the_folder() -> None:
    try:
        identity: Any = importlib.import_module("quack.gemm_runtime.identity")
        is_extern = identity._is_extern_function
    except (ImportError, AttributeError):  # another version, which may not need it; the self-check of the backends will tell
        return
    folder = str(Path(identity.__file__).parents[2])
    if "site-packages" in folder or "dist-packages" in folder:
        return

    def is_installed(function: Any) -> bool:
        code, module = getattr(function, "__code__", None), getattr(function, "__module__", None) or ""
        is_ours = module == "quack" or module.startswith("quack.")
        return bool(is_extern(function) or (code is not None and not is_ours and code.co_filename.startswith(folder)))

    identity._is_extern_function = is_installed
