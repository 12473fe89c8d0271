"""What a trace can be asked of: runs, releases, indexes, shards; and what is said where something is missing."""

import json
import shutil
from pathlib import Path

import pytest

from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.opening import load_trace_config, open_trace
from olmo_train.errors import ConfigError, ShardError
from tests.data_tools.texts import tokenize
from tests.data_tools.trace.traced import PLANTED, Traced, opened, place_of, write_run


def write_release(traced: Traced, folder: Path, step: int, stage: int = 1, run: str = "first") -> Path:
    """A release as `olmo publish` lays it out, but for weights: manifests without shards, private paths cut."""
    release = folder / f"stage{stage}-step{step}-tokens0B"
    training = release / "training"
    (training / "data" / "demo").mkdir(parents=True)
    text = (traced.run / "config.yaml").read_text().replace(f"path: {traced.shards}", "path: data/demo")
    (training / "config.yaml").write_text(text)
    shutil.copyfile(traced.shards / "manifest.json", training / "data" / "demo" / "manifest.json")
    state = json.loads((traced.run / "steps" / "step00000060" / "state.json").read_text())
    (training / "state.json").write_text(json.dumps({**state, "step": step}))
    lines = (traced.run / "data.jsonl").read_text().splitlines(keepends=True)
    (training / "data.jsonl").write_text("".join(lines[:step]))
    (release / "release.json").write_text(json.dumps({"run": run, "step": step}))
    return release


def test_a_run_its_step_folder_its_shards_and_its_index_open_the_same_corpus(traced: Traced) -> None:
    run = opened(traced.run)
    step = opened(traced.run / "steps" / "step00000016")
    shards, index = opened(traced.shards), opened(traced.shards / "trace")
    manifest = opened(traced.shards / "manifest.json")
    assert {t.searcher.n_tokens for t in (run, step, shards, index, manifest)} == {run.searcher.n_tokens}
    assert run.history is not None
    assert step.history is not None
    assert step.history.folder == run.history.folder
    assert shards.history is index.history is manifest.history is None


def test_indexes_beside_one_that_is_named_are_opened_too(traced: Traced, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(traced.shards, other)
    trace = opened(traced.shards, f"indexes=['{other / 'trace'}']")
    ids = trace.searcher.tokenizer.encode(PLANTED)
    assert trace.searcher.count(ids) == 2 * opened(traced.shards).searcher.count(ids)


def test_two_sources_of_one_manifest_need_one_index(traced: Traced, tmp_path: Path) -> None:
    words = ["data.sources.demo.select=filler", f"data.sources.more.path='{traced.shards}'", "data.sources.more.select=planted"]
    run = write_run(tmp_path / "runs" / "two", traced.shards, *words)
    assert len(opened(run).searcher.folders) == 1


def test_a_release_is_traced_as_far_as_it_goes(traced: Traced, tmp_path: Path) -> None:
    release = write_release(traced, tmp_path, 32)
    trace = opened(release, f"indexes=['{traced.shards / 'trace'}']")
    history, whole = trace.history, opened(traced.run)
    assert history is not None
    assert whole.history is not None
    assert (history.last_step, history.saved) == (32, [32])
    place, n = place_of(trace, PLANTED)
    of_run = whole.history.sighted(whole.searcher, place, n).sights
    of_release = history.sighted(trace.searcher, place, n).sights
    assert [(s.step, s.row) for s in of_release] == [(s.step, s.row) for s in of_run]
    assert {s.mark for s in of_release if s.step > 32} == {"future"}
    assert {s.release_after for s in of_release if s.step <= 32} == {"stage1-step32-tokens0B"}


def test_a_folder_of_releases_is_traced_by_the_newest_and_names_the_first_after_each_step(traced: Traced, tmp_path: Path) -> None:
    for step in (16, 48, 60):
        write_release(traced, tmp_path, step)
    trace = opened(tmp_path, f"indexes=['{traced.shards / 'trace'}']")
    assert trace.history is not None
    assert (trace.history.last_step, trace.history.saved) == (60, [16, 48, 60])
    sighted = trace.history.sighted(trace.searcher, *place_of(trace, PLANTED))
    for sight in sighted.sights:
        first = min((step for step in (16, 48, 60) if step >= sight.step), default=None)
        assert sight.checkpoint_after == first
        assert sight.release_after == (None if first is None else f"stage1-step{first}-tokens0B")
    assert set(sighted.releases) <= {16, 48, 60}


def test_releases_of_a_run_are_named_beside_its_own_checkpoints(traced: Traced, tmp_path: Path) -> None:
    write_release(traced, tmp_path, 32)
    write_release(traced, tmp_path, 48, run="another")
    trace = opened(traced.run, f"releases='{tmp_path}'")
    assert trace.history is not None
    sighted = trace.history.sighted(trace.searcher, *place_of(trace, PLANTED))
    for sight in sighted.sights:
        assert sight.release_after == ("stage1-step32-tokens0B" if sight.step <= 32 else None)
        assert sight.checkpoint_after == next((step for step in (16, 32, 48, 60) if step >= sight.step), None)
    assert sighted.releases == {32: "stage1-step32-tokens0B"}


def test_what_the_reader_must_know_is_noted(traced: Traced, tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "runs" / "later", traced.shards, "load={path: runs/zero/steps/step00000010, optimizer_state: false}"
    )
    (run / "data.jsonl").unlink()
    notes = opened(run).find_notes()
    assert notes[0] == "the run began with the weights of runs/zero/steps/step00000010: what those saw before is not told here"
    assert notes[1] == f"{run / 'data.jsonl'} is missing: steps that were skipped and rows that were masked are not marked"
    assert opened(traced.run).find_notes() == opened(traced.shards).find_notes() == []


def test_an_index_of_other_shards_is_noted(traced: Traced, tmp_path: Path) -> None:
    other = tokenize(traced.documents, traced.shards / "tokenizer.json", tmp_path / "other", "heldout_frac=0.05")
    build(IndexConfig(str(other), processes=1))
    trace = opened(traced.run, f"indexes=['{traced.shards / 'trace'}', '{other / 'trace'}']")
    assert trace.find_notes() == [f"{other / 'trace'} is of shards that the run does not train on"]
    assert trace.history is not None
    places = trace.searcher.places(trace.searcher.find(trace.searcher.tokenizer.encode(f" {PLANTED}")))
    assert [trace.history.sighted(trace.searcher, p, 3).in_run for p in places] == [p.corpus == 0 for p in places]


def test_the_run_is_opened_from_the_shards_of_the_index_if_its_own_moved(traced: Traced, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "first"
    shutil.copytree(traced.run, run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"path: {traced.shards}", "path: gone"))
    trace = opened(run, f"indexes=['{traced.shards / 'trace'}']")
    assert trace.history is not None
    assert trace.history.sighted(trace.searcher, *place_of(trace, PLANTED)).sights


# ---- what is said --------------------------------------------------------------------------------------------------------


def refused(where: Path, *overrides: str) -> str:
    with pytest.raises((ConfigError, ShardError)) as caught:
        open_trace(str(where), load_trace_config(list(overrides)))
    return str(caught.value)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path} is no run, release, index or shards: none of config.yaml, training/config.yaml, index.json and manifest.json "
        "is there; give the folder of one"
    )
    assert "is no run, release, index or shards" in refused(tmp_path / "gone")


