"""The steps of a run are listed as they were saved, and named by what is there."""

import json
import shutil
from pathlib import Path

import pytest

from checkpoints.catalog import find_steps, heldout_loss, list_run, list_store, main, resolve_step
from checkpoints.inspect.readable import NONE
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.publish.stores import open_store
from checkpoints.release import read_release_folder, revision_name
from checkpoints.run_files import Evaluation
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


def test_the_list_has_a_line_per_step(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--json", str(tmp_path / "list.json")])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["step", "tokens", "loss", "held-out", "MiB", "kind", "optimizer", "name"]
    evaluated = {line["step"]: line["eval"]["heldout"]["all"]["loss"] for line in metrics(run) if "eval" in line}
    rows = json.loads((tmp_path / "list.json").read_text())
    for line, info, row in zip(lines, find_steps(run), rows, strict=True):
        losses = [None if x is None else f"{x:.4f}" for x in (info.loss, evaluated.get(info.step))]
        expected = [str(info.step), f"{info.tokens:,}", *(x or NONE for x in losses), f"{info.bytes / 2**20:,.1f}"]
        assert line.split() == [*expected, "permanent", "yes", str(info.path)]
        assert (row["step"], row["heldout_loss"], row["has_optimizer"]) == (info.step, evaluated.get(info.step), True)


@pytest.fixture(scope="module")
def store(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 5 in bfloat16 with its optimizer state, and step 10 as it is."""
    folder = tmp_path_factory.mktemp("store")
    for step, dtype, optimizer in ((5, "bfloat16", True), (10, None, False)):
        options = AssembleOptions(1, dtype, optimizer, "apache-2.0", None, None)
        assemble(run, step, folder / revision_name(1, step, step * 256), options)
    return folder


def test_a_store_is_listed_by_its_manifests(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(store)])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["step", "tokens", "loss", "held-out", "MiB", "kind", "optimizer", "name"]
    assert [line.split()[5:] for line in lines] == [
        ["bfloat16", "yes", "stage1-step5-tokens0B"], ["float32", "no", "stage1-step10-tokens0B"],
    ]  # fmt: skip
    for row in list_store(open_store(str(store))):
        manifest = read_release_folder(store / row.name)
        assert (row.step, row.tokens, row.loss) == (manifest.step, manifest.tokens, manifest.loss)
        assert row.bytes == sum(entry["bytes"] for entry in manifest.files.values())
        assert row.heldout_loss == next(e["metrics"]["loss"] for e in manifest.evaluations if e["label"] == "all")


def test_a_run_says_which_of_its_steps_are_published_where(
    run: Path, store: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    main([str(run), "--also", str(store), str(empty)])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split()[-3:] == ["[1]", "[2]", "name"]
    places = {int(line.split()[0]): line.split()[-3:-1] for line in lines[:6]}
    assert places.pop(5) == ["stage1-step5-tokens0B", NONE]
    assert places.pop(10) == ["stage1-step10-tokens0B", NONE]
    assert set(map(tuple, places.values())) == {(NONE, NONE)}
    assert lines[6:] == ["", f"[1] {store}", f"[2] {empty}"]
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace("run_name: first", "run_name: another"))
    assert [row.published for row in list_run(copy, [open_store(str(store))])] == [{}] * 6  # the same steps of another run


def test_one_source_is_all_of_them() -> None:
    def heldout(label: str, loss: float) -> Evaluation:
        return Evaluation(1, "heldout", label, {"loss": loss})

    assert heldout_loss([heldout("a", 2.0), Evaluation(1, "olmo_eval", "task", {"loss": 1.0})]) == 2.0
    assert heldout_loss([heldout("a", 2.0), heldout("b", 3.0), heldout("all", 2.5)]) == 2.5
    assert heldout_loss([heldout("a", 2.0), heldout("b", 3.0)]) is None
    assert heldout_loss([]) is None


def test_a_list_that_cannot_be_made_is_refused(run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--also=.* goes with the folder of a run; .* is a store of releases"):
        main([str(store), "--also", str(store)])
    with pytest.raises(ConfigError, match=r"is neither a run \(it has no config.yaml\) nor a store with releases in it"):
        main([str(tmp_path)])
    with pytest.raises(ConfigError, match=r"--also=.*nowhere does not exist"):
        main([str(run), "--also", str(tmp_path / "nowhere")])
    with pytest.raises(ConfigError, match=r"--json=.* is a folder"):
        main([str(run), "--json", str(tmp_path)])
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"runs/frist is not the folder of a run"):  # not a repository of a hub
        main(["runs/frist"])
    damaged = Path(shutil.copytree(store, tmp_path / "damaged"))
    (damaged / "stage1-step5-tokens0B/release.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"damaged/stage1-step5-tokens0B/release.json cannot be used"):
        main([str(damaged)])


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
