"""Folder of a run -> the JSON of its timeline: checkpoints, losses, evaluations, expert load. Reads only, and no weights."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.catalog import find_folders, heldout_loss
from checkpoints.inspect.curves_file import finite, thin, training_columns
from checkpoints.run_files import Evaluation, read_evaluations, read_lines
from olmo_train.checkpoint import read_state
from olmo_train.config.train import TrainConfig
from olmo_train.model.size import count_params

MAX_LOADS = 120
"""Steps of the map of expert load."""
LOAD_MEASURES = ("load_max_over_mean", "load_entropy", "dead_experts", "router_confidence")


def model_facts(run: TrainConfig) -> dict[str, Any]:
    """What the model is, in a few numbers."""
    model, counts = run.model, count_params(run.model)
    moe = model.moe
    return {
        "parameters": counts.total,
        "active": counts.active,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "n_experts": None if moe is None else moe.n_experts,
        "top_k": None if moe is None else moe.top_k,
        "vocab_size": model.vocab_size,
        "seq_len": run.data.seq_len,
    }


class Timeline:
    """The run as its files say now; the states of steps, which never change, are read once."""

    def __init__(self, folder: Path, run: TrainConfig) -> None:
        self.folder, self.run = folder, run
        self._states: dict[int, dict[str, Any]] = {}

    def read(self) -> dict[str, Any]:
        """Everything the front end draws of the run.

        Raises:
            ConfigError: nothing is saved any more. CheckpointError: a step folder is damaged.
        """
        lines = read_lines(self.folder / "metrics.jsonl")
        evaluations = read_evaluations(self.folder)
        trained = max((line.get("step", 0) for line in lines), default=0)
        batch = self.run.data.global_batch_size
        values: dict[str, Any] = {
            "name": self.run.run_name,
            "model": model_facts(self.run),
            "global_batch_size": batch,
            "max_tokens": self.run.max_tokens,
            "last_step": self.run.max_tokens // batch,
            "trained_step": trained,
            "checkpoints": self._checkpoints(evaluations),
            "training": training_columns(lines),
            "heldout": _heldout(evaluations),
            "load": _load(lines),
            "experts": self._experts(),
        }
        return dict(finite(values))

    def steps(self) -> dict[int, Path]:
        """Saved steps and their folders, oldest first.

        Raises:
            ConfigError: nothing is saved.
        """
        return dict(find_folders(self.folder))

    def _checkpoints(self, evaluations: list[Evaluation]) -> list[dict[str, Any]]:
        by_step: dict[int, list[Evaluation]] = defaultdict(list)
        for entry in evaluations:
            by_step[entry.step].append(entry)
        rows = []
        for step, path in self.steps().items():
            state = self._states.get(step)
            if state is None:
                values = read_state(path)
                state = self._states[step] = {key: values.get(key) for key in ("tokens", "loss", "lr")}
            mine = by_step[step]
            entries = [{key: asdict(entry)[key] for key in ("suite", "label", "metrics")} for entry in mine]
            rows.append({"step": step, **state, "heldout_loss": heldout_loss(mine), "evaluations": entries})
        return rows

    def _experts(self) -> dict[str, Any] | None:
        """Load of every expert by checkpoint and layer, as `olmo checkpoints curve` measured it; None: it did not."""
        try:
            document = json.loads((self.folder / "inspect" / "curves.json").read_text())
            measured = [(point["step"], point["routing"]) for point in document["series"]["checkpoints"]]
            found = {
                str(step): {str(layer["layer"]): layer["balance"]["load"] for layer in routing["layers"]}
                for step, routing in measured
                if routing is not None and step is not None
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found or None


def _heldout(evaluations: list[Evaluation]) -> dict[str, list[list[float | None]]]:
    """[step, nats per token] by source."""
    found: dict[str, list[list[float | None]]] = defaultdict(list)
    for entry in evaluations:
        if entry.suite == "heldout" and entry.metrics.get("loss") is not None:
            found[entry.label].append([entry.step, entry.metrics["loss"]])
    return dict(found)


def _load(lines: list[dict[str, Any]]) -> dict[str, list[Any]] | None:
    """By logged step, lists over MoE layers; thinned so that no peak is lost. None: the run logged none."""
    logged = [line for line in lines if "load_max_over_mean" in line.get("layers", {})]
    if not logged:
        return None
    peaks = [max(line["layers"]["load_max_over_mean"]) for line in logged]
    kept = [logged[i] for i in thin(peaks, MAX_LOADS)]
    return {"step": [line["step"] for line in kept]} | {
        name: [line["layers"].get(name) for line in kept] for name in LOAD_MEASURES
    }
