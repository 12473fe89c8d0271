"""What would have been without a document: trained again, against brute force, and everything that cannot be asked."""

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from checkpoints.trace.replay_command import main
from data_tools.inspect.run_order import open_run
from data_tools.trace.build_index import build
from data_tools.trace.config import IndexConfig
from data_tools.trace.searcher import Searcher
from olmo_train.config.train import TrainConfig
from olmo_train.data.order import DataOrder, Sighting
from olmo_train.data.shards import Corpus
from olmo_train.errors import EXIT_USAGE, CheckpointError, ConfigError
from olmo_train.schema import read_yaml
from tests.checkpoints.trace.planted import PLANTED, Planted
from tests.checkpoints.verify.releases import assemble_series
from tests.runs import weights
from tests.texts import TextCorpus


def order_of(run: Path) -> DataOrder:
    return open_run(str(run))[1]


def sightings(order: DataOrder, document: str, last: int) -> list[Sighting]:
    """Of all documents with an id."""
    spans = [(f, *f.index.span(n)) for source in order.sources for f in source.files for n in f.index.find(document)]
    return sorted((s for f, a, b in spans for s in order.sightings(f, a, b, last)), key=lambda s: (s.step, s.row))


def first_seen(run: Path, first: int, last: int, least: int = 8) -> str:
    """A document that was first seen in steps first..last, with at least so many of its tokens in one row."""
    order = order_of(run)
    for step in range(first, last + 1):
        for instance in order.batch(step):
            for span in order.documents(instance):
                name = span.file.index.row(span.ordinal).id
                inside = span.column_end - span.column_start >= least and span.column_start > 0
                if inside and sightings(order, name, last)[0].step == step:
                    return name
    raise AssertionError("no such document")


def asked(folder: Path, *words: object) -> dict[str, Any]:
    """The JSON of a replay."""
    file = folder / "found.json"
    main([*map(str, words), f"--json={file}"])
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def reading(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in found["readings"] if r["name"] == name)


def refused(*words: object) -> str:
    """The problem of what cannot be asked."""
    with pytest.raises(ConfigError) as raised:
        main([*map(str, words)])
    return str(raised.value)


# ---- a run on two ranks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replayed:
    """One replay with all that it left."""

    name: str
    found: dict[str, Any]
    told: str
    keep: Path


@pytest.fixture(scope="module")
def replayed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Replayed:
    """Of a document that was first seen after step 5. Read only."""
    folder, name, out = tmp_path_factory.mktemp("replayed"), first_seen(run, 6, 10), io.StringIO()
    with contextlib.redirect_stdout(out):
        found = asked(folder, run, "--document", name, "--keep", folder / "keep")
    return Replayed(name, found, out.getvalue(), folder / "keep")


def test_the_control_is_the_run_bit_for_bit_and_the_counterfactual_is_not(run: Path, replayed: Replayed) -> None:
    name, found, told, keep = replayed.name, replayed.found, replayed.told, replayed.keep
    order = order_of(run)
    seen = sightings(order, name, 10)
    assert (found["start_step"], found["end_step"], found["steps"]) == (5, 10, 5)
    assert [(s["step"], s["row"]) for s in found["sights"]] == [(s.step, s.row) for s in seen]
    assert (found["baseline"], found["rows_before"], found["left_out"]) == ("as it was", 0, [name])
    control, without = keep / "control/run", keep / "without/run"
    assert weights(control, 10) == weights(run, 10)
    assert weights(without, 10) != weights(run, 10)
    assert found["control"]["is_equal"]
    assert not found["removal"]["is_equal"]
    assert 0 < found["removal"]["of_update"] < 1
    assert reading(found, "as it was")["log_probs_T"] == reading(found, "published")["log_probs_T"]
    assert found["machines"] == []
    assert found["effect"] == pytest.approx(sum(found["effects_T"]))
    config = read_yaml(without / "steps/step00000010/config.yaml", TrainConfig)
    assert config.data.without is not None
    assert (config.data.without.documents, config.data.without.after_step) == ([name], 5)
    assert read_yaml(control / "config.yaml", TrainConfig).data.without is None
    assert f"seen after step 5 up to 10 in {len(seen)} rows: step {seen[0].step} row {seen[0].row}" in told
    assert "to train: 5 steps 2 times (as it was, without), 2,560 tokens in all" in told
    assert "  control: the published weights bit for bit" in told
    assert "any change of a batch moves all weights a little" in told


