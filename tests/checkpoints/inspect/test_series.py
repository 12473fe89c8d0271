"""A series measures every checkpoint once, keeps what it measured, and goes on where it was interrupted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from checkpoints.inspect.heldout import HeldoutOptions
from checkpoints.inspect.measures import SeriesResult, What
from checkpoints.inspect.places import find_checkpoints, open_named
from checkpoints.inspect.series import SeriesOptions, Text, measure_series
from checkpoints.publish.assemble import AssembleOptions, assemble
from checkpoints.release import revision_name
from olmo_train.config.train import Device
from olmo_train.errors import CheckpointError, ConfigError
from olmo_train.step_folder import step_name
from tests.hub_server import WRITER, Hub
from tests.runs import metrics, run_training, small
from tests.texts import VOCAB, TextCorpus

TEXTS = (Text("the red cat sees a dog"), Text("dog", context="a cat sees the"))
ON_CPU = SeriesOptions(device=Device.CPU, texts=TEXTS)


@pytest.fixture(scope="module")
def measured(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SeriesResult]:
    """A copy of the run with its series kept, and the series. Read only."""
    folder = Path(shutil.copytree(run, tmp_path_factory.mktemp("measured") / "first"))
    return folder, measure_series(str(folder), ON_CPU)


@pytest.fixture(scope="module")
def store(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 5 and 10, published."""
    folder = tmp_path_factory.mktemp("releases")
    for step in (5, 10):
        options = AssembleOptions(1, None, False, "apache-2.0", None, None)
        assemble(run, step, folder / revision_name(1, step, step * 256), options)
    return folder


def remove_weights(run: Path, *steps: int) -> None:
    """Whoever loads a model of these steps from now on fails."""
    for step in steps:
        for file in (run / "steps" / step_name(step)).glob("model-*"):
            file.unlink()


def test_every_checkpoint_is_measured(measured: tuple[Path, SeriesResult]) -> None:
    folder, series = measured
    by_step = {line["step"]: line for line in metrics(folder)}
    assert [c.step for c in series.checkpoints] == [0, 1, 2, 4, 5, 10]
    assert series.final == str(folder / "steps/step00000010")
    for checkpoint in series.checkpoints:
        assert checkpoint.step is not None
        assert checkpoint.tokens == checkpoint.step * 256
        assert checkpoint.train_loss == by_step[checkpoint.step].get("loss")
        assert checkpoint.texts is not None
        assert [text.context for text in checkpoint.texts] == ["", "a cat sees the"]
    assert len({c.digest for c in series.checkpoints}) == 6
    json.dumps(series.to_json(), allow_nan=False)


def test_held_out_loss_is_what_training_wrote(run: Path) -> None:
    """With as many tokens as `eval` took: 64 instances."""
    options = SeriesOptions(what=frozenset({What.HELDOUT}), heldout=HeldoutOptions(64 * 16), device=Device.CPU, keep=False)
    written = {line["step"]: line["eval"]["heldout"] for line in metrics(run) if "eval" in line}
    for checkpoint in measure_series(str(run), replace(options, steps=(0, 5, 10))).checkpoints:
        assert checkpoint.step is not None
        assert checkpoint.heldout is not None
        assert (checkpoint.routing, checkpoint.norms, checkpoint.texts) == (None, None, None)
        assert set(checkpoint.heldout) == {"animals", "places", "all"}
        for name, expected in written[checkpoint.step].items():
            found = checkpoint.heldout[name]
            assert (found.loss, found.bits_per_byte) == pytest.approx((expected["loss"], expected["bits_per_byte"]), rel=1e-5)
            assert found.tokens == expected["tokens"]
    assert not (run / "inspect").exists()


def test_saturation_ends_at_one_and_the_last_checkpoint_has_the_matrix(measured: tuple[Path, SeriesResult]) -> None:
    for checkpoint in measured[1].checkpoints:
        assert checkpoint.routing is not None
        for layer in checkpoint.routing.layers:
            assert layer.saturation is not None
            assert (layer.co_activation.matrix is not None) == (checkpoint.step == 10)
            if checkpoint.step == 10:
                assert (layer.saturation.top_k, layer.saturation.top_1) == (1.0, 1.0)
            else:
                assert 0 < layer.saturation.top_k < 1


