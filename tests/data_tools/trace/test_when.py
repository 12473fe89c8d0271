"""When a place was seen: against every batch of the run, with what became of each step."""

import json
import os
from pathlib import Path

import pytest

from data_tools.trace.answer import Mark, Place
from data_tools.trace.ledger import Ledger
from data_tools.trace.opening import Trace
from data_tools.trace.when import History
from olmo_train.errors import ShardError
from tests.data_tools.trace.traced import (
    EDGE,
    LONG,
    PLANTED,
    SECRET,
    Traced,
    brute_sights,
    id_that,
    opened,
    place_of,
    write_ledger,
    write_run,
    write_step,
)
from tests.runs import run_training, small


def told(trace: Trace, place: Place, n: int) -> list[tuple[int, ...]]:
    assert trace.history is not None
    seen = trace.history.sighted(trace.searcher, place, n).sights
    return [(s.step, s.row, s.epoch, s.column_start, s.column_end, s.token_start, s.token_end) for s in seen]


@pytest.mark.parametrize("text", [PLANTED, EDGE, LONG])
def test_every_row_that_saw_a_span_is_told_and_no_other(traced: Traced, text: str) -> None:
    trace = opened(traced.run)
    place, n = place_of(trace, text)
    assert trace.history is not None
    assert told(trace, place, n) == brute_sights(trace.history, place, n)
    assert {s[2] for s in told(trace, place, n)} >= {0, 1}  # epochs


