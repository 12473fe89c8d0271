"""The house rules, as a test: who may import whom. Read FLOORS before adding an import."""

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("olmo_train", "data_tools", "checkpoints", "launch")

# A file may import from strictly lower floors, and within its own folder.
FLOORS = [
    {
        "olmo_train.code",
        "olmo_train.conversion",
        "olmo_train.errors",
        "olmo_train.files",
        "olmo_train.rng",
        "olmo_train.step_folder",
    },
    {
        "olmo_train.attempt",
        "olmo_train.config",
        "olmo_train.schema",
        "olmo_train.tokenizer",
        "olmo_train.checkpoint",
        "olmo_train.fence",
        "olmo_train.journal",
        "olmo_train.kernels",
    },
    {
        "olmo_train.model",
        "olmo_train.data",
        "olmo_train.optim",
        "olmo_train.parallel",
        "olmo_train.problems",
        "olmo_train.provenance",
        "olmo_train.changes",
        "olmo_train.staging",
        "olmo_train.cli",
    },
    {
        "olmo_train.metrics",
        "olmo_train.evaluate",
        "olmo_train.downstream",
        "olmo_train.saver",
        "olmo_train.drill",
        "data_tools",
        "launch",
    },
    {"olmo_train.train_step", "olmo_train.resume", "checkpoints"},
    {"olmo_train.mirror", "olmo_train.run_folder", "olmo_train.checkups"},
    {"olmo_train.trainer"},
    {"olmo_train.train"},
]
# No torch is needed to look at a shard, a config or a job script; these import only each other.
TORCH_FREE = (
    "olmo_train.code", "olmo_train.conversion", "olmo_train.errors", "olmo_train.files", "olmo_train.step_folder", "olmo_train.attempt", "olmo_train.config", "olmo_train.schema", "olmo_train.tokenizer", "olmo_train.problems", "olmo_train.changes", "olmo_train.cli",
    "olmo_train.data", "olmo_train.model.size", "olmo_train.model.shapes", "olmo_train.model.activations", "olmo_train.model.memory", "olmo_train.model.recipes", "data_tools", "launch",
)  # fmt: skip

FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if p.name != "__init__.py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@functools.cache
def imports(path: Path) -> set[str]:
    """Every name that `path` imports, wherever in the file the import stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports absolutely"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def place(name: str) -> tuple[int, str] | None:
    """(floor, room) of a module of ours, or of a name in it; None for everyone else's."""
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            if f"{name}.".startswith(f"{room}."):
                return floor, room
    return None


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_run_downward(path: Path) -> None:
    module = module_of(path)
    here = place(module)
    assert here, f"{module} has no floor: add it to FLOORS"
    for name in imports(path):
        target = place(name)
        if target and target[1] != here[1]:
            assert target[0] < here[0], f"{module} (floor {here[0]}) imports {name} (floor {target[0]})"
        if f"{module}.".startswith(tuple(f"{room}." for room in TORCH_FREE)):
            ours = name.split(".")[0] in PACKAGES
            assert name.split(".")[0] != "torch", f"{module} must not need torch, imports {name}"
            assert not ours or name.startswith(TORCH_FREE), f"{module} must not need torch, imports {name}, which may"


def test_no_circles() -> None:
    modules = {module_of(p) for p in FILES}
    graph = {module_of(p): {m for m in modules for name in imports(p) if f"{name}.".startswith(f"{m}.")} for p in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_olmo_train_imports_no_other_package() -> None:
    for path in (ROOT / "olmo_train").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & set(PACKAGES[1:]), path


def test_the_model_knows_nothing_of_ranks() -> None:
    for path in [*(ROOT / "olmo_train" / "model").rglob("*.py"), *(ROOT / "olmo_train" / "kernels").rglob("*.py")]:
        assert not any(name.startswith(("torch.distributed", "olmo_train.parallel")) for name in imports(path)), path


@pytest.mark.parametrize("path", sorted(p for package in PACKAGES for p in (ROOT / package).rglob("__init__.py")), ids=str)
def test_init_files_hold_at_most_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert len(tree.body) == (ast.get_docstring(tree) is not None), f"{path}: import from the module itself"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420, "split it: a file is one idea"
