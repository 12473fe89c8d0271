"""`olmo publish`, from a run to every kind of target: what is there, what is refused, what a full disk leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from checkpoints.inspect.describe import describe
from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint, open_step_folder
from checkpoints.publish import command, publishing
from checkpoints.publish.signature import write_key_pair
from checkpoints.publish.stores import open_store
from checkpoints.release import read_index, read_release
from checkpoints.run_files import Evaluation, add_evaluation
from olmo_train.errors import EXIT_FAILED, EXIT_USAGE, CheckpointError, ConfigError, run_command
from tests.checkpoints.publish.places import at_once, contents, is_whole
from tests.hub_server import WRITER, Fault, Hub

STEPS = [0, 1, 2, 4, 5, 10]
NAMES = [f"stage1-step{step}-tokens0B" for step in STEPS]
QUICK = ["retry.first_wait_s=0.01", "retry.max_wait_s=0.2", "retry.attempts=4", "claims.beat_s=0.1", "claims.expiry_s=3"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


def publish(run: Path, place: str, *words: str) -> None:
    command.main([f"run={run}", f"target={place}", *QUICK, *words])


def test_a_run_is_published_whole_with_main_and_index(run: Path, place: str, capfd: pytest.CaptureFixture[str]) -> None:
    publish(run, place, "steps=[10,0]")
    store = open_store(place)
    assert store.revisions() == [NAMES[0], NAMES[5]]
    releases = [is_whole(store, name) for name in store.revisions()]
    assert releases[0].parent is None
    assert releases[1].parent is not None
    assert releases[1].parent["weights_sha256"] == releases[0].weights_sha256
    assert is_whole(store, "main") == releases[1]
    entries = read_index(store.read("main", "checkpoints.json"), place)
    assert [(entry.name, entry.step, entry.tokens, entry.release_sha256) for entry in entries] == [
        (release.name, release.step, release.tokens, release.sha256) for release in releases
    ]
    said = capfd.readouterr().out
    order = [said.index(f"{name}: published, ") for name in store.revisions()]
    assert order == sorted(order)
    assert f"main holds {NAMES[5]}, and the index of 2 releases" in said
    assert not (run / ".publishing").exists()


def test_every_target_has_the_same_bytes(run: Path, tmp_path: Path, s3: str, hub: Hub) -> None:
    places = [str(tmp_path / "to"), s3, "hub:owner/first"]
    for place in places:
        publish(run, place, "steps=[5]")
    found = [contents(open_store(place), NAMES[4]) for place in places]
    found[2].pop(".gitattributes")
    assert found[0] == found[1] == found[2]


def test_publishing_again_assembles_and_uploads_nothing(
    run: Path, hub: Hub, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    publish(run, "hub:owner/first", "steps=[5]")
    uploaded, commits, history = hub.uploaded, hub.count("POST .*/commit/"), len(hub.repos["owner/first"].history)
    capfd.readouterr()
    publish(run, "hub:owner/first", "steps=[5]", "staging=/nowhere/at/all")
    assert (hub.uploaded, hub.count("POST .*/commit/")) == (uploaded, commits)
    assert capfd.readouterr().out.count("published already\n") == 1
    (history_now,) = [[branch for branch, _ in hub.repos["owner/first"].history[history:]]]
    assert all(branch.startswith("publishing/can-write") for branch in history_now)
    for record in (tmp_path / "cache/olmo_train/published").iterdir():
        record.unlink()
    publish(run, "hub:owner/first", "steps=[5]")  # assembles, compares
    assert (hub.uploaded, hub.count("POST .*/commit/")) == (uploaded, commits)
    assert capfd.readouterr().out.count("published already\n") == 1


def test_what_a_failure_interrupts_the_next_run_finishes(run: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.faults.append(Fault(r"POST .*/branch/stage1-step4", status=503, times=4))
    assert (
        run_command(command.main, [f"run={run}", "target=hub:owner/first", "steps=[2,4,5]", "optimizer_state=false", *QUICK])
        == EXIT_FAILED
    )
    store = open_store("hub:owner/first")
    assert store.revisions() == [NAMES[2]]
    assert [entry.step for entry in read_index(store.read("main", "checkpoints.json"), "")] == [2]
    assert "; the same command goes on from here\n" in capfd.readouterr().err
    uploaded = hub.uploaded
    publish(run, "hub:owner/first", "steps=[2,4,5]", "optimizer_state=false")
    assert store.revisions() == [NAMES[2], NAMES[3], NAMES[4]]
    assert hub.uploaded - uploaded < store.files(NAMES[4])["model.safetensors"] * 2  # step 4 was uploaded already
    assert is_whole(store, "main").step == 5


def test_a_failure_is_told_even_if_main_fails_too(run: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.faults += [
        Fault(r"POST .*/branch/stage1-step5", status=503, times=4),
        Fault(r"POST .*/commit/main", status=503, times=99),
    ]
    with pytest.raises(CheckpointError, match=r"owner/first@stage1-step5-tokens0B: .*503"):
        publish(run, "hub:owner/first", "steps=[4,5]")
    assert "hub:owner/first: main and the index are as they were: hub:owner/first@main: " in capfd.readouterr().out


def test_several_publishers_of_the_same_run_end_well(run: Path, hub: Hub, tmp_path: Path) -> None:
    place = "hub:owner/first"
    command_of = lambda steps: lambda: publish(run, place, f"steps={steps}")  # noqa: E731
    assert at_once(tmp_path, command_of("[0,1]"), command_of("[0,1]")) == [None, None]
    store = open_store(place)
    assert [is_whole(store, name).step for name in store.revisions()] == [0, 1]
    assert is_whole(store, "main").step == 1
    assert len(read_index(store.read("main", "checkpoints.json"), place)) == 2


def test_published_weights_are_never_overwritten_unless_asked(run: Path, tmp_path: Path, hub: Hub) -> None:
    place = str(tmp_path / "to")
    publish(run, place, "steps=[5]")
    store = open_store(place)
    before = contents(store, NAMES[4])
    ours = read_release(store.read(NAMES[4], "release.json"), place).weights_sha256
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)is published with other weights: weights_sha256 {ours} \(float32, run first\) there, [0-9a-f]{{64}} \(bfloat16, run first\) here; a published",
    ):
        publish(run, place, "steps=[5]", "dtype=bfloat16")
    assert contents(store, NAMES[4]) == before
    publish(run, place, "steps=[5]", "dtype=bfloat16", "replace=true")
    assert is_whole(store, NAMES[4]).dtype == "bfloat16"
    assert is_whole(store, "main").dtype == "bfloat16"


def test_the_optimizer_state_is_not_left_out_silently(run: Path, tmp_path: Path, hub: Hub) -> None:
    place = str(tmp_path / "to")
    publish(run, place, "steps=[5]", "optimizer_state=false")
    with pytest.raises(
        CheckpointError,
        match=r"is published without the optimizer state \(weights_sha256 [0-9a-f]{64} there and here\); replace=true",
    ):
        publish(run, place, "steps=[5]", "optimizer_state=true")
    publish(run, place, "steps=[5]", "optimizer_state=true", "replace=true")
    release = is_whole(open_store(place), NAMES[4])
    assert release.has_optimizer
    moments = next(path for path in release.files if "optim-" in path)
    assert not os.path.samefile(Path(place) / NAMES[4] / moments, run / "steps/step00000005" / Path(moments).name)


@pytest.mark.parametrize("kind", ["hub", "s3"])
def test_who_wants_the_weights_need_not_fetch_the_optimizer_state(run: Path, hub: Hub, s3: str, kind: str) -> None:
    place, name = ("hub:owner/first", f"owner/first@{NAMES[4]}") if kind == "hub" else (s3, f"{s3}/{NAMES[4]}")
    publish(run, place, "steps=[5]")
    checkpoint = open_checkpoint(name)
    assert not list(checkpoint.folder.glob("training/optim-*"))
    assert torch.equal(
        checkpoint.weights.read("norm.weight"), open_step_folder(run / "steps/step00000005").weights.read("norm.weight")
    )
    assert describe(checkpoint, with_tensors=False).has_optimizer
    whole = open_checkpoint(name, with_optimizer=True)
    assert len(list(whole.folder.glob("training/optim-*"))) == 2


def test_evaluations_made_later_do_not_hinder(copy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], hub: Hub) -> None:
    place = str(tmp_path / "to")
    publish(copy, place, "steps=[5]")
    before = contents(open_store(place), NAMES[4])
    add_evaluation(copy, Evaluation(5, "lm_eval", "task", {"acc": 0.5}))
    for record in (tmp_path / "cache/olmo_train/published").iterdir():
        record.unlink()
    publish(copy, place, "steps=[5]")
    assert (
        "published already (the same weights; README.md, evaluations.json would be others now, replace=true renews them)"
        in capfd.readouterr().out
    )
    assert contents(open_store(place), NAMES[4]) == before
    publish(copy, place, "steps=[5]", "replace=true")
    assert contents(open_store(place), NAMES[4]) != before
    is_whole(open_store(place), NAMES[4])


def test_a_damaged_step_is_refused_by_name_and_the_ones_before_it_stay(copy: Path, tmp_path: Path, hub: Hub) -> None:
    weights = next((copy / "steps/step00000004").glob("model-*"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    place = str(tmp_path / "to")
    with pytest.raises(CheckpointError, match=rf"(?s){weights}: SHA-256 .*step 4 of .* is damaged and is not published"):
        publish(copy, place, "steps=[1,2,4,5]")
    store = open_store(place)
    assert store.revisions() == [NAMES[1], NAMES[2]]
    assert is_whole(store, "main").step == 2
    assert not (copy / ".publishing").exists()


def test_damage_at_the_target_is_told_and_mended_when_asked(run: Path, tmp_path: Path, hub: Hub) -> None:
    place = str(tmp_path / "to")
    publish(run, place, "steps=[5]")
    (tmp_path / "to" / NAMES[4] / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match="is published, and damaged there: config.json is missing; replace=true publishes it anew"
    ):
        publish(run, place, "steps=[5]")
    publish(run, place, "steps=[5]", "replace=true")
    is_whole(open_store(place), NAMES[4])
    (tmp_path / "to" / NAMES[4] / "release.json").write_text("{")
    with pytest.raises(
        CheckpointError, match="release.json cannot be used: .*; replace=true publishes stage1-step5-tokens0B anew"
    ):
        publish(run, place, "steps=[5]")
    publish(run, place, "steps=[5]", "replace=true")
    is_whole(open_store(place), NAMES[4])


def test_a_signed_release_brings_its_signature(run: Path, hub: Hub, tmp_path: Path) -> None:
    place = "hub:owner/first"
    write_key_pair(tmp_path / "key.pem")
    publish(run, place, "steps=[5]", f"sign={tmp_path / 'key.pem'}")
    assert json.loads(open_store(place).read(NAMES[4], "release.json.sig"))["algorithm"] == "ed25519"
    assert json.loads(open_store(place).read("main", "release.json.sig"))["algorithm"] == "ed25519"


def test_a_dry_run_writes_nothing_and_says_what_is_there(run: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    place = "hub:owner/first"
    publish(run, place, "dry_run=true", "optimizer_state=true")
    lines = capfd.readouterr().out.splitlines()[-6:]
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith("KiB  -") for line in lines)
    assert hub.repos == {}
    publish(run, place, "steps=5")
    hub.put("owner/first", NAMES[4], "more.txt", b"by hand")
    capfd.readouterr()
    publish(run, place, "dry_run=true", "steps=all")
    lines = capfd.readouterr().out.splitlines()[-6:]
    assert [line.endswith("  published, damaged: more.txt is not part of it") for line in lines] == [
        name == NAMES[4] for name in NAMES
    ]


def test_released_models_compute_what_the_run_computed(run: Path, hub: Hub, tmp_path: Path) -> None:
    publish(run, "hub:owner/first", "steps=[2,10]")
    code = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(48).view(3, 16) % 90
out = [AutoModelForCausalLM.from_pretrained("owner/first", revision=name)(ids).logits for name in sys.argv[2:]]
torch.save(out, sys.argv[1])
"""
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    words = [sys.executable, "-c", code, str(tmp_path / "logits.pt"), NAMES[2], NAMES[5], "main"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = torch.arange(48).view(3, 16) % 90
    two, ten, main = torch.load(tmp_path / "logits.pt")
    for step, theirs in ((2, two), (10, ten)):
        ours = load_model(open_checkpoint(str(run), step), torch.device("cpu"))(ids)
        ours = ours[0] if isinstance(ours, tuple) else ours
        torch.testing.assert_close(theirs.detach(), ours.detach().float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(ten, main)
    assert not torch.allclose(two, ten)


def test_a_published_release_opens_as_a_checkpoint(run: Path, s3: str) -> None:
    publish(run, s3, "steps=[5]")
    ours, theirs = open_checkpoint(str(run), 5), open_checkpoint(f"{s3}/{NAMES[4]}")
    assert theirs.step == 5
    for name in ours.weights.shapes:
        assert torch.equal(ours.weights.read(name), theirs.weights.read(name)), name


# ---- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 KiB; a release takes more."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file system for this test cannot be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_staging_disk_is_told_and_left_empty(run: Path, tiny: Path, tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(
        CheckpointError,
        match=rf"{tiny}/x: no space left while stage1-step5-tokens0B was assembled; it needs about .* KiB, nothing was left there or published of it; free space, or give staging=FOLDER on another disk",
    ):
        publish(run, "hub:owner/first", "steps=[5]", f"staging={tiny}/x")
    assert list(tiny.iterdir()) == []
    assert list(hub.repos["owner/first"].branches) == ["main"]


def test_a_full_target_disk_is_told_and_shows_nothing(run: Path, tiny: Path, hub: Hub) -> None:
    with pytest.raises(
        CheckpointError, match=r"No space left on device; stage1-step5-tokens0B was not published, and nothing of it is left"
    ):
        publish(run, str(tiny / "to"), "steps=[5]")
    assert open_store(str(tiny / "to")).revisions() == []
    assert list((tiny / "to/.publishing").iterdir()) == []


def test_staging_of_a_killed_publisher_is_removed(run: Path, tmp_path: Path, hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    def die() -> None:
        publishing.check_staged = lambda *_: os.kill(os.getpid(), 9)  # type: ignore[assignment]
        publish(run, str(tmp_path / "to"), "steps=[5]", f"staging={tmp_path}/staging")

    at_once(tmp_path, die)
    assert len(list((tmp_path / "staging").iterdir())) == 1
    publish(run, str(tmp_path / "to"), "steps=[4]", f"staging={tmp_path}/staging")
    assert not (tmp_path / "staging").exists()


# ---- what is refused ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Path], list[str]]] = {
    r"steps: 3 is not saved in .*; permanent steps: 0, 1, 2, 4, 5, 10": lambda run: ["steps=[3]"],
    r"steps=\[\] names no step; steps=all, or e.g. steps=\[100,200\]": lambda run: ["steps=[]"],
    r"run=nothing is not the folder of a run \(it has no config.yaml\); e.g. runs/first": lambda run: ["run=nothing"],
    r"target=hub:first is not a hub repository: hub:owner/name; a token comes from HF_TOKEN": lambda run: ["target=hub:first"],
    r"target=s3://\.\.\.@bucket/x holds credentials; give them by the environment": lambda run: [
        "target='s3://key:secret@bucket/x'"
    ],
    r"stage=0 must be at least 1, the first stage of training": lambda run: ["stage=0"],
    r"dtype=int8 is not one of float32, bfloat16, float16; leave it out": lambda run: ["dtype=int8"],
    r"main=old is neither newest, null nor the name of a revision, e.g. stage1-step100": lambda run: ["main=old"],
    r"workers=0 and retry.attempts=4 must be at least 1": lambda run: ["workers=0"],
    r"claims.expiry_s=3.0 must be at least 3 \* claims.beat_s=2.0, and the waits positive": lambda run: ["claims.beat_s=2"],
    r"nothing.pem": lambda run: ["sign=nothing.pem"],
    r"target is missing": lambda run: ["target=???"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_published_is_refused_before_anything_is_written(run: Path, tmp_path: Path, message: str) -> None:
    words = {word.split("=")[0]: word for word in [f"run={run}", f"target={tmp_path / 'to'}", *QUICK, *REFUSED[message](run)]}
    with pytest.raises(ConfigError, match=message):
        command.main(list(words.values()))
    assert not (tmp_path / "to").exists()


def test_all_problems_are_told_at_once(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(command.main, [f"run={run}", "target=hub:x", "stage=0", "workers=0", "tokn=hf_abcdefghijkl"]) == EXIT_USAGE
    error = capfd.readouterr().err
    assert "4 problems in the configuration:" in error
    assert "tokn is not a field of PublishConfig" in error
    assert "hf_abcdefghijkl" not in error


def test_a_step_that_the_run_removes_again_is_refused(copy: Path, tmp_path: Path) -> None:
    file = copy / "steps/step00000004/manifest.json"
    file.write_text(file.read_text().replace('"permanent"', '"ephemeral"'))
    with pytest.raises(
        ConfigError, match=r"steps: 4 of .* is ephemeral, the run removes it by and by; permanent steps: 0, 1, 2, 5, 10"
    ):
        publish(copy, str(tmp_path / "to"), "steps=[4]")
    publish(copy, str(tmp_path / "to"), "dry_run=true")


def test_a_chosen_main_that_is_not_there_is_refused(run: Path, tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(ConfigError, match=r"main=stage1-step7-tokens0B is not a release of .*; there are: stage1-step5-tokens0B"):
        publish(run, str(tmp_path / "to"), "steps=[5]", "main=stage1-step7-tokens0B")
    publish(run, str(tmp_path / "to"), "steps=[4,5]", f"main={NAMES[3]}")
    assert is_whole(open_store(str(tmp_path / "to")), "main").step == 4
    publish(run, str(tmp_path / "to"), "steps=[4,5]", "main=null")
    assert is_whole(open_store(str(tmp_path / "to")), "main").step == 4


def test_no_token_is_in_what_the_command_says_or_writes(
    run: Path, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(run, "hub:owner/first", "steps=[4]")
    hub.faults.append(Fault(r"POST .*/commit/", status=403, times=99))
    environment = os.environ | {"HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONDEVMODE": "1"}
    words = [sys.executable, "-m", "checkpoints.publish.command", f"run={run}", "target=hub:owner/first", "steps=[5]", *QUICK]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=Path(command.__file__).parents[2])
    assert done.returncode == EXIT_USAGE, done.stderr
    assert "Traceback" not in done.stderr
    shown = capfd.readouterr()
    assert WRITER not in done.stdout + done.stderr + shown.out + shown.err
    for folder in (tmp_path, run):
        for path in folder.rglob("*"):
            assert not path.is_file() or WRITER.encode() not in path.read_bytes(), path
    for commit in hub.repos["owner/first"].commits.values():
        assert all(WRITER.encode() not in entry.data for entry in commit.files.values())