def test_random_places_are_told_as_the_batches_have_them(traced: Traced) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    for n, part in enumerate(trace.searcher.parts):
        for at in part.sa["train"][:: max(1, len(part.sa["train"]) // 5)].tolist():
            place = Place(part.corpus, part.record.file, part.record.start + at)
            assert told(trace, place, 1 + n % 3) == brute_sights(trace.history, place, 1 + n % 3)


def test_many_places_are_told_as_each_alone(traced: Traced) -> None:
    trace = opened(traced.run)
    history = trace.history
    assert history is not None
    pairs = [place_of(trace, text) for text in (PLANTED, EDGE, LONG, "the fox")]
    places, sizes = [place for place, _ in pairs], [n for _, n in pairs]
    alone = [history.sighted(trace.searcher, place, n) for place, n in pairs]
    assert history.sighted_many(trace.searcher, places, sizes) == alone


def test_the_first_token_of_a_row_is_not_predicted(traced: Traced) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    sights = trace.history.sighted(trace.searcher, *place_of(trace, PLANTED)).sights
    assert {s.column_start == 0 for s in sights} == {True, False}
    for sight in sights:
        assert sight.predicted_start == sight.token_start + (1 if sight.column_start == 0 else 0)


def test_the_checkpoints_around_a_step_are_the_nearest(traced: Traced) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    assert trace.history.saved == [0, 16, 32, 48, 60]
    for sight in trace.history.sighted(trace.searcher, *place_of(trace, PLANTED)).sights:
        assert sight.checkpoint_before == max(step for step in trace.history.saved if step < sight.step)
        assert sight.checkpoint_after == min((step for step in trace.history.saved if step >= sight.step), default=None)


def test_steps_that_are_still_to_come_are_marked(traced: Traced) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    assert (trace.history.last_step, trace.history.total_steps) == (60, 80)
    sights = trace.history.sighted(trace.searcher, *place_of(trace, LONG)).sights
    assert {s.mark for s in sights if s.step <= 60} == {Mark.LEARNED}
    assert {s.mark for s in sights if s.step > 60} == {Mark.FUTURE}


def test_skipped_steps_and_masked_rows_are_marked(traced: Traced, tmp_path: Path) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    place, n = place_of(trace, PLANTED)
    sights = trace.history.sighted(trace.searcher, place, n).sights
    first, second, third = [s for _, s in sorted({s.step: s for s in sights if s.step <= 60}.items())][:3]  # of three steps
    run = write_run(tmp_path / "runs" / "marked", traced.shards)
    write_ledger(run, 60, skipped=(first.step,), masked={second.step: [second.row], third.step: [(third.row + 1) % 16]})
    marks = {(s.step, s.row): s.mark for s in opened(run).history.sighted(trace.searcher, place, n).sights}  # type: ignore[union-attr]
    assert marks[first.step, first.row] == Mark.SKIPPED
    assert marks[second.step, second.row] == Mark.MASKED
    assert marks[third.step, third.row] == Mark.LEARNED


def test_documents_that_the_run_leaves_out_are_marked(traced: Traced, tmp_path: Path) -> None:
    name = id_that(False, "planted")
    without = f"data.without={{documents: ['{name}'], after_step: 20}}"
    run = write_run(tmp_path / "runs" / "without", traced.shards, without)
    trace = opened(run)
    assert trace.history is not None
    sights = trace.history.sighted(trace.searcher, *place_of(trace, PLANTED)).sights
    assert {s.mark for s in sights if s.step <= 20} == {Mark.LEARNED}
    assert {s.mark for s in sights if 20 < s.step <= 60} == {Mark.LEFT_OUT}
    assert {s.mark for s in trace.history.sighted(trace.searcher, *place_of(trace, EDGE)).sights} == {Mark.LEARNED, Mark.FUTURE}


def test_a_held_out_document_is_seen_by_no_step(traced: Traced) -> None:
    trace = opened(traced.run)
    assert trace.history is not None
    sighted = trace.history.sighted(trace.searcher, *place_of(trace, SECRET, "heldout"))
    assert sighted.is_heldout
    assert sighted.in_run
    assert sighted.sights == []


def test_files_that_the_run_does_not_select_are_not_in_it(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "some", traced.shards, "data.sources.demo.select=filler")
    trace = opened(run)
    assert trace.history is not None
    sighted = trace.history.sighted(trace.searcher, *place_of(trace, PLANTED))
    assert not sighted.in_run
    assert not sighted.is_heldout
    assert sighted.sights == []


def test_a_file_in_two_sources_is_seen_by_both(traced: Traced, tmp_path: Path) -> None:
    words = [
        f"data.sources.more.path='{traced.shards}'",
        "data.sources.more.select=planted",
        "data.sources.more.weight=1",
        "data.sources.demo.weight=3",
    ]
    run = write_run(tmp_path / "runs" / "both", traced.shards, *words)
    trace = opened(run)
    history = trace.history
    assert history is not None
    place, n = place_of(trace, PLANTED)
    wanted = set()
    for step in range(1, 81):
        for instance in history.order.batch(step):
            for piece in instance.pieces:
                same = piece.file.entry.path == trace.searcher.file(place).entry.path
                if same and piece.start < place.offset + n and place.offset < piece.end:
                    wanted.add((step, instance.row, instance.source))
    assert {source for _, _, source in wanted} == {"demo", "more"}
    seen = history.sighted(trace.searcher, place, n).sights
    assert {(s.step, s.row) for s in seen} == {(step, row) for step, row, _ in wanted}


def test_a_copy_of_the_shards_elsewhere_is_the_same_corpus(traced: Traced, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(traced.shards)
    trace = opened(traced.run, f"indexes=['{moved / 'trace'}']")
    assert trace.history is not None
    place, n = place_of(trace, PLANTED)
    assert told(trace, place, n) == brute_sights(trace.history, place, n)


def test_a_run_that_goes_on_is_looked_at_again(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "young", traced.shards, trained=10)
    trace = opened(run)
    history = trace.history
    assert history is not None
    place, n = place_of(trace, LONG)
    assert all(
        s.mark == (Mark.LEARNED if s.step <= 10 else Mark.FUTURE) for s in history.sighted(trace.searcher, place, n).sights
    )
    write_ledger(run, 40, skipped=(30,))
    write_step(run, 40, history.order.key)
    trace.refresh()
    assert (history.last_step, history.saved) == (40, [0, 10, 40])
    marks = {s.step: s.mark for s in history.sighted(trace.searcher, place, n).sights}
    assert {marks[step] for step in marks if 10 < step <= 40 and step != 30} == {Mark.LEARNED}
    assert history.ledger.mark(30, 0) == Mark.SKIPPED


def test_a_changed_order_is_refused(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "changed", traced.shards)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("seed: 6198", "seed: 5"))
    with pytest.raises(
        ShardError, match=r"not the order of data that the run was trained in: seed was 6198, is 5; restore config.yaml"
    ):
        History.open(run)


def test_shards_that_are_not_there_are_named_by_source(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "lost", traced.shards, f"data.sources.more.path='{traced.shards}'")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(f"path: {traced.shards}", "path: gone"))
    with pytest.raises(ShardError, match=r"(?s)data.sources.demo: .*gone.*does not exist.*data.sources.more: .*gone"):
        History.open(run)


def test_a_source_that_is_no_longer_in_the_manifest_is_named(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "selected", traced.shards, "data.sources.demo.select=filler")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("select: filler", "select: other"))
    with pytest.raises(ShardError, match=r"data.sources.demo: select=other is not a source of .*; it has filler, planted"):
        History.open(run)


