"""Evaluations of a run: those of training and those made later, the later ones winning, and no line lost between writers."""

import os
from pathlib import Path

import pytest

from checkpoints.run_files import EVALUATIONS, Evaluation, add_evaluation, read_evaluations, read_lines
from olmo_train.errors import CheckpointError, ConfigError
from tests.distributed import spawn


def test_what_training_evaluated_is_read_by_step_and_source(run: Path) -> None:
    found = read_evaluations(run)
    assert [(e.step, e.suite, e.label) for e in found] == [
        (step, "heldout", label) for step in (0, 5, 10) for label in ("all", "animals", "places")
    ]
    assert all(e.metrics["loss"] is not None and e.settings == {"during": "training"} for e in found)


def test_a_later_evaluation_replaces_the_one_of_training(copy: Path) -> None:
    add_evaluation(copy, Evaluation(5, "heldout", "animals", {"loss": 1.5}, {"max_instances": 3}))
    add_evaluation(copy, Evaluation(5, "lm_eval", "arc", {"acc": None}))
    add_evaluation(copy, Evaluation(5, "lm_eval", "arc", {"acc": 0.25}))
    found = {(e.step, e.suite, e.label): e for e in read_evaluations(copy)}
    assert found[5, "heldout", "animals"].metrics == {"loss": 1.5}
    assert found[5, "heldout", "animals"].settings == {"max_instances": 3}
    assert found[5, "lm_eval", "arc"].metrics == {"acc": 0.25}
    assert len(found) == 10


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes('{"a": 1}\n[]\n1\nnull\n{"a": "\u2028"}\n{"b": "\u00e9"}'.encode()[:-3])
    assert read_lines(path) == [{"a": 1}, {"a": "\u2028"}]


@pytest.mark.parametrize("line", ['{"step": 3}', '{"step": 1, "suite": "s", "label": "l", "metrics": {}, "other": 2}'])
def test_a_line_that_is_no_evaluation_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / EVALUATIONS).write_text(line + "\n")
    with pytest.raises(CheckpointError, match="evaluations.jsonl has a line that is no evaluation .*'step'"):
        read_evaluations(tmp_path)


def _add_many(run: Path) -> None:
    for n in range(50):
        add_evaluation(run, Evaluation(n, "lm_eval", f"task of {os.getpid()}", {"acc": 0.5}))


def test_two_processes_lose_no_line_of_each_other(tmp_path: Path) -> None:
    spawn(_add_many, 2, tmp_path)
    assert len(read_evaluations(tmp_path)) == 100


def test_a_folder_that_cannot_be_written_keeps_the_result_in_the_message(tmp_path: Path) -> None:
    (tmp_path / EVALUATIONS).mkdir()
    with pytest.raises(ConfigError, match=r'evaluations.jsonl: Is a directory; the result was: \{"step": 1, .*0\.5'):
        add_evaluation(tmp_path, Evaluation(1, "lm_eval", "arc", {"acc": 0.5}))