def test_probabilities_are_those_of_the_models_on_the_row_that_was_seen(run: Path, replayed: Replayed) -> None:
    name, found, keep = replayed.name, replayed.found, replayed.keep
    order = order_of(run)
    tokens = found["span"]["end"] - found["span"]["start"]
    sight = next(
        s
        for s in sightings(order, name, 10)
        if s.column_start > 0 and s.offset_start <= found["span"]["start"] and found["span"]["end"] <= s.offset_end
    )
    (instance,) = order.batch(sight.step, sight.row, sight.row + 1)
    row = [int(i) for piece in instance.pieces for i in piece.file.read(piece.start, piece.end)]
    first = sight.column_start + found["span"]["start"] - sight.offset_start
    folders = {
        "before": run / "steps/step00000005",
        "published": run / "steps/step00000010",
        "without": keep / "without/run/steps/step00000010",
    }
    assert found["context"]["kind"] == "row"
    assert [r["name"] for r in found["readings"]] == ["before", "published", "as it was", "without"]
    for label, folder in folders.items():
        model = load_model(open_step_folder(folder), torch.device("cpu"))
        with torch.no_grad():
            hidden = model.hidden(torch.tensor([row]))[0][0]
            log_probs = torch.log_softmax(hidden @ model.lm_head.weight.T, -1)
        expected = [float(log_probs[first + t - 1, row[first + t]]) for t in range(tokens)]
        assert reading(found, label)["log_probs_T"] == pytest.approx(expected, rel=1e-4), label
        assert reading(found, label)["log_prob"] == pytest.approx(sum(expected), rel=1e-4)
        assert reading(found, label)["heldout"]["demo"] == pytest.approx(heldout(model, order), rel=1e-4)
    assert found["effect"] == pytest.approx(reading(found, "published")["log_prob"] - reading(found, "without")["log_prob"])


def heldout(model: Any, order: DataOrder) -> float:
    """Nats per token over the first 64 held-out instances, one at a time."""
    from olmo_train.data.order import HeldoutStream

    stream = HeldoutStream(list(order.sources[0].files), order.seq_len)
    nats = n = 0.0
    for number in range(min(64, stream.n)):
        row = [int(i) for piece in stream.pieces(number) for i in piece.file.read(piece.start, piece.end)]
        with torch.no_grad():
            log_probs = torch.log_softmax(model.hidden(torch.tensor([row]))[0][0] @ model.lm_head.weight.T, -1)
        nats -= sum(float(log_probs[t, row[t + 1]]) for t in range(len(row) - 1))
        n += len(row) - 1
    return nats / n


