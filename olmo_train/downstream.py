"""Downstream tasks during training, by Ai2's in-loop evaluation package (extra `eval`), whose data comes with it."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from olmo_train.config.data import DataConfig
from olmo_train.config.train import EvalConfig
from olmo_train.errors import ConfigError
from olmo_train.parallel.collectives import gather_to_all
from olmo_train.parallel.fsdp import evaluating
from olmo_train.parallel.mesh import Layout
from olmo_train.tokenizer import Tokenizer

log = logging.getLogger(__name__)
_STATES = (
    "loglikelihoods", "celosses", "bpbs", "labels",
    "loglikelihoods_no_leading_space", "celosses_no_leading_space", "bpbs_no_leading_space",
)  # fmt: skip


def find_task_problems(config: EvalConfig, tokenizer: Path | None, n_rows: int) -> list[str]:
    """What stands against the tasks asked for: the package, unknown labels, the tokenizer.

    `n_rows`: of the model's embedding.
    """
    if not config.tasks:
        return []
    try:
        import olmo_eval
    except ImportError:
        return ["eval.tasks needs ai2-olmo-eval, which is not installed; pip install 'olmo-train[eval]', or eval.tasks=[]"]
    known = set(olmo_eval.list_tasks())
    problems = [
        f"eval.tasks: {task} is no task of ai2-olmo-eval; python -c 'import olmo_eval; print(olmo_eval.list_tasks())' lists them"
        for task in config.tasks
        if task not in known
    ]
    if tokenizer is None:
        problems.append(
            "eval.tasks needs a tokenizer and the shards' manifest names none; give eval.task_tokenizer=<tokenizer.json>"
        )
    elif not tokenizer.is_file():
        problems.append(
            f"eval.task_tokenizer={tokenizer} does not exist; give the path of the tokenizer the shards were made with"
        )
    else:
        try:
            n_ids = Tokenizer(tokenizer).vocab_size
        except ConfigError as error:
            return [*problems, *error.problems]
        if n_ids > n_rows:
            problems.append(f"eval.tasks: {tokenizer} has {n_ids} ids, the model {n_rows} rows; give eval.task_tokenizer")
    return problems


class TaskEvaluator:
    """Runs a model on multiple-choice tasks; ranks share out the documents."""

    def __init__(self, config: EvalConfig, data: DataConfig, tokenizer_path: Path, layout: Layout) -> None:
        import olmo_eval

        self.layout, self.seq_len, self.config = layout, data.seq_len, config
        self.rows = data.micro_batch_size // data.seq_len
        tokenizer = Tokenizer(tokenizer_path)
        theirs = olmo_eval.HFTokenizer(str(tokenizer_path), pad_token_id=tokenizer.eos_id, eos_token_id=tokenizer.eos_id)
        self.tasks: dict[str, Any] = {}
        self.samples: dict[str, list[Any]] = {}
        for label in config.tasks:
            try:
                self.tasks[label] = olmo_eval.build_task(label, theirs, model_ctx_len=data.seq_len)
            except Exception as error:  # their data loaders raise many kinds
                raise ConfigError(f"eval.tasks: {label} cannot be built: {error}; leave it out") from error
            self.samples[label] = self._samples(label, list(self.tasks[label].samples))

    def run(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """By task, the metrics that ai2-olmo-eval computes (accuracy, cross entropy per character, bits per byte, ...)."""
        with evaluating(model):
            results = {label: self._run_task(model, task, self.samples[label]) for label, task in self.tasks.items()}
        for label, values in results.items():
            log.info("task %s: %s", label, ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return results

    def _run_task(self, model: nn.Module, task: Any, samples: list[Any]) -> dict[str, float]:
        from olmo_eval import ICLMetric

        metric = ICLMetric(metric_type=task.metric_type)
        metric.sync_on_compute = False  # we gather the lists ourselves, over the control group
        per_round = self.rows * self.layout.n_ranks
        for start in range(0, len(samples), per_round):
            mine = samples[start + self.layout.rank * self.rows :][: self.rows]
            batch = task.collate_fn(mine or samples[:1])  # a rank without samples still takes part in the forward pass
            logits = self._logits(model, batch["input_ids"])
            dc_logits = self._logits(model, batch["dc_input_ids"]) if task.metric_type == "pmi_dc" else None
            if mine:
                metric.update(batch, logits, dc_logits)
        for name in _STATES:
            setattr(metric, name, [entry for part in gather_to_all(self.layout, getattr(metric, name)) for entry in part])
        return {name: float(value) for name, value in metric.compute().items()}

    def _samples(self, label: str, samples: list[Any]) -> list[Any]:
        """Requests in document order; a limit is rounded down to whole documents.

        Raises:
            ConfigError: the limit leaves none, or an answer is longer than what the model sees.
        """
        limit = self.config.task_max_requests
        if limit is not None and limit < len(samples):
            end = limit
            while end > 0 and samples[end]["doc_id"] == samples[end - 1]["doc_id"]:
                end -= 1
            samples = samples[:end]
        if not samples:
            raise ConfigError(f"eval.task_max_requests={limit} is less than the first document of {label} has; give more")
        longest = max(sample["cont_len"] for sample in samples)
        if any(sample["ctx_len"] < 1 for sample in samples):  # their tasks cut the question away, and fail when it is used
            raise ConfigError(
                f"eval.tasks: {label} has an answer of {longest} tokens, and data.seq_len={self.seq_len} leaves no room for "
                "a question; give a longer data.seq_len, or leave the task out"
            )
        return samples

    def _logits(self, model: nn.Module, ids_BT: Tensor) -> Tensor:
        return model(ids_BT.to(self.layout.device)).float().cpu()
