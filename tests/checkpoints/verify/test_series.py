"""Releases that are whole one by one, but do not fit together: exchanged, doubled, lost, or contradicted by the index."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from checkpoints.release import INDEX, MAIN, MANIFEST, IndexEntry, Release, read_release_folder
from checkpoints.verify import series
from checkpoints.verify.command import main
from checkpoints.verify.series import Known, series_problems, twins
from olmo_train.errors import EXIT_FAILED, ConfigError, run_command
from tests.checkpoints.verify.releases import assemble_series, edit_json, finish, flip, forge, name, problems, write
from tests.hub_server import Entry, Hub, serve_hub

STEPS = (0, 1, 2, 4, 5, 10)
WEIGHTS = "model.safetensors"


def exchange(a: Path, b: Path) -> None:
    aside = a.with_name("aside")
    a.rename(aside)
    b.rename(a)
    aside.rename(b)


# ---- whole ones ---------------------------------------------------------------------------------------------------------


def test_a_whole_series_passes_without_a_word_of_complaint(releases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, [str(releases)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(": whole, ")[0] for line in lines[:-1]] == [*map(name, STEPS), MAIN]
    assert lines[-1] == f"{releases}: 6 releases that fit together"
    assert err == ""
    assert problems(releases, "--quick") == []


def test_weights_that_were_rounded_and_published_without_optimizer_pass_too(run: Path, tmp_path: Path) -> None:
    assemble_series(run, [4, 5, 10], tmp_path, dtype="bfloat16", optimizer_state=False)
    assert problems(tmp_path) == []


def test_only_the_chosen_revisions_are_read(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(store / name(1) / "README.md")
    assert problems(store, f"--revision={name(4)}", f"--revision={name(5)}") == []
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [name(4), name(5)]
    assert len(problems(store, f"--revision={name(1)}")) == 1
    with pytest.raises(ConfigError, match=f"no release {name(3)}; there are: {name(0)}, {name(1)}, "):
        problems(store, f"--revision={name(3)}")


@pytest.fixture
def hub(releases: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has the releases as owner/name, a branch each, and another branch."""
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        repo = hub.create("owner/name")
        for folder in releases.iterdir():
            paths = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): Entry(path.read_bytes(), None) for path in paths}
            repo.commit(folder.name, None, folder.name, files)
        repo.commit("gguf", None, "of somebody", {"model.gguf": Entry(b"GGUF", None)})
        yield hub


def test_a_hub_is_verified_by_streaming_and_nothing_is_kept(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert problems("owner/name") == []
    assert problems(f"owner/name@{name(5)}") == []
    hub.flip("owner/name", name(5), WEIGHTS)
    for where in (f"hub:owner/name@{name(5)}", "owner/name"):
        assert any(line.startswith(f"{name(5)}: {WEIGHTS}: tensor ") for line in problems(where))
    repo = hub.repos["owner/name"]
    repo.branches[name(1)], repo.branches[name(2)] = repo.branches[name(2)], repo.branches[name(1)]
    found = problems("owner/name", "--quick")
    assert any(line.startswith(f"{name(1)}: release.json: it is {name(2)} that lies under the name {name(1)}") for line in found)
    del repo.branches[name(4)]
    assert any(
        line.startswith(f"{MAIN}: {INDEX}: lists {name(4)}, which is not there") for line in problems("owner/name", "--quick")
    )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"owner/other: no such repository on http://127"):
        problems("owner/other")


# ---- exchanged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--quick"]])
def test_two_exchanged_revisions_are_found(store: Path, words: list[str]) -> None:
    exchange(store / name(4), store / name(5))
    found = problems(store, *words)
    for here, there in ((4, 5), (5, 4)):
        wrong = f"{name(here)}: release.json: it is {name(there)} that lies under the name {name(here)}; put each release under its own name"
        assert wrong in found