@pytest.mark.slow
def test_another_number_of_ranks_shows_the_same_and_an_index_elsewhere_may_be_named(
    run: Path, replayed: Replayed, corpus: TextCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(IndexConfig(shards=str(corpus.shards), output=str(tmp_path / "index"), processes=1))
    index = f"indexes=[{tmp_path / 'index'}]"
    two, one = replayed.found, asked(tmp_path, run, "--document", replayed.name, "--ranks=1", index)
    assert not one["control"]["is_equal"]
    assert one["control"]["of_update"] < 1e-4
    assert one["effect"] == pytest.approx(two["effect"], rel=0.02)
    assert one["removal"]["of_update"] == pytest.approx(two["removal"]["of_update"], rel=1e-3)
    told = capsys.readouterr().out
    assert "  control: NOT the published weights: difference " in told
    assert "    not as then: n_ranks: 2 there, 1 here" in told
    assert "the control is not the published checkpoint bit for bit, but both trainings are of this machine" in told
    assert "nobody looked for other documents with the span" in replayed.told
    ids = document_ids(corpus.shards, replayed.name)[one["span"]["start"] : one["span"]["end"]]
    assert one["other_documents_with_span"] == n_holders(corpus.shards, ids, replayed.name)


def n_holders(shards: Path, ids: list[int], name: str) -> int:
    """Training documents but `name` that hold some tokens, one comparison at a time."""
    holders = 0
    for file in Corpus(shards).files:
        for n in range(file.entry.documents):
            a, b = file.index.span(n)
            tokens = file.read(a, b).tolist()
            is_held = any(tokens[i : i + len(ids)] == ids for i in range(len(tokens)))
            holders += is_held and file.index.train_position(a) is not None and file.index.row(n).id != name
    return holders


def document_ids(shards: Path, name: str) -> list[int]:
    found: list[int] = next(f.read(*f.index.span(n)).tolist() for f in Corpus(shards).files for n in f.index.find(name))
    return found


def test_steps_before_the_document_are_trained_to_the_same_bits(run: Path, replayed: Replayed) -> None:
    first, keep = sightings(order_of(run), replayed.name, 10)[0].step, replayed.keep
    lines = [json.loads(line) for line in (keep / "without/run/metrics.jsonl").read_text().splitlines()]
    real = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ours, theirs = ({line["step"]: line["loss"] for line in part} for part in (lines, real))
    assert all(ours[step] == theirs[step] for step in range(1, first))
    assert ours[first] != theirs[first]


def test_a_step_folder_is_where_the_replay_starts(run: Path) -> None:
    assert refused(run / "steps/step00000004", "--document", first_seen(run, 6, 10), "--from=5") == (
        f"--from=5 goes with a run or a store of releases; {run}/steps/step00000004 is where the replay starts"
    )


def test_a_ledger_that_says_other_data_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = first_seen(copy, 6, 10)
    seen = {s.step for s in sightings(order_of(copy), name, 10)}
    step = next(step for step in range(6, 11) if step not in seen)
    lines = [json.loads(line) for line in (copy / "data.jsonl").read_text().splitlines()]
    lines[step - 1]["checksum"] += 1
    (copy / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checksum = lines[step - 1]["checksum"]
    with pytest.raises(CheckpointError) as raised:
        main([str(copy / "steps/step00000004"), "--document", name, "--no-control", "--ranks=1"])
    assert str(raised.value) == (
        f"step {step} was fed other data: checksum {checksum - 1}, as it was {checksum}\n"
        "the shards are not those of the run; fetch them again"
    )
    told = capsys.readouterr().out
    assert "seen after step 4 up to 10 in " in told
    assert "to train: 6 steps 1 times (without), 1,536 tokens in all" in told


@pytest.mark.slow
def test_releases_are_replayed_to_the_bits_of_the_run(run: Path, replayed: Replayed, corpus: TextCorpus, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    assemble_series(run, [5, 10], store)
    name, shards = replayed.name, f"--shards=demo={corpus.shards}"
    found = asked(tmp_path, store, "--document", name, shards, "--no-control")
    assert (found["start"], found["end"]) == ("stage1-step5-tokens0B", "stage1-step10-tokens0B")
    assert found["baseline"] == "published"
    assert [found["effect"], found["removal"]] == [replayed.found["effect"], replayed.found["removal"]]
    assert reading(found, "without") == reading(replayed.found, "without")
    assert "give --shards demo=FOLDER with the shards of the run" in refused(store, "--document", name)
    assert "--shards web=" in refused(store, "--document", name, shards, f"--shards=web={corpus.shards}")
    assert refused(store, "--document", name, shards, "--from=stage1-step7-tokens0B") == (
        f"--from=stage1-step7-tokens0B is not a checkpoint of {store}; there are: stage1-step5-tokens0B, stage1-step10-tokens0B"
    )


# ---- a document that stands many times -----------------------------------------------------------------------------------


def planted_name(planted: Planted) -> str:
    """The copy that was seen first."""
    order = order_of(planted.run)
    for step in range(1, 61):
        for instance in order.batch(step):
            for span in order.documents(instance):
                name = span.file.index.row(span.ordinal).id
                if name.startswith("planted") and span.column_end - span.column_start > 10:
                    return name
    raise AssertionError


def all_planted(planted: Planted) -> list[str]:
    files = Corpus(planted.shards).files
    rows = [file.index.row(n) for file in files for n in range(file.entry.documents)]
    return [row.id for row in rows if row.id.startswith("planted")]


@pytest.mark.slow
def test_what_was_seen_often_is_less_probable_without(
    planted: Planted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, words = planted_name(planted), " ".join(PLANTED.split()[8:16])
    found = asked(
        tmp_path, planted.run, "--document", name, "--copies", "--from=0", "--to=last", "--max-steps=25", f"--span={words}",
        "--context=document", "--placebos=1",
    )  # fmt: skip
    assert sorted(found["left_out"]) == sorted(all_planted(planted))
    assert found["control"]["is_equal"]
    assert (found["start_step"], found["end_step"], found["other_documents_with_span"]) == (0, 20, 0)
    before, there, gone = (reading(found, n)["log_prob"] for n in ("before", "as it was", "without"))
    assert before < gone < there
    assert found["effect"] > 5
    assert len(found["placebos"]) == 1
    assert all(abs(placebo["effect"]) < found["effect"] / 3 for placebo in found["placebos"])
    assert not {placebo["document"] for placebo in found["placebos"]} & set(all_planted(planted))
    rows = [(s["step"], s["row"]) for s in found["sights"]]
    order = order_of(planted.run)
    assert sorted(rows) == sorted((s.step, s.row) for n in all_planted(planted) for s in sightings(order, n, 20))
    told = capsys.readouterr().out
    assert f"left out with it: {len(all_planted(planted)) - 1} more documents; other ids: " in told
    assert "of other documents of the same steps, left out instead: " in told
    assert "  token" in told


def test_a_text_is_led_back_to_the_first_document_of_its_longest_part_and_copies_that_stay_are_told_of(
    planted: Planted, tmp_path: Path
) -> None:
    words = " ".join(PLANTED.split()[3:12])
    hidden = PLANTED.split()[5]
    text = f"--text=nothing of the kind {words} quite"
    found = asked(tmp_path, planted.run, text, "--no-control", f"privacy.patterns={{animal: {hidden}}}")
    ids = document_ids(planted.shards, found["document"])[found["span"]["start"] : found["span"]["end"]]
    searcher = Searcher([planted.shards / "trace"])
    assert words.split()[2] in searcher.tokenizer.decode(ids)
    assert found["document"] in all_planted(planted)
    first = min(searcher.places(searcher.find(ids)), key=lambda p: (p.corpus, p.file, p.offset))
    file = searcher.file(first)
    assert file.index.row(file.index.documents_between(first.offset, first.offset + 1)[0]).id == found["document"]
    assert found["other_documents_with_span"] == len(all_planted(planted)) - 1
    assert (
        f"{len(all_planted(planted)) - 1} other documents of the run hold the span and were not left out" in found["cautions"][0]
    )
    assert hidden in searcher.tokenizer.decode(ids)
    assert hidden not in found["context"]["text"] + "".join(found["span"]["tokens"])


def test_blocked_documents_are_none_of_the_run(planted: Planted, tmp_path: Path) -> None:
    name = planted_name(planted)
    (tmp_path / "blocked").write_text(f"{name}\n")
    told = refused(planted.run, "--document", name, f"privacy.blocked=[{tmp_path / 'blocked'}]")
    assert told.startswith(f"--document={name}: no document of the run has this id; ")


# ---- what cannot be asked ------------------------------------------------------------------------------------------------


def test_words_that_do_not_go_together_are_told_at_once(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    told = refused(
        run, "--text=a", "--span=b", "--shards=web", "--ranks=0", "--max-steps=0", "--placebos=-1", f"--keep={tmp_path / 'full'}"
    )
    for line in (
        "--shards web is not NAME=FOLDER; e.g. --shards web=shards/web",
        "--ranks=0 must be at least 1",
        "--max-steps=0 must be at least 1",
        "--placebos=-1 must be at least 0",
        "--span goes with --document; with --text the span is what the document has of it",
        f"--keep={tmp_path / 'full'} is there already and is not an empty folder; give another",
    ):
        assert line in told
    assert "is in a folder that does not exist" in refused(run, "--document=x", f"--json={tmp_path}/none/found.json")


def test_an_index_that_is_named_must_be_there(run: Path, tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert refused(run, "--document", first_seen(run, 6, 10), f"indexes=[{missing}]") == (
        f"indexes: {missing} is no index (it has no index.json); build it: olmo trace index shards=SHARDS output={missing}"
    )


def test_a_folder_with_a_manifest_that_is_no_step_of_a_run_is_told(run: Path, corpus: TextCorpus) -> None:
    assert refused(corpus.shards, "--document=x") == (
        f"{corpus.shards} is no step folder of a run (no config.yaml two folders up); give the folder of a run"
    )


def test_contexts_that_are_not_there_are_named_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([str(run), "--document=x", "--context=text"])
    assert raised.value.code == EXIT_USAGE
    assert "argument --context: invalid choice: 'text' (choose from 'row', 'document')" in capsys.readouterr().err


def test_documents_that_cannot_be_left_out_are_told(run: Path, corpus: TextCorpus) -> None:
    assert refused(run, "--document=nobody") == (
        f"--document=nobody: no document of the run has this id; `olmo data batch {run} 1` shows some"
    )
    heldout, unseen = named(run, corpus, is_heldout=True), named(run, corpus, is_heldout=False)
    assert refused(run, "--document", heldout) == (
        f"--document={heldout} is held out: no step saw it, so leaving it out changes nothing"
    )
    assert refused(run, "--document", unseen) == (
        f"document {unseen}: no step up to the newest checkpoint, step 10, saw it; name another"
    )


def named(run: Path, corpus: TextCorpus, is_heldout: bool) -> str:
    """A document that is held out, or one that the run has not come to."""
    order = order_of(run)
    for file in Corpus(corpus.shards).files:
        for n in range(file.entry.documents):
            row = file.index.row(n)
            if (file.index.train_position(row.start) is None) == is_heldout and not sightings(order, row.id, 10):
                return row.id
    raise AssertionError


def test_checkpoints_that_are_not_around_a_sighting_are_told(run: Path, copy: Path) -> None:
    name = first_seen(run, 6, 10)
    first = sightings(order_of(run), name, 10)[0].step
    assert refused(run, "--document", name, "--from=3") == (
        f"--from=3 is not a checkpoint of {run}; there are: 0, 1, 2, 4, 5, 10"
    )
    assert refused(run, "--document", name, "--from=10").startswith(
        f"--from=10: no step after 10 up to 10 saw document {name}; seen in {first}"
    )
    assert refused(run, "--document", name, "--from=2", "--to=step4") == (
        f"--to=step4: between step 2 and 4 no step saw the document; the first that did is step {first}; give one of 10"
    )
    assert refused(run, "--document", name, "--max-steps=4") == (
        "from step 5 to 10 are 5 steps of 256 tokens, more than --max-steps=4; raise it if this machine can train so many, or "
        "choose nearer checkpoints with --from, --to"
    )
    for step in (1, 2, 4, 5):
        strip_optimizer(copy / f"steps/step{step:08d}")
    assert refused(copy, "--document", name, "--from=5") == (
        "--from=5 holds no optimizer state, so training cannot go on from it; with it: 0, 10"
    )
    strip_optimizer(copy / "steps/step00000000")
    assert refused(copy, "--document", name).startswith(
        f"document {name} was first seen in step {first}, and no checkpoint with the optimizer state comes before; there are: 10; "
        f"look at a later sighting with --from (seen in {first}"
    )


def strip_optimizer(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tensors"].pop("optim")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_spans_and_texts_that_are_not_there_are_told(planted: Planted, run: Path, corpus: TextCorpus, tmp_path: Path) -> None:
    name = planted_name(planted)
    assert refused(planted.run, "--document", name, "--span=entirely other words") == (
        f"--span='entirely other words' does not stand in document {name}; give words as the document has them"
    )
    assert refused(planted.run, "--document", name, "--span=") == ("--span is empty; give words of the document, or leave it out")
    assert refused(planted.run, "--text=\N{SNOWMAN}") == (
        "--text='\N{SNOWMAN}': no 2 tokens of it stand together in the training data; give another text"
    )
    assert refused(run, "--document", first_seen(run, 6, 10), "--copies") == (
        f"--copies needs an index of the shards; build it: olmo trace index shards={corpus.shards} output={corpus.shards}/trace; or "
        "name one that is there: indexes=[FOLDER]"
    )
    assert refused(run, "--text=the cat").startswith("--text needs an index of the shards; build it: ")