def test_updates_are_since_the_checkpoint_before(measured: tuple[Path, SeriesResult]) -> None:
    first, *others = (c.norms for c in measured[1].checkpoints)
    assert first is not None
    assert first.all.update_norm is None
    for norms in others:
        assert norms is not None
        assert norms.all.update_norm is not None
        assert norms.all.update_norm > 0


def same(found: SeriesResult, expected: SeriesResult) -> bool:
    """But for where they lie."""
    return [replace(c, where="") for c in found.checkpoints] == [replace(c, where="") for c in expected.checkpoints]


def test_a_repeat_is_the_same_without_a_model(measured: tuple[Path, SeriesResult], tmp_path: Path) -> None:
    folder, series = measured
    copy = Path(shutil.copytree(folder, tmp_path / "first"))
    remove_weights(copy, 0, 1, 2, 4, 5, 10)
    assert same(measure_series(str(copy), ON_CPU), series)
    with pytest.raises(CheckpointError, match="cannot be read"):
        measure_series(str(copy), replace(ON_CPU, keep=False))


def test_an_interrupted_series_goes_on(measured: tuple[Path, SeriesResult], tmp_path: Path) -> None:
    """What is missing or cannot be read is measured again, and nothing else."""
    folder, series = measured
    copy = Path(shutil.copytree(folder, tmp_path / "first"))
    for file in copy.glob("inspect/kept/step00000004-*"):
        file.unlink()
    (damaged,) = copy.glob("inspect/kept/step00000002-heldout-*")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    (cut,) = copy.glob("inspect/kept/step00000001-norms-*")
    cut.write_text(cut.read_text()[:50])
    remove_weights(copy, 5, 10)
    assert same(measure_series(str(copy), ON_CPU), series)


def test_other_settings_are_other_results(measured: tuple[Path, SeriesResult], tmp_path: Path) -> None:
    folder, series = measured
    copy = Path(shutil.copytree(folder, tmp_path / "first"))
    few = SeriesOptions(device=Device.CPU, steps=(10,), heldout=HeldoutOptions(64), cache=tmp_path / "elsewhere")
    found = measure_series(str(copy), few).checkpoints[0]
    assert found.heldout is not None
    assert found.heldout["all"].tokens == 2 * 60
    assert found.texts is None
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2  # norms and held-out tokens
    remove_weights(copy, 2, 4)
    some = measure_series(str(copy), replace(ON_CPU, steps=(2, 4), what=frozenset({What.TEXTS}))).checkpoints
    assert [c.texts for c in some] == [c.texts for c in series.checkpoints if c.step in (2, 4)]


def test_a_progress_line_per_checkpoint(measured: tuple[Path, SeriesResult], capsys: pytest.CaptureFixture[str]) -> None:
    folder, series = measured
    measure_series(str(folder), ON_CPU)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {c.step}" for c in series.checkpoints]
    assert series.checkpoints[-1].heldout is not None
    assert f"all {series.checkpoints[-1].heldout['all'].loss:.4f}  saturation 1.000" in lines[-1]
    assert "(6 of 6, " in lines[-1]


