"""The steps of a run are listed as they were saved, and named by what is there."""

import json
from pathlib import Path

import pytest

from checkpoints.catalog import find_steps, main, resolve_step
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.step_folder import step_name
from tests.runs import metrics


def test_each_step_is_what_the_metrics_say_of_it(run: Path) -> None:
    steps = find_steps(run)
    assert [info.step for info in steps] == [0, 1, 2, 4, 5, 10]
    by_step = {line["step"]: line for line in metrics(run)}
    for info in steps[1:]:
        assert (info.loss, info.tokens, info.lr) == tuple(by_step[info.step][name] for name in ("loss", "tokens", "lr"))
        assert info.path == run / "steps" / step_name(info.step)
        assert info.kind == "permanent"
        files = [path for path in info.path.iterdir() if path.name != "manifest.json"]
        assert info.bytes == sum(path.stat().st_size for path in files)
    assert (steps[0].tokens, steps[0].loss, steps[0].lr) == (0, None, 0.0)


def test_the_list_has_a_line_per_step(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run)])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["step", "tokens", "loss", "MiB", "kind", "folder"]
    for line, info in zip(lines, find_steps(run), strict=True):
        loss = "-" if info.loss is None else f"{info.loss:.4f}"
        expected = [str(info.step), f"{info.tokens:,}", loss, f"{info.bytes / 2**20:,.1f}", "permanent", str(info.path)]
        assert line.split() == expected


def test_a_step_is_found_by_its_folder_or_its_number_and_else_is_the_newest(run: Path) -> None:
    assert resolve_step(run) == run / "steps/step00000010"
    assert resolve_step(run, 0) == run / "steps/step00000000"
    assert resolve_step(run / "steps/step00000004") == run / "steps/step00000004"


def test_what_is_not_there_is_refused_with_what_is(run: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--step=7 is not saved in .*first; saved: 0, 1, 2, 4, 5, 10"):
        resolve_step(run, 7)
    with pytest.raises(ConfigError, match=r"--step=5 goes with the folder of a run; .*step00000010 is one step already"):
        resolve_step(run / "steps/step00000010", 5)
    with pytest.raises(ConfigError, match=r"nowhere is not the folder of a run \(it has no config.yaml\); e.g. runs/first"):
        main([str(tmp_path / "nowhere")])
    (copy / "steps").rename(copy / "moved")
    with pytest.raises(ConfigError, match="has no finished step folder yet; checkpoint.save_every says when one comes"):
        resolve_step(copy)


def test_an_unfinished_step_is_not_listed_and_a_damaged_one_is_named(copy: Path) -> None:
    (copy / "steps/step00000010/manifest.json").unlink()
    assert [info.step for info in find_steps(copy)] == [0, 1, 2, 4, 5]
    (copy / "steps/step00000005/state.json").write_text(json.dumps({"step": 5})[:-3])
    with pytest.raises(CheckpointError, match=r"step00000005/state.json cannot be read"):
        find_steps(copy)