def test_an_index_that_is_missing_is_named_with_the_command_that_builds_it(traced: Traced, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(traced.shards, shards, ignore=shutil.ignore_patterns("trace"))
    assert refused(shards) == f"{shards / 'trace'} has no finished index; build it: olmo trace index shards={shards}"
    run = write_run(tmp_path / "runs" / "new", shards)
    assert refused(run) == f"{shards / 'trace'} has no finished index; build it: olmo trace index shards={shards}"
    message = refused(run, f"indexes=['{tmp_path / 'a'}', '{tmp_path / 'b'}']")
    for name in "ab":
        assert (
            f"{tmp_path / name} has no finished index; build one where the shards are (olmo trace index shards=FOLDER) and name it: "
            "indexes=[FOLDER/trace]"
        ) in message


def test_a_release_without_its_shards_says_what_to_give(traced: Traced, tmp_path: Path) -> None:
    release = write_release(traced, tmp_path, 32)
    there = release / "training" / "data" / "demo"
    assert refused(release) == (
        f"{there / 'trace'} has no finished index; {there} has a manifest, but not its shards: build one where the shards are "
        "(olmo trace index shards=FOLDER) and name it: indexes=[FOLDER/trace]"
    )


def test_two_releases_of_one_step_are_refused(traced: Traced, tmp_path: Path) -> None:
    write_release(traced, tmp_path, 32)
    write_release(traced, tmp_path, 32, stage=2)
    message = "stage1-step32-tokens0B and stage2-step32-tokens0B are of one step; give the folder of one stage"
    assert message in refused(tmp_path)
    assert message in refused(traced.run, f"releases='{tmp_path}'")


def test_a_damaged_release_is_named(traced: Traced, tmp_path: Path) -> None:
    release = write_release(traced, tmp_path, 32)
    (release / "release.json").write_text("{")
    assert f"{release / 'release.json'} cannot be used" in refused(traced.run, f"releases='{tmp_path}'")


def test_releases_of_other_runs_are_refused(traced: Traced, tmp_path: Path) -> None:
    write_release(traced, tmp_path, 32, run="another")
    assert refused(traced.run, f"releases='{tmp_path}'") == (
        f"releases={tmp_path} has no releases of the run first; give the folder of its releases"
    )


def test_everything_wrong_with_a_config_is_said_at_once(tmp_path: Path) -> None:
    words = [
        "spans.min_tokens=0", "spans.max_spans=0", "spans.max_count=0", "documents.per_span=0", "documents.context=-1",
        "documents.max_documents=0", "documents.seed=-1", "spans.delimiters=['']", "verify=none", f"releases='{tmp_path}'",
        "privacy.redact=[name]", "privacy.patterns={bad: '('}", f"privacy.blocked=['{tmp_path / 'gone'}']", "nothing=1",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        load_trace_config(words)
    message = str(caught.value)
    for part in (
        "spans.min_tokens=0 must be at least 1",
        "spans.max_spans=0 must be at least 1",
        "spans.max_count=0 must be at least 1",
        "documents.per_span=0 must be at least 1",
        "documents.context=-1 must be at least 0",
        "documents.max_documents=0 must be at least 1",
        "documents.seed=-1 must be at least 0",
        "spans.delimiters has an empty text, which would end every span before it begins; give a text",
        "verify=none must be one of size, spot, full",
        f"releases={tmp_path} has no releases (folders like stage1-step1000-tokens4B with a release.json)",
        "privacy.redact=name is not a kind of personal data; kinds: email, iban, credit_card, ip, phone, or use patterns",
        "privacy.patterns.bad='(' is no regular expression of Python",
        f"privacy.blocked={tmp_path / 'gone'}: ",
        "nothing",
    ):
        assert part in message, part