def test_exchanged_weights_under_forged_manifests_break_the_chain_and_the_path(store: Path) -> None:
    exchange(store / name(2) / WEIGHTS, store / name(4) / WEIGHTS)
    digests = {step: read_release_folder(store / name(step)).weights_sha256 for step in (2, 4)}
    for step in (2, 4):
        forge(store / name(step))
    finish(store)
    found = problems(store)
    assert (
        f"{name(4)}: release.json: its parent {name(2)} had weights_sha256={digests[2]}, {name(2)} here has {digests[4]}; "
        f"it was exchanged since: publish {name(2)} again from its run"
    ) in found
    assert any(line.startswith(f"{name(2)}: does not lie between {name(1)} and {name(4)}: ") for line in found)


@pytest.mark.parametrize("first", range(5))
def test_the_path_through_the_weights_alone_shows_any_two_neighbours_exchanged(store: Path, first: int) -> None:
    a, b = (store / name(step) for step in STEPS[first : first + 2])
    exchange(a / WEIGHTS, b / WEIGHTS)
    forge_the_chain(store)
    found = problems(store)
    assert found
    assert all(" does not lie between " in line and "two of the three look exchanged" in line for line in found)


def forge_the_chain(store: Path) -> None:
    parent = None
    for step in STEPS:

        def change(release: Release, parent: Release | None = parent) -> None:
            if parent is not None and release.parent is not None:
                release.parent["weights_sha256"] = parent.weights_sha256

        forge(store / name(step), change)
        parent = read_release_folder(store / name(step))
    finish(store)


# ---- doubled ------------------------------------------------------------------------------------------------------------


def test_one_revision_under_two_names_is_found(store: Path) -> None:
    shutil.rmtree(store / name(5))
    shutil.copytree(store / name(4), store / name(5))
    found = problems(store)
    assert (
        f"{name(5)}: release.json: it is {name(4)} that lies under the name {name(5)}; put each release under its own name"
        in found
    )
    n = len(read_release_folder(store / name(4)).tensors)
    assert any(
        line.startswith(f"{name(5)}: {n} of {n} tensors equal those of {name(4)}; different steps have different weights")
        for line in found
    )


def test_the_weights_of_another_step_are_found_although_everything_else_was_forged(store: Path) -> None:
    shutil.copyfile(store / name(2) / WEIGHTS, (store / name(5) / WEIGHTS).with_suffix(".new"))
    os.replace((store / name(5) / WEIGHTS).with_suffix(".new"), store / name(5) / WEIGHTS)
    forge_the_chain(store)
    found = problems(store)
    n = len(read_release_folder(store / name(5)).tensors)
    assert any(line.startswith(f"{name(5)}: {n} of {n} tensors equal those of {name(2)}; ") for line in found)


