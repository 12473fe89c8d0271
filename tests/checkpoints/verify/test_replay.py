"""Training again from a published checkpoint gives the next one, bit for bit; and what does not is told from what does."""

import json
import re
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.opening import open_step_folder
from checkpoints.release import MANIFEST
from checkpoints.verify.command import main
from checkpoints.verify.compare import Difference, Losses, compare_losses, other_data, other_machine
from checkpoints.verify.replay import TOLERANCE, Verdict
from checkpoints.verify.replay_run import Replay, replay_config
from olmo_train.config.train import Device, LoadConfig
from olmo_train.errors import EXIT_FAILED, CheckpointError, ConfigError, run_command
from olmo_train.saver import is_due
from olmo_train.schema import to_plain
from tests.checkpoints.verify.releases import assemble_series, edit_json, finish, flip, forge, name, write
from tests.runs import losses
from tests.texts import TextCorpus


@pytest.fixture
def shards(corpus: TextCorpus) -> str:
    """The word that says where the shards are; releases do not tell paths of the machine they came from."""
    return f"--shards=demo={corpus.shards}"


def replayed(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """What a replay says after the lines of the two checkpoints; the verdict first, also where it is an error."""
    capsys.readouterr()
    status = run_command(main, [str(word) for word in words])
    out, err = capsys.readouterr()
    lines = out.splitlines()[2:]
    assert (status == EXIT_FAILED) == bool(err), (status, err)
    return [err.removeprefix("error: ").rstrip("\n"), *lines] if err else lines


def number(text: str, before: str) -> float:
    found = re.search(rf"([0-9.e+-]+) {before}|{before} ([0-9.e+-]+)", text)
    assert found is not None, text
    return float(found[1] or found[2])


# ---- releases -----------------------------------------------------------------------------------------------------------


def test_a_release_on_as_many_ranks_gives_the_next_one_bit_for_bit(
    releases: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict, loss, weights, optimizer = replayed(capsys, releases / name(5), "--replay", shards, f"--json={tmp_path}/found.json")
    assert verdict == f"replay of 5 steps from {name(5)}, against {name(10)}: reproduced bit for bit"
    assert loss == "  loss: 5 of 5 steps equal, largest difference 0 of the loss"
    assert re.fullmatch(r"  weights: equal bit for bit, 40,224 numbers", weights)
    assert re.fullmatch(r"  optimizer state: equal bit for bit, 80,448 numbers", optimizer)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [checked["name"] for checked in found["checked"]] == [name(5), name(10)]
    assert (found["is_good"], found["replay"]["is_exact"], found["replay"]["weights"]["of_update"]) == (True, True, 0.0)


def test_another_number_of_ranks_is_within_tolerance_and_said_to_be_another(
    releases: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = fsspec.filesystem("memory")  # a store that is not on this machine
    for step in (4, 5):
        memory.put(str(releases / name(step)), f"/replayed/{name(step)}", recursive=True)
    verdict, _, weights, _, *machines = replayed(capsys, "memory://replayed", "--replay", "--ranks=1", shards)
    assert verdict.startswith(
        f"replay of 1 steps from {name(4)}, against {name(5)}: reproduced within tolerance, not bit for bit: "
    )
    assert 0 < number(weights, "of the update") < 1e-4 < TOLERANCE
    assert number(verdict, "tolerance") == TOLERANCE
    assert "  not as then: n_ranks: 2 there, 1 here" in machines


def test_a_forged_optimizer_state_does_not_lead_to_the_next_release(
    releases: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(releases, tmp_path / "store"))
    moments = store / name(5) / "training/optim-00000-of-00002.safetensors"
    flip(moments, -1)
    told = replayed(capsys, store, "--replay", shards, f"--json={tmp_path}/found.json")
    assert json.loads((tmp_path / "found.json").read_text())["problems"] == told[0].splitlines()
    assert told[0].splitlines()[0].startswith(f"{name(5)}: training/optim-00000-of-00002.safetensors: SHA-256 ")
    assert told[0].splitlines()[-1] == "nothing was replayed: both ends must be whole first"
    tensors = load_file(moments)
    moments.unlink()
    save_file({key: torch.zeros_like(value) if "lm_head" in key else value for key, value in tensors.items()}, moments)
    seal_step(store / name(5), moments)
    finish(store)
    verdict, _, weights, *_ = replayed(capsys, store, "--replay", shards, "--ranks=1")
    assert verdict.startswith(f"replay of 5 steps from {name(5)}, against {name(10)}: NOT reproduced: difference / update is ")
    assert (
        "the data were the same, so one of the two is not what the run had, or the code changed, or rounding grew so far on another"
        in verdict
    )
    assert number(weights, "of the update") > TOLERANCE


def seal_step(release: Path, file: Path) -> None:
    """Make the manifests say what a file is now, as a careful forger would."""
    forge(release)
    entry = json.loads((release / MANIFEST).read_text())["files"][file.relative_to(release).as_posix()]
    edit_json(release / "training/step.json", lambda values: values["files"].update({file.name: entry}))
    forge(release)


# ---- data ---------------------------------------------------------------------------------------------------------------


def test_other_shards_are_refused_before_anything_is_trained(releases: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    other = Path(shutil.copytree(corpus.shards, tmp_path / "other"))
    from olmo_train.data.manifest import read_manifest, write_manifest

    manifest = read_manifest(other)
    manifest.files[0].sha256 = "0" * 64
    write_manifest(other, manifest)
    with pytest.raises(
        ConfigError,
        match=f"data.sources.demo: the shards in {other} have the fingerprint .*, the run was trained on .*; give --shards",
    ):
        main([str(releases), "--replay", f"--shards=demo={other}"])
    with pytest.raises(
        ConfigError, match=r"data.sources.demo: data/demo/manifest.json does not exist; .*; give --shards demo=FOLDER"
    ):
        main([str(releases), "--replay"])
    with pytest.raises(ConfigError) as caught:
        main([str(releases), "--replay", f"--shards=web={other}", f"--shards=demo={other}"])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0] == f"--shards web={other}: the run has no source web; it has demo"


def test_tokens_that_changed_under_the_same_manifest_are_told_as_data(
    copy: Path, corpus: TextCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(corpus.shards, tmp_path / "other"))
    (tokens,) = {path for path in other.rglob("*.npy") if "animals" in path.name} or {next(iter(other.rglob("*.npy")))}
    data = tokens.read_bytes()
    write(tokens, data[2:] + data[:2])
    for config in [copy / "config.yaml", *copy.glob("steps/*/config.yaml")]:
        config.write_text(config.read_text().replace("verify: spot", "verify: size"))
    reseal_configs(copy)
    verdict, *rest = replayed(capsys, copy, "--replay", "--from=4", f"--shards=demo={other}", "--ranks=1")
    assert verdict.endswith(
        "NOT reproduced, the steps were fed other data: the shards are not those of the run; fetch them again"
    )
    assert re.fullmatch(r"  step 5 was fed other data: checksum \d+, published \d+", rest[0])


def reseal_configs(run: Path) -> None:
    import hashlib

    for manifest in run.glob("steps/*/manifest.json"):
        data = (manifest.parent / "config.yaml").read_bytes()
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        edit_json(manifest, lambda values, entry=entry: values["files"].update({"config.yaml": entry}))  # type: ignore[misc]


# ---- runs ---------------------------------------------------------------------------------------------------------------


def test_fewer_steps_than_to_the_next_one_are_compared_by_their_losses_and_the_run_stays_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    steps = run / "steps"
    verdict, loss, *_ = replayed(capsys, steps / "step00000005", "--replay=2", "--ranks=1")
    assert verdict.startswith(f"replay of 2 steps from {steps}/step00000005, against {steps}/step00000010: ")
    assert re.search(
        r"losses reproduced exactly; .* was not reached|within tolerance, .*: largest difference / loss is ", verdict
    )
    assert re.match(r"  loss: [012] of 2 steps equal, largest difference ", loss)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before
    assert len(losses(run)) == 10


# ---- what cannot be replayed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "--from=3"], "--from=3 is not a saved step of .*; saved: 0, 1, 2, 4, 5, 10"),
        (["{run}", "--from=10"], "after step 10 there is no checkpoint, so nothing to compare a replay with; there are: 0, 1, 2, 4, 5, 10"),
        (["{store}", "--from=main"], f"--from=main is not a release of .*; there are: {name(0)}, "),
        (["{store}/stage1-step10-tokens0B"], "stage 1: after step 10 there is no checkpoint, so nothing to compare a replay with"),
        (["{store}", "--replay=6"], "stage 1: after step 5 there is no checkpoint that 6 steps reach or come before"),
        (["{plain}", f"--from={name(4)}"], f"{name(4)} was published without the optimizer state, so training cannot go on from it"),
        (["{plain}"], "no release with the optimizer state is followed by another of its stage, so there is nothing to replay"),
    ],
)  # fmt: skip
def test_a_replay_needs_a_start_and_an_end(words: list[str], message: str, run: Path, releases: Path, plain: Path) -> None:
    words = [word.format(run=run, store=releases, plain=plain) for word in words]
    with pytest.raises(ConfigError, match=message):
        main([*words, *([] if any("--replay" in word for word in words) else ["--replay"])])


@pytest.fixture(scope="module")
def plain(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases without optimizer states."""
    folder = tmp_path_factory.mktemp("plain")
    assemble_series(run, [4, 5], folder, optimizer_state=False)
    return folder


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused_before_anything_is_trained(run: Path) -> None:
    with pytest.raises(ConfigError, match="data.global_batch_size=256 tokens is not a multiple of micro_batch_size"):
        main([str(run), "--replay", "--ranks=3"])


def test_what_the_trainer_refuses_is_passed_on(copy: Path) -> None:
    config = copy / "steps/step00000005/config.yaml"
    config.write_text(config.read_text().replace("attention: auto", "attention: nonsense"))
    reseal_configs(copy)
    said = r"the replay from step 5 ended with exit status 2; the trainer said:\n(.*\n)*error: kernels.attention=nonsense "
    with pytest.raises(ConfigError, match=said):
        main([str(copy), "--replay", "--ranks=1"])


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.jsonl", "", "metrics.jsonl has no line of step 6; without it a replay has nothing to be compared with"),
        ("data.jsonl", "x\n", "data.jsonl cannot be used: .*; without it a replay has nothing to be compared with"),
        ("provenance.json", "{}", "provenance.json cannot be used: 'starts'; fetch it again"),
    ],
)
def test_a_run_without_its_records_cannot_be_compared(copy: Path, file: str, text: str, message: str) -> None:
    (copy / file).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        main([str(copy), "--replay"])


def test_steps_without_optimizer_state_cannot_be_gone_on_from(copy: Path) -> None:
    def without(values: dict) -> None:  # type: ignore[type-arg]
        values["tensors"].pop("optim")

    edit_json(copy / "steps/step00000005/manifest.json", without)
    with pytest.raises(
        ConfigError, match="step00000005 holds no optimizer state, so training cannot go on from it; choose another"
    ):
        main([str(copy), "--replay"])


def test_only_what_cannot_change_a_weight_is_changed_in_the_config(run: Path, corpus: TextCorpus) -> None:
    start = open_step_folder(run / "steps/step00000005")
    config = start.run
    assert config is not None
    config.load, config.optim.lr = LoadConfig("runs/base/steps/step00001000"), None
    config.parallel.device, config.parallel.shard_size, config.checkpoint.ephemeral_every = Device.CUDA, 1, 3
    before = to_plain(config)
    replay = Replay(start, 7, 1, 3, {"demo": corpus.shards})
    now = to_plain(replay_config(replay, Path("elsewhere")))
    assert to_plain(config) == before
    assert now["optim"] == before["optim"] | {"lr": start.state["peak_lr"]}
    assert now["parallel"] == before["parallel"] | {"device": "auto", "shard_size": None, "threads_per_rank": 3}
    assert (now["stop_at_step"], now["run_dir"], now["load"]) == (7, "elsewhere", None)
    assert now["model"] == before["model"]
    assert now["data"] == before["data"]
    assert (now["seed"], now["max_tokens"]) == (before["seed"], before["max_tokens"])
    assert not any(is_due(replay_config(replay, Path("elsewhere")).checkpoint, step, 10) for step in range(10))


# ---- numbers ------------------------------------------------------------------------------------------------------------


def test_differences_are_measured_against_the_movement() -> None:
    before, published = torch.zeros(4), torch.tensor([3.0, 0.0, 0.0, 4.0])
    found = Difference()
    found.add("a", before, published, published + torch.tensor([0.0, 0.5, 0.0, 0.0]))
    found.add("b", before, published, published.double())  # a finer format is rounded to the published one
    assert (found.is_equal, found.max_abs, found.where, found.n) == (False, 0.5, "a", 8)
    assert found.rms == pytest.approx((0.25 / 8) ** 0.5)
    assert found.of_update == pytest.approx(0.5 / 50**0.5)
    bits = Difference()
    bits.add("c", before, torch.tensor([0.0]), torch.tensor([-0.0]))
    assert (bits.is_equal, bits.of_update) == (False, 0.0)
    still = Difference()
    still.add("d", before, before, before + 1)
    assert still.of_update == float("inf")
    lost = Difference()
    lost.add("e", before, published, published * float("nan"))
    assert not lost.is_equal
    assert not lost.of_update <= TOLERANCE


def test_losses_and_data_are_compared_step_by_step() -> None:
    published = {1: {"loss": 2.0, "checksum": 1}, 2: {"loss": None, "checksum": 2}, 3: {"loss": 4.0, "checksum": 3}}
    assert compare_losses(published, published) == Losses(3, 3, 0.0)
    other = published | {3: {"loss": 4.1, "checksum": 4}}
    assert compare_losses(published, other) == Losses(3, 2, pytest.approx(0.025))
    assert compare_losses(published, published | {2: {"loss": 1.0}}).max_relative == float("inf")
    assert other_data(published, other) == ["step 3 was fed other data: checksum 4, published 3"]


def test_what_the_machines_had_different_is_named() -> None:
    there = {
        "device": "A",
        "n_ranks": 2,
        "kernels": {"attention": "sdpa", "passed_over": ["x"]},
        "versions": {"torch": "1"},
        "time": 1,
    }
    here = {
        "device": "B",
        "n_ranks": 2,
        "kernels": {"attention": "flash", "passed_over": []},
        "versions": {"torch": "2"},
        "time": 2,
    }
    assert other_machine(there, here) == [
        "device: A there, B here", "kernels.attention: sdpa there, flash here", "versions.torch: 1 there, 2 here",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reaches", "far", "machines", "said"),
    [
        (True, 0.5, [], "NOT reproduced: difference / update is 0.5, tolerance 0.01; the data were the same and nothing is known to differ"),
        (True, 0.005, ["x"], "reproduced within tolerance, not bit for bit: difference / update is 0.005, tolerance 0.01"),
        (False, 0.5, ["x"], "NOT reproduced: largest difference / loss is 0.5, tolerance 0.01; the data were the same, so one of the two is not"),
        (False, 0.0, [], "losses reproduced exactly; b was not reached"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_was_compared(reaches: bool, far: float, machines: list[str], said: str) -> None:
    weights = Difference(False, 1, far, "w", far**2, 1.0) if reaches else None
    losses = Losses(1, int(far == 0), 0.0 if reaches else far)
    verdict = Verdict("a", "b", 1, reaches, [], losses, weights, None, machines, TOLERANCE)
    assert next(verdict.lines()).startswith(f"replay of 1 steps from a, against b: {said}")
    assert verdict.is_good == ("NOT" not in said)
