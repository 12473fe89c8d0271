"""`olmo train --from FILE`: the config of a run or a job, read back, with words that change it."""

from pathlib import Path

import pytest

from olmo_train.config.train import TrainConfig
from olmo_train.errors import ConfigError
from olmo_train.problems import find_problems
from olmo_train.schema import load_config, load_saved, to_yaml
from olmo_train.step_folder import list_steps
from olmo_train.train import main, saved_config
from tests.runs import small


@pytest.fixture
def saved(shards: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(load_config("train", TrainConfig, small(shards, tmp_path / "run"))))
    return path


def problems_of(path: Path, *words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_saved(path, TrainConfig, list(words), lambda run: find_problems(run, 1))
    return caught.value.problems


def test_a_saved_config_is_the_same_config(shards: Path, tmp_path: Path, saved: Path) -> None:
    assert load_saved(saved, TrainConfig, []) == load_config("train", TrainConfig, small(shards, tmp_path / "run"))


def test_words_change_values_of_every_kind(saved: Path) -> None:
    words = [
        "optim.lr=3e-4",
        "stop_at_step=3",
        "model.moe=null",
        "data.sources.other={path: x, weight: 2}",
        "faults.drill=[{kind: kill}]",
    ]
    run = load_saved(saved, TrainConfig, [*words, "eval.tasks=[a,b]", "+seed=7"])
    assert (run.optim.lr, run.stop_at_step, run.model.moe, run.seed) == (3e-4, 3, None, 7)
    assert (run.data.sources["other"].weight, run.faults.drill[0].kind, run.eval.tasks) == (2.0, "kill", ["a", "b"])


def test_everything_wrong_is_told_at_once(saved: Path) -> None:
    found = problems_of(saved, "optim.lrr=1", "seed=one", "model=moe_1b", "data.global_batch_size=100", "~load", "a=[")
    starts = [
        "optim.lrr is not a field of OptimConfig (did you mean lr?)",
        "'a=[' is not an override",
        "model=moe_1b chooses a file of configs/, but a saved config holds values only; give them by their names",
        "~load cannot be applied to a saved config; write name=value",
        "seed='one' is a str, must be a int",
        "data.global_batch_size=100 tokens is not a multiple of",
    ]
    assert len(found) == len(starts)
    for problem, start in zip(found, starts, strict=True):
        assert problem.startswith(start)


def test_what_the_file_itself_has_wrong_is_told_with_its_name(saved: Path, tmp_path: Path) -> None:
    saved.write_text(saved.read_text().replace("seed: 6198", "sead: 6198"))
    found = problems_of(saved)
    assert found[0].startswith(f"{saved}: sead is not a field of TrainConfig (did you mean seed?)")
    assert found[1:] == [f"{saved}: seed is missing: give seed=<int>"]
    assert problems_of(tmp_path / "none.yaml") == [f"{tmp_path}/none.yaml does not exist; it is written when a run starts"]
    saved.write_text("- 1\n")
    assert problems_of(saved) == [f"{saved} is not a list of `name: value` lines"]


def test_training_from_a_saved_config_ends_where_it_says(shards: Path, tmp_path: Path, saved: Path) -> None:
    main(["--from", str(saved), "max_tokens=512", "optim.schedule.warmup_tokens=256"])
    assert list_steps(tmp_path / "run/steps")[-1][0] == 2


def test_from_wants_a_file() -> None:
    assert saved_config(["--from", "a", "b=1"]) == saved_config(["--from=a", "b=1"]) == (Path("a"), ["b=1"])
    for words in (["--from"], ["--from="]):
        with pytest.raises(
            ConfigError, match=r"^--from needs a file: the config.yaml of a run or of a job, e.g. runs/NAME/config.yaml$"
        ):
            saved_config(words)