def test_a_single_tensor_that_must_differ_is_enough(store: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = {step: load_file(store / name(step) / WEIGHTS) for step in (2, 5)}
    (store / name(5) / WEIGHTS).unlink()
    save_file({**tensors[5], series.MUST_DIFFER: tensors[2][series.MUST_DIFFER]}, store / name(5) / WEIGHTS, {"format": "pt"})
    forge_the_chain(store)
    found = problems(store)
    assert any(line.startswith(f"{name(5)}: 1 of {len(tensors[5])} tensors equal those of {name(2)}; ") for line in found)


# ---- lost ---------------------------------------------------------------------------------------------------------------


def test_a_deleted_revision_is_missed_by_its_child_and_by_the_index(store: Path) -> None:
    shutil.rmtree(store / name(4))
    found = problems(store)
    assert f"{name(5)}: release.json: its parent {name(4)} is not in the series; publish that release again" in found
    assert (
        f"{MAIN}: {INDEX}: lists {name(4)}, which is not there; publish it again, or else any `olmo publish` to this target writes it anew"
        in found
    )


def test_a_renamed_revision_is_missed_and_found_under_its_new_name(store: Path) -> None:
    (store / name(4)).rename(store / "stage1-step4")
    found = problems(store)
    assert any(line.startswith(f"{MAIN}: {INDEX}: lists {name(4)}, which is not there") for line in found)
    assert "stage1-step4: an upload that was never finished, or not a release: publish it again, or remove it" in found


def test_an_unfinished_revision_is_told(store: Path) -> None:
    (store / name(4) / MANIFEST).unlink()
    found = problems(store)
    assert f"{name(4)}: an upload that was never finished, or not a release: publish it again, or remove it" in found


def test_a_revision_that_was_cut_is_told(store: Path) -> None:
    os.truncate(store / name(4) / WEIGHTS, 5000)
    assert any(line.startswith(f"{name(4)}: {WEIGHTS}: 5000 bytes, release.json says ") for line in problems(store, "--quick"))


def entry(step: int, **values: object) -> IndexEntry:
    return replace(IndexEntry(name(step), 1, step, step * 256, 2.0, f"w{step}", f"r{step}"), **values)  # type: ignore[arg-type]


def release_of(step: int, **values: object) -> Known:
    tensors = {"a": f"a{step}".encode(), "b": f"b{step}".encode(), series.MUST_DIFFER: f"e{step}".encode()}
    known = Known(entry(step), None, ("OlmoeForCausalLM", ("total", 8)), 1, tensors, 1000, 256)
    return replace(known, **values)  # type: ignore[arg-type]


def known(*steps: int) -> dict[str, Known]:
    return {name(step): release_of(step) for step in steps}


def test_a_regular_series_that_lacks_steps_is_told_and_log_spaced_ones_are_no_gap() -> None:
    assert series_problems(known(0, 1, 2, 4, 512, 1000, 2000, 3000, 3333), {}) == []
    assert series_problems(known(2000, 4000, 6000), {}) == []  # every second was published
    (found,) = series_problems(known(1, 2, 1000, 2000, 4000, 5000), {})
    remedy = "publish what is missing, or name the revisions to verify with --revision"
    assert found == f"stage 1: a release every 1000 steps, but none of step 3000; {remedy}"
    assert series_problems(known(1, 2, 1000, 2000, 4000, 5000), {}, is_whole=False) == []
    assert series_problems(known(1000, 50_000), {}) == []  # two points are no rule


# ---- together ------------------------------------------------------------------------------------------------------------


def test_tokens_and_steps_grow_together() -> None:
    releases = known(1, 2, 3)
    releases[name(3)] = release_of(3, entry=entry(3, tokens=500))
    assert series_problems(releases, {}) == [
        f"{name(3)}: 500 tokens at step 3, but {name(2)} had 512 at step 2; more steps see more tokens: publish the wrong one again"
    ]
    releases[name(3)] = release_of(3, batch=512)
    assert series_problems(releases, {}) == [
        f"{name(3)}: 512 tokens per step, {name(2)} has 256; they are of different runs: use another stage"
    ]
    releases["stage1-step2-tokens1B"] = release_of(9, entry=entry(2, name="stage1-step2-tokens1B"))
    assert f"stage1-step2-tokens1B: step 2 of stage 1 is also {name(2)}; remove the wrong one" in series_problems(releases, {})


def test_a_stage_has_one_model() -> None:
    for other in ({"model": ("OlmoForCausalLM", ("total", 8))}, {"shapes": 2}):
        releases = known(1, 2) | {name(3): release_of(3, **other)}
        (found,) = series_problems(releases, {})
        assert found.startswith(f"{name(3)}: another model than {name(2)} in the same stage: Olmo")


def test_a_parent_must_come_before() -> None:
    releases = known(1, 2)
    releases[name(1)] = release_of(1, parent={"name": name(2), "weights_sha256": "w2"})
    assert series_problems(releases, {}) == [
        f"{name(1)}: release.json: its parent {name(2)} is not before it; the two are exchanged: publish both again"
    ]


def test_steps_that_were_all_skipped_may_leave_the_weights_as_they_were() -> None:
    releases = known(1, 2, 4)
    releases[name(4)] = release_of(4, tensors=releases[name(2)].tensors)
    assert twins(releases) == [(name(2), name(4))]
    assert series_problems(releases, {name(4): {3, 4}}) == []
    assert len(series_problems(releases, {name(4): {4}})) == 1


def test_a_stage_begins_with_the_weights_of_the_one_before() -> None:
    releases = known(4)
    begin = entry(0, name="stage2-step0-tokens0B", stage=2)
    releases[begin.name] = release_of(0, entry=begin, tensors=releases[name(4)].tensors)
    assert series_problems(releases, {}) == []


def test_a_walk_with_noise_has_no_wrong_order_and_two_stages_are_two_walks() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(50, 2000)).cumsum(0)
    path = series.Path()
    assert [problem for i, weights in enumerate(steps) for problem in path.add(str(i), 1, {"a": weights})] == []
    assert path.add("next stage", 2, {"a": steps[0]}) == []