def test_releases_measure_as_the_run_they_come_from(
    store: Path, corpus: TextCorpus, measured: tuple[Path, SeriesResult], capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(ON_CPU, heldout=HeldoutOptions(shards=(corpus.shards,)))
    found = measure_series(str(store), options)
    ours = [c for c in measured[1].checkpoints if c.step in (5, 10)]
    for release, checkpoint in zip(found.checkpoints, ours, strict=True):
        assert release.heldout == checkpoint.heldout
        assert release.texts == checkpoint.texts
        assert (release.step, release.tokens) == (checkpoint.step, checkpoint.tokens)
    assert not (store / "inspect").exists()
    assert measure_series(str(store / "stage1-step10-tokens0B"), options).checkpoints[0].heldout == ours[1].heldout


def test_releases_on_a_hub_are_measured_too(store: Path, measured: tuple[Path, SeriesResult], hub: Hub) -> None:
    api = HfApi(endpoint=hub.endpoint, token=WRITER)
    api.create_repo("owner/first")
    for release in ("stage1-step5-tokens0B", "stage1-step10-tokens0B"):
        api.create_branch("owner/first", branch=release)
        api.upload_folder(repo_id="owner/first", folder_path=str(store / release), revision=release)
    addresses = [f"owner/first@stage1-step{step}-tokens0B" for step in (5, 10)]
    assert find_checkpoints("owner/first") == find_checkpoints("hub:owner/first") == addresses
    options = SeriesOptions(steps=(5, 10), what=frozenset({What.NORMS}), device=Device.CPU)
    found = measure_series("owner/first", options).checkpoints
    assert [c.where for c in found] == addresses
    ours = [c.norms.all for c in measured[1].checkpoints if c.step in (5, 10) and c.norms is not None]
    assert [c.norms.all.norm for c in found if c.norms is not None] == pytest.approx([norm.norm for norm in ours], rel=1e-12)
    assert found[1].norms is not None
    assert found[1].norms.all.update_norm == pytest.approx(ours[1].update_norm, rel=1e-9)


def test_without_shards_of_its_own_a_release_still_has_norms(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure_series(str(store), SeriesOptions(device=Device.CPU, steps=(10,)))
    assert found.checkpoints[0].norms is not None
    assert (found.checkpoints[0].heldout, found.final) == (None, None)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("no held-out loss and no routing: ")
    assert said[0].endswith("; give --shards FOLDER")


def test_a_dense_model_has_no_routing(corpus: TextCorpus, tmp_path: Path) -> None:
    words = [f"data.sources.demo.path='{corpus.shards}'", "model=tiny_dense", "model.d_model=32", "model.d_ff=48"]
    words += ["model.n_layers=2", "model.n_heads=4", f"model.vocab_size={VOCAB}", "max_tokens=256", "eval.eval_every=null"]
    overrides = [
        word for word in small(corpus.shards, tmp_path / "dense") if not word.startswith(("model", "max_tokens", "eval"))
    ]
    run_training(
        [*(w for w in overrides if not w.startswith("data.sources.demo.path")), *words, "optim.schedule.warmup_tokens=0"]
    )
    found = measure_series(str(tmp_path / "dense"), SeriesOptions(device=Device.CPU))
    assert found.checkpoints[-1].heldout is not None
    assert (found.checkpoints[-1].routing, found.final) == (None, None)
    with pytest.raises(ConfigError, match=r"step00000001 is a dense model: it has no routers, whose choices could be measured"):
        measure_series(str(tmp_path / "dense"), SeriesOptions(what=frozenset({What.ROUTING})))


def test_what_cannot_be_measured_is_refused(run: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--measures=text needs --text or --text-file"):
        measure_series(str(run), SeriesOptions(what=frozenset({What.TEXTS}), keep=False))
    with pytest.raises(ConfigError, match=r"--steps=3,7 not in .*first; there are 0, 1, 2, 4, 5, 10"):
        measure_series(str(run), SeriesOptions(steps=(7, 3, 5), keep=False))
    with pytest.raises(ConfigError, match=r"--steps goes with a run or a store of releases; .*step00000010 is one checkpoint"):
        find_checkpoints(str(run / "steps/step00000010"), (10,))
    with pytest.raises(ConfigError, match=r"is no run \(no config.yaml\), no checkpoint, and no release is in it"):
        find_checkpoints(str(tmp_path))
    (copy / "inspect").write_text("a file")
    with pytest.raises(ConfigError, match=r"inspect/kept: Not a directory; results of measures are kept there; make it writable"):
        measure_series(str(copy), SeriesOptions())


def test_a_result_that_cannot_be_kept_is_said(copy: Path) -> None:
    options = SeriesOptions(what=frozenset({What.NORMS}), steps=(10,))
    measure_series(str(copy), options)
    (kept,) = (copy / "inspect/kept").iterdir()
    kept.unlink()
    kept.mkdir()
    with pytest.raises(
        ConfigError, match=r"step00000010-norms-.*: Is a directory; results of measures are kept there; make it writable"
    ):
        measure_series(str(copy), options)


def test_a_step_of_a_run_can_be_named(run: Path, store: Path) -> None:
    assert open_named(f"{run}@5").step == 5
    assert open_named(str(run)).step == 10
    assert open_named(str(store / "stage1-step5-tokens0B")).step == 5
    with pytest.raises(ConfigError, match=r"--step=7 is not saved in .*first"):
        open_named(f"{run}@7")
