"""quack-kernels outside a folder named site-packages: a package of its layout, since quack itself needs CUDA's libraries."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from olmo_train.kernels import quack_library


@pytest.fixture
def forget() -> Iterator[None]:
    """Find and leave no trace of quack, or of its absence."""
    quack_library._know_the_folder.cache_clear()
    yield
    quack_library._know_the_folder.cache_clear()
    for name in [n for n in sys.modules if n.split(".")[0] in ("quack", "fake_cutlass")]:
        del sys.modules[name]


def install(folder: Path) -> None:
    (folder / "quack/gemm_runtime").mkdir(parents=True)
    (folder / "quack/__init__.py").write_text("")
    (folder / "quack/gemm_runtime/__init__.py").write_text("")
    (folder / "quack/gemm_runtime/identity.py").write_text(
        "def _is_extern_function(fn):\n    return 'site-packages' in fn.__code__.co_filename\n"
    )
    (folder / "quack/gemm_interface.py").write_text("def epilogue(): pass\n")
    (folder / "fake_cutlass.py").write_text("def with_a_logger(): pass\n")


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("folder", ["target", "lib/site-packages"])
def test_neighbours_of_quack_count_as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    install(tmp_path / folder)
    monkeypatch.syspath_prepend(str(tmp_path / folder))
    interface = quack_library.quack_module("gemm_interface")
    is_extern = sys.modules["quack.gemm_runtime.identity"]._is_extern_function
    import fake_cutlass

    assert is_extern(fake_cutlass.with_a_logger)
    assert is_extern(interface.epilogue) == (folder != "target")  # quack's own module asks before it comes to the path
    assert not is_extern(install)


@pytest.mark.usefixtures("forget")
def test_without_quack_the_import_error_is_pythons() -> None:
    with pytest.raises(ModuleNotFoundError, match="quack"):
        quack_library.quack_module("gemm_interface")