def test_a_damaged_state_is_named(traced: Traced, tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "state", traced.shards)
    (run / "steps" / "step00000060" / "state.json").write_text("{}")
    with pytest.raises(ShardError, match=r"state.json cannot be used: 'step'; it names the order of data; restore it"):
        History.open(run)


def test_relative_paths_are_found_from_where_the_run_was_begun(traced: Traced, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "shards").symlink_to(traced.shards)
    run = write_run(home / "runs" / "here", traced.shards)
    text = (
        (run / "config.yaml")
        .read_text()
        .replace(f"path: {traced.shards}", "path: shards")
        .replace(f"run_dir: {run}", "run_dir: runs/here")
    )
    (run / "config.yaml").write_text(text)
    assert Path.cwd() != home
    assert History.open(run).order.key == History.open(traced.run).order.key


# ---- the ledger ----------------------------------------------------------------------------------------------------------


def test_a_ledger_is_read_as_it_grows_and_again_when_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    write_ledger(tmp_path, 50, skipped=(20, 45), masked={7: [1, 15]})
    ledger = Ledger(path)
    ledger.refresh()
    marks = [(step, ledger.mark(step, 1)) for step in range(1, 51) if ledger.mark(step, 1) != Mark.LEARNED]
    assert marks == [(7, Mark.MASKED), (20, Mark.SKIPPED), (45, Mark.SKIPPED)]
    assert ledger.mark(7, 2) == Mark.LEARNED
    with open(path, "a") as file:
        file.write(json.dumps({"step": 51, "masked_rows": [3], "skipped": None}) + '\n{"step": 52, "skipped": "los')
    ledger.refresh()
    assert ledger.last_step == 51  # the last line is half written
    assert ledger.mark(51, 3) == Mark.MASKED
    write_ledger(tmp_path, 40, skipped=(20,))  # the run was resumed from step 40
    os.utime(path, ns=(1, 1))
    ledger.refresh()
    assert ledger.last_step == 40
    assert ledger.mark(45, 0) == ledger.mark(7, 1) == Mark.LEARNED


def test_a_ledger_that_is_not_there_says_so(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "data.jsonl")
    ledger.refresh()
    assert not ledger.is_there


def test_a_damaged_line_of_the_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(
        '{"step": 1, "masked_rows": [], "skipped": null}\n{"step": 2, "masked_rows": [1, "skipped": null}\n'
    )
    with pytest.raises(ShardError, match=r"data.jsonl: the line at byte 48 is damaged .*; restore the file"):
        Ledger(tmp_path / "data.jsonl").refresh()


def test_the_ledger_of_the_trainer_is_read_as_json_reads_it(shards: Path, tmp_path: Path) -> None:
    mask = "data.repetition_mask={min_period: 1, max_period: 3, max_count: 4}"
    run_training(small(shards, tmp_path / "run", mask, "checkpoint.save_every=10"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "data.jsonl").read_text().splitlines()]
    assert any(line["masked_rows"] for line in lines)
    assert not all(line["masked_rows"] for line in lines)
    history = History.open(tmp_path / "run")
    assert (history.last_step, history.saved) == (10, [0, 10] if (tmp_path / "run/steps/step00000000").exists() else [10])
    for line in lines:
        masked = {row for row in range(line["rows"]) if history.ledger.mark(line["step"], row) == Mark.MASKED}
        assert masked == set(line["masked_rows"])