# ---- the index and main -------------------------------------------------------------------------------------------------


def test_an_index_that_disagrees_is_told(store: Path) -> None:
    def change(values: dict) -> None:  # type: ignore[type-arg]
        rows = values["releases"]
        rows[0]["tokens"] = 7
        rows[1] = rows[2]

    edit_json(store / MAIN / INDEX, change)
    again = "any `olmo publish` to this target writes it anew"
    assert problems(store) == [
        f"{MAIN}: {INDEX}: lists {name(2)} twice; {again}",
        f"{MAIN}: {INDEX}: does not list {name(1)}, which is there; {again}",
        f"{MAIN}: {INDEX}: tokens=7 for {name(0)}, its release.json says 0; {again}",
    ]


def test_a_series_without_an_index_or_main_is_told(store: Path) -> None:
    write(store / MAIN / INDEX, b"{")
    (found,) = problems(store)
    assert found.startswith(f"{MAIN}: {MAIN}/{INDEX} cannot be used: ")
    shutil.rmtree(store / MAIN)
    found_all = problems(store)
    assert any("without the index nobody sees what is missing" in line for line in found_all)
    assert any("without a whole release.json it is unfinished" in line for line in found_all)


def test_main_must_be_the_newest_release_unless_another_is_named(store: Path) -> None:
    index = (store / MAIN / INDEX).read_bytes()
    shutil.rmtree(store / MAIN)
    shutil.copytree(store / name(5), store / MAIN)
    (store / MAIN / INDEX).write_bytes(index)
    assert problems(store) == [f"{MAIN}: is {name(5)}, the newest is {name(10)}; publish the newest release again"]
    assert problems(store, f"--main={name(5)}") == []
    assert problems(store, "--main=none") == []
    flip(store / MAIN / WEIGHTS, -1)
    assert any(line.startswith(f"{MAIN}: {WEIGHTS}: SHA-256 ") for line in problems(store, f"--main={name(5)}"))
    (store / MAIN / "README.md").write_text("new")
    forge(store / MAIN)
    assert problems(store) == [
        f"{MAIN}: calls itself {name(5)} and is none of the releases, the newest is {name(10)}; publish the newest release again"
    ]
    with pytest.raises(ConfigError, match="--main=x is neither a revision nor newest nor none"):
        problems(store, "--main=x")


# ---- the command --------------------------------------------------------------------------------------------------------


def test_all_problems_of_all_revisions_are_told(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(store / name(1) / "README.md")
    flip(store / name(4) / "config.json", 0)
    (store / name(10) / "README.md").unlink()
    file = tmp_path / "found.json"
    assert run_command(main, [str(store), f"--json={file}"]) == EXIT_FAILED
    out, err = capsys.readouterr()
    assert [line.split(": ")[1].split(",")[0] for line in out.splitlines()] == [
        "whole",
        "WRONG",
        "whole",
        "WRONG",
        "whole",
        "WRONG",
        "whole",
    ]
    told = err.removeprefix("error: ").splitlines()
    assert {line.split(": ")[0] for line in told} == {name(1), name(4), name(10)}
    found = json.loads(file.read_text())
    assert (found["problems"], found["is_good"]) == (told, False)
    assert [checked["name"] for checked in found["checked"]] == [*map(name, STEPS), MAIN]
