"""Examples: documents as their rows hold them, which add up to what training minimised, and held-out text in their place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints.load import load_model
from checkpoints.opening import open_checkpoint
from checkpoints.trace.gradients import choose_parameters, example_gradient
from checkpoints.trace.influence_examples import (
    Example,
    build_example,
    document_example,
    heldout_examples,
    row_example,
    span_example,
)
from checkpoints.trace.span_probability import SpanQuery
from data_tools.trace.answer import Place
from data_tools.trace.when import History
from olmo_train.data.loader import IGNORE, read_rows
from olmo_train.data.order import Instance
from olmo_train.data.shards import ShardFile
from olmo_train.errors import ConfigError

SEQ_LEN = 16


@pytest.fixture(scope="module")
def history(run: Path) -> History:
    return History.open(run)


@pytest.fixture(scope="module")
def files(history: History) -> list[ShardFile]:
    return [file for source in history.order.sources for file in source.files]


@pytest.fixture(scope="module")
def several(history: History) -> Instance:
    """A row with at least three documents."""
    rows = (row for step in range(1, 11) for row in history.order.batch(step))
    return next(row for row in rows if len(history.order.documents(row)) >= 3)


def targets(example: Example) -> list[int]:
    """Columns predicted, after a check that labels are the next ids."""
    ids, labels = example.rows.ids[0], example.rows.labels[0]
    columns = (np.flatnonzero(labels != IGNORE) + 1).tolist()
    assert all(labels[column - 1] == ids[column] for column in columns)
    return columns


@pytest.mark.parametrize("masking", [False, True])
def test_the_documents_of_a_row_add_up_to_what_training_minimised(
    history: History, several: Instance, run: Path, masking: bool
) -> None:
    order, data = history.order, replace(history.run.data, document_masking=masking)
    model = load_model(open_checkpoint(str(run)), torch.device("cpu"), with_documents=True)
    names = choose_parameters(model.config, ["all"])
    whole = example_gradient(model, names, read_rows([several.pieces], SEQ_LEN, masking, None))
    sums = {name: torch.zeros_like(whole[name]) for name in names}
    for document in order.documents(several):
        example = row_example(order, data, several.step, several.row, document.column_start)
        assert example.rows.ids.shape == (1, document.column_end)
        for name, gradient in example_gradient(model, names, example.rows).items():
            sums[name] += gradient
    for name in names:
        torch.testing.assert_close(sums[name], whole[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_document_in_its_row_predicts_its_own_tokens_and_no_others(history: History, several: Instance) -> None:
    order, data = history.order, history.run.data
    for document in order.documents(several):
        last = document.column_end - 1
        example = row_example(order, data, several.step, several.row, last)
        assert targets(example) == [c for c in range(document.column_start, document.column_end) if c > 0]
        read = document.file.read(
            *(document.file.index.span(document.ordinal)[0] + at for at in (document.offset_start, document.offset_end))
        )
        assert example.rows.ids[0, document.column_start :].tolist() == read.tolist()


def test_a_span_is_predicted_from_what_stands_before_it() -> None:
    example = span_example(SpanQuery([7, 8, 9], [1, 2, 3]), SEQ_LEN)
    assert example.rows.ids.tolist() == [[1, 2, 3, 7, 8, 9]]
    assert example.rows.labels.tolist() == [[IGNORE, IGNORE, 7, 8, 9, IGNORE]]
    assert (example.n_targets, targets(example)) == (3, [3, 4, 5])


def test_the_oldest_context_is_left_out() -> None:
    example = span_example(SpanQuery([7, 8, 9], list(range(30))), 8)
    assert example.rows.ids.tolist() == [[25, 26, 27, 28, 29, 7, 8, 9]]


def test_a_span_that_fills_a_row_is_refused() -> None:
    assert span_example(SpanQuery([5] * 15, [1, 2]), SEQ_LEN).n_targets == 15
    with pytest.raises(ConfigError, match="span of 16 tokens: the model reads rows of 16, and a span needs a token before it"):
        span_example(SpanQuery([5] * 16, [1, 2]), SEQ_LEN)


def test_a_document_alone_is_a_window_around_the_span(files: list[ShardFile]) -> None:
    file = files[0]
    lengths = np.diff(np.asarray(file.index.starts, np.int64))
    for ordinal in (int(lengths.argmax()), int(lengths.argmin())):
        first, last = file.index.span(ordinal)
        for offset in {first, (first + last) // 2, max(first, last - 3)}:
            example = document_example(file, Place(0, 0, offset), min(3, last - offset), SEQ_LEN)
            ids = example.rows.ids[0].tolist()
            assert len(ids) == min(SEQ_LEN, last - first)
            starts = [at for at in range(first, last - len(ids) + 1) if file.read(at, at + len(ids)).tolist() == ids]
            assert any(at <= offset and offset + min(3, last - offset) <= at + len(ids) for at in starts)
            assert targets(example) == list(range(1, len(ids)))


# ---- held-out text -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(history: History, several: Instance) -> list[Example]:
    documents = history.order.documents(several)
    return [row_example(history.order, history.run.data, several.step, several.row, d.column_start) for d in documents]


def heldout_text(files: list[ShardFile]) -> str:
    """All held-out tokens, file after file, as words."""
    out = []
    for file in files:
        for start, end in file.index.heldout_pieces(0, file.entry.heldout_tokens):
            out += file.read(start, end).tolist()
    return " " + " ".join(map(str, out)) + " "


def test_held_out_text_stands_in_the_rows_of_the_documents(seen: list[Example], files: list[ShardFile]) -> None:
    text = heldout_text(files)
    null = heldout_examples(seen, files, [], (8, 0))
    assert len(null) == 8
    for number, example in enumerate(null):
        like = seen[number % len(seen)]
        assert (example.start, example.end, targets(example)) == (like.start, like.end, targets(like))
        assert np.array_equal(example.rows.ids[0, : like.start], like.rows.ids[0, : like.start])
        assert f" {' '.join(map(str, example.rows.ids[0, like.start :].tolist()))} " in text
    assert len({example.rows.ids.tobytes() for example in null}) > 3


def test_held_out_text_is_drawn_by_the_seed(seen: list[Example], files: list[ShardFile]) -> None:
    def drawn(seed: int) -> list[bytes]:
        return [example.rows.ids.tobytes() for example in heldout_examples(seen, files, [], (8, seed))]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)


def test_held_out_text_with_the_span_is_not_taken(files: list[ShardFile]) -> None:
    like = [build_example(np.zeros(SEQ_LEN), 0, SEQ_LEN)]
    frequent = heldout_examples(like, files, [], (1, 0))[0].rows.ids[0, 3:5].tolist()
    for example in heldout_examples(like, files, frequent, (20, 0)):
        pairs = list(zip(example.rows.ids[0], example.rows.ids[0, 1:], strict=False))
        assert tuple(frequent) not in pairs


def test_documents_stay_apart_in_a_row_with_held_out_text(history: History, several: Instance, files: list[ShardFile]) -> None:
    data = replace(history.run.data, document_masking=True)
    last = history.order.documents(several)[-1]
    like = row_example(history.order, data, several.step, several.row, last.column_start)
    example = heldout_examples([like], files, [], (1, 0))[0]
    assert example.rows.documents is not None
    assert np.array_equal(example.rows.documents, like.rows.documents)  # type: ignore[arg-type]
    assert len(set(example.rows.documents[0].tolist())) >= 3


def test_too_little_held_out_text_is_told(files: list[ShardFile]) -> None:
    long = build_example(np.zeros(100_000), 0, 100_000)
    with pytest.raises(
        ConfigError, match=r"--null=4: \d+ tokens are held out, a window like a document's takes 100000; give --null 0"
    ):
        heldout_examples([long], files, [], (4, 0))
