"""The parts of a replay that need no training: what was fed, where words stand, which runs cannot be asked."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from checkpoints.trace.queries import Context
from checkpoints.trace.replay import Counterfactual, Moved, Reading, choose_placebos, fed_problems, judged_otherwise, unlearned
from checkpoints.trace.replay_command import Shown
from checkpoints.trace.replay_plan import Document, Interval, Training, choose_interval, open_order, open_training
from checkpoints.trace.replay_span import Indexes, find_text, locate, make_span, sighted_part
from checkpoints.verify.targets import find_target
from data_tools.trace.config import PrivacyConfig
from data_tools.trace.privacy import Privacy
from data_tools.trace.searcher import Searcher
from olmo_train.checkpoint import read_state
from olmo_train.config.data import SourceConfig
from olmo_train.config.train import TrainConfig
from olmo_train.data.order import Sighting
from olmo_train.data.shards import Corpus, ShardWriter, WriterOptions
from olmo_train.errors import ConfigError
from olmo_train.schema import read_yaml
from olmo_train.tokenizer import Tokenizer
from tests.checkpoints.trace.planted import PLANTED, Planted
from tests.texts import TextCorpus


def opened(where: Path) -> Training:
    return open_training(find_target(str(where)), str(where), None, {})[0]


def line(**values: Any) -> dict[str, Any]:
    return {"position": 0, "rows": 8, "checksum": 5, "masked_rows": [], "skipped": None, **values}


# ---- what was fed ---------------------------------------------------------------------------------------------------------


def test_other_data_than_the_document_is_told() -> None:
    rows = {1: [], 2: [3]}
    there = {1: line(), 2: line()}
    assert fed_problems(rows, there, {1: line(without_rows=[]), 2: line(without_rows=[3], checksum=6)}) == []
    assert fed_problems(rows, there, {1: line(without_rows=[], checksum=6), 2: line(without_rows=[3], masked_rows=[1])}) == [
        "step 1 was fed other data: checksum 6, as it was 5",
        "step 2 was fed other data: masked_rows [1], as it was []",
    ]
    assert fed_problems(rows, there, {1: line(without_rows=[4]), 2: line()}) == [
        "step 1: documents were left out of rows [4], they stand in []",
        "step 2: documents were left out of rows None, they stand in [3]",
    ]


def test_rows_that_were_not_learned_from_are_told() -> None:
    rows = {1: [], 2: [0, 3], 3: [4], 4: [5]}
    lines = {1: line(skipped="loss"), 2: line(masked_rows=[3, 6]), 3: line(skipped="grad_norm"), 4: line()}
    assert unlearned(rows, lines) == ["row 3 of step 2 was masked (repetition)", "step 3 was skipped (grad_norm)"]


def test_steps_that_the_guard_judged_otherwise_are_told() -> None:
    there = {1: line(), 2: line(skipped="loss"), 3: line(skipped="loss")}
    without = {1: line(skipped="grad_norm"), 2: line(), 3: line(skipped="loss")}
    assert judged_otherwise(there, without) == ["step 1: grad_norm without, learned with", "step 2: learned without, loss with"]


# ---- spans ----------------------------------------------------------------------------------------------------------------


def some_document(training: Training, name: str = "planted") -> tuple[Document, Interval]:
    for source, file in training.files:
        for ordinal in range(file.entry.documents):
            row = file.index.row(ordinal)
            document = Document(source, file, ordinal, row.id)
            if row.id.startswith(name) and training.sightings(document):
                return document, choose_interval(training, [document], None, None, 200)
    raise AssertionError


def test_words_are_found_in_whatever_tokens_hold_them(planted: Planted) -> None:
    training = opened(planted.run)
    document, _ = some_document(training)
    (path,) = [corpus.tokenizer_path() for corpus in training.corpora]
    assert path is not None
    tokenizer = Tokenizer(path)
    ids = document.read()
    for start in range(0, len(PLANTED) - 12, 5):
        words = PLANTED[start : start + 12]
        first, last = locate(document, words, tokenizer)
        assert words in tokenizer.decode(ids[first:last])
        assert words not in tokenizer.decode(ids[first + 1 : last])
        assert words not in tokenizer.decode(ids[first : last - 1])


def test_words_are_found_by_ids_where_bytes_are_not_known(tmp_path: Path) -> None:
    names = ["<|endoftext|>", "the", "wet", "stone", "stays"]
    plain = HFTokenizer(WordLevel({name: n for n, name in enumerate(names)}))
    plain.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.id_bytes() is None
    with ShardWriter(tmp_path / "shards", WriterOptions("uint16", len(names), 0)) as writer:
        writer.add("a", ("d", "f", 1), np.array([1, 3, 1, 2, 3, 4, 0]), 1)
        writer.close()
    document = Document("demo", Corpus(tmp_path / "shards").files[0], 0, "d")
    assert locate(document, "the wet stone", tokenizer) == (2, 5)
    with pytest.raises(ConfigError, match="--span='stays the' does not stand in document d; give words as the document has them"):
        locate(document, "stays the", tokenizer)
    with pytest.raises(ConfigError, match="--span needs the tokenizer of the shards, and no manifest names one; write it into"):
        locate(document, "the", None)


def test_without_words_the_span_is_the_longest_part_that_a_row_predicted(planted: Planted) -> None:
    training = opened(planted.run)
    document, interval = some_document(training, "plain")
    n = len(document.read()) - 1
    sights = [
        (document, Sighting(1, 0, 0, 0, 10, 0, 10)),
        (document, Sighting(1, 1, 0, 0, 12, 10, 22)),
        (document, Sighting(2, 0, 0, 3, 14, n - 10, n + 1)),
    ]
    assert sighted_part(document, dataclasses.replace(interval, sights=sights), is_masking=False) == (11, 22)
    assert sighted_part(document, dataclasses.replace(interval, sights=sights[::2]), is_masking=False) == (n - 10, n)
    assert sighted_part(document, dataclasses.replace(interval, sights=sights[::2]), is_masking=True) == (1, 10)
    assert sighted_part(document, dataclasses.replace(interval, sights=[]), is_masking=False) == (0, n)


def test_the_context_is_the_row_or_the_document(planted: Planted) -> None:
    training = opened(planted.run)
    document, interval = some_document(training, "plain")
    seen = next(s for _, s in interval.sights if s.column_end - s.column_start > 4)
    part = seen.offset_start + 2, seen.offset_end
    (instance,) = training.order.batch(seen.step, seen.row, seen.row + 1)
    row = np.concatenate([piece.file.read(piece.start, piece.end) for piece in instance.pieces])
    span = make_span(training, document, part, interval, None)
    assert (span.context, span.query.context_ids) == (Context.ROW, row[: seen.column_start + 2].tolist())
    span = make_span(training, document, part, interval, Context.DOCUMENT)
    before = [document.file.eos_id, *document.read()[: part[0]].tolist()]
    assert before[-len(span.query.context_ids) :] == span.query.context_ids
    assert span.query.ids == document.read()[part[0] : part[1]].tolist()
    training.run.data.document_masking = True
    span = make_span(training, document, part, interval, None)
    assert span.query.context_ids == document.read()[seen.offset_start : part[0]].tolist()
    whole = 0, len(document.read())
    nowhere = dataclasses.replace(interval, sights=[])
    assert make_span(training, document, whole, nowhere, None).context == Context.DOCUMENT
    with pytest.raises(ConfigError, match="--context=row: no row of the interval holds the whole span after another token; give"):
        make_span(training, document, whole, nowhere, Context.ROW)
    document.file.eos_id = None
    with pytest.raises(
        ConfigError, match=r"the span begins document .*, and the manifest of its shards names no eos_id to stand"
    ):
        make_span(training, document, whole, nowhere, None)


def test_placebos_are_of_the_same_steps_and_do_not_hold_the_span(planted: Planted) -> None:
    training = opened(planted.run)
    document, interval = some_document(training)
    span = make_span(training, document, (2, 8), interval, Context.DOCUMENT)
    found = choose_placebos(training, [document], span, interval, 1000)
    names = {placebo.id for placebo in found}
    steps = {seen.step for _, seen in interval.sights}
    assert len(names) == len(found) > 5
    assert document.id not in names
    for placebo in found:
        text = " ".join(map(str, placebo.read().tolist()))
        assert " ".join(map(str, span.query.ids)) not in text
        assert {seen.step for seen in training.sightings(placebo)} & steps
    assert choose_placebos(training, [document], span, interval, 2) == found[:2]


def test_cautions_say_what_was_and_was_not_done(planted: Planted) -> None:
    training = opened(planted.run)
    document, interval = some_document(training)
    span = make_span(training, document, (2, 8), interval, Context.DOCUMENT)
    indexes = Indexes(Searcher([planted.shards / "trace"]), [], Privacy(PrivacyConfig()), frozenset())
    shown = Shown(training, indexes, [document], dataclasses.replace(interval, n_before=3), span, 4)
    readings = [Reading(name, 1, -60.0, [-10.0] * 6, {"demo": 1.0}) for name in ("before", "published", "without")]
    moved = Moved(True, 0.0, 0.0, 0.0, "")
    found = Counterfactual("a", "b", 1, "published", readings, None, moved, [], ["step 1: x"], ["step 1 was skipped (loss)"], [])
    told = "\n".join(shown.cautions(found))
    assert re.search(r"^\d+ other documents of the run hold the span and were not left out", told)
    for words in (
        f"3 rows had seen it up to step {interval.start}: what they taught is in both",
        "no control was trained: the effect includes what this machine rounds otherwise than the published one",
        "seen but not learned from: step 1 was skipped (loss)",
        "the guard judged steps otherwise: step 1: x",
        "there are only 0 other documents in these steps that do not hold the span",
    ):
        assert words in told
    assert "  weights without the document: equal bit for bit" in "\n".join(shown.lines(found))
    assert found.effect == 0


# ---- runs that cannot be asked --------------------------------------------------------------------------------------------


def edited(run: Path, before: str, after: str) -> Path:
    text = (run / "config.yaml").read_text()
    assert before in text
    (run / "config.yaml").write_text(text.replace(before, after))
    return run


def test_a_run_that_leaves_documents_out_already_is_told(copy: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"leaves documents out already \(data\.without\); what would be without others is to be"
    ):
        opened(edited(copy, "without: null", "without: {documents: [x], after_step: 0}"))


def test_another_order_than_that_of_the_checkpoints_is_told(copy: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"the order of data is not that of the checkpoints \(seed\); restore config\.yaml and the shards"
    ):
        opened(edited(copy, "seed: ", "seed: 1"))


def test_shards_that_are_not_there_are_told(copy: Path, corpus: TextCorpus) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.sources\.demo: .* does not exist; .*; give --shards demo=FOLDER with the shards"
    ):
        opened(edited(copy, f"path: {corpus.shards}", "path: shards/gone"))


def test_sources_that_cannot_be_opened_are_told(copy: Path) -> None:
    key = read_state(copy / "steps/step00000010")["data"]["order"]
    with pytest.raises(
        ConfigError, match=r"select=nobody is not a source of .*; give --shards NAME=FOLDER with the shards of the"
    ):
        opened(edited(copy, "select: null", "select: nobody"))
    run = read_yaml(copy / "config.yaml", TrainConfig)
    run.data.sources["demo"] = SourceConfig(files=["web/*.npy"], dtype="uint16")
    with pytest.raises(
        ConfigError, match=r"data\.sources\.demo: the release does not have the shards; give --shards demo=FOLDER with the shards"
    ):
        open_order(run, {}, key, None)


def test_a_store_without_releases_is_told() -> None:
    fsspec.filesystem("memory").makedirs("/nothing", exist_ok=True)
    with pytest.raises(ConfigError, match="has no releases, so there is nothing to train again"):
        open_training(find_target("memory://nothing"), "memory://nothing", None, {})


def test_a_text_of_documents_that_the_run_does_not_see_is_told(planted: Planted, run: Path) -> None:
    searcher = Searcher([planted.shards / "trace"])
    indexes = Indexes(searcher, [], Privacy(PrivacyConfig()), frozenset())
    with pytest.raises(ConfigError, match="stands in indexed documents that the run does not train on; give another text"):
        find_text(opened(run), indexes, PLANTED)
