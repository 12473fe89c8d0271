"""The olmo command: quick to answer, complete, and exact about exit statuses."""

import importlib
import subprocess
import sys

import pytest

from olmo_train import cli
from olmo_train.errors import CheckpointError, ConfigError, ShardError, run_command

HEAVY = ("torch", "transformers", "hydra", "numpy", "tokenizers")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "olmo_train.cli", *words], capture_output=True, text=True)


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = f"import sys; sys.argv = ['olmo', '--help']; from olmo_train.cli import main; main(); print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for verb in cli.VERBS:
        assert f"\n  {verb} " in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_a_module_with_an_entry_point(verb: str) -> None:
    module = importlib.import_module(cli.VERBS[verb][0])
    assert callable(module.main)
    assert module.__doc__


@pytest.mark.parametrize(
    "module",
    ["data_tools.tokenize.command", "data_tools.inspect.batch", "launch.local", "olmo_train.model.size", "olmo_train.data.order"],
)
def test_what_needs_no_torch_does_not_import_it(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_verb_is_named_with_the_nearest_one() -> None:
    done = run("trian", "run_name=x")
    assert done.returncode == 2
    assert "olmo trian run_name=x: no such verb" in done.stderr
    done = run("data", "tokenise")
    assert "did you mean data tokenize?" in done.stderr


@pytest.mark.parametrize(
    ("package", "verb", "extra"),
    [(name, "explore", "trace") for name in ("numba", "pydivsufsort", "fastapi", "uvicorn")]
    + [("numba", "data decontaminate", "data")],
)
def test_a_verb_whose_packages_are_missing_names_their_extra(package: str, verb: str, extra: str) -> None:
    argv = ["olmo", *verb.split(), "run=x"]
    code = f"import sys; sys.modules['{package}'] = None; sys.argv = {argv}; from olmo_train.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    wanted = f"error: olmo {verb} needs the package {package}, which is not installed; pip install 'olmo-train[{extra}]'\n"
    assert (done.returncode, done.stderr) == (2, wanted)


def test_a_module_of_ours_that_is_missing_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "explore", ("checkpoints.nowhere", ""))
    monkeypatch.setattr(sys, "argv", ["olmo", "explore"])
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        cli.main()


def test_exit_statuses_tell_bad_input_from_a_failed_run(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception):  # type: ignore[no-untyped-def]
        def main(argv: list[str]) -> None:
            raise error

        return main

    assert run_command(fail(ConfigError("a")), []) == 2
    assert run_command(fail(ShardError("b")), []) == 2
    assert run_command(fail(CheckpointError("c")), []) == 1
    assert run_command(lambda argv: None, []) == 0
    assert capsys.readouterr().err.splitlines() == ["error: a", "error: b", "error: c"]


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 / 0, [])  # type: ignore[arg-type, return-value]


def test_size_prints_the_published_counts() -> None:
    done = run("size", "experiment=olmoe_1b_7b")
    assert "6,919,161,856" in done.stdout
    assert "1,282,017,280" in done.stdout
    assert "7.8787 GFLOP" in done.stdout
