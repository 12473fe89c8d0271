"""What a run reached, what lies where, and what to try next: `olmo report runs/demo`."""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints.catalog import StepInfo, find_steps
from data_tools.unigram import entropy, unigram_counts
from olmo_train.config.train import TrainConfig
from olmo_train.data.loader import source_corpus
from olmo_train.errors import run_command
from olmo_train.model.size import count_params
from olmo_train.schema import read_yaml

MAX_TOKENS = 50_000_000
"""Read for the unigram entropy; more changes its second decimal at most."""


def main(argv: list[str]) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser("olmo report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    args = parser.parse_args(argv)
    run = read_yaml(args.run / "config.yaml", TrainConfig)
    lines = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    steps = find_steps(args.run)
    print(
        "\n".join(
            [*_results(args.run, run, lines), "", *_places(args.run, run, steps), "", *_next_commands(args.run, run, steps)]
        )
    )


def _results(folder: Path, run: TrainConfig, lines: list[dict[str, Any]]) -> list[str]:
    counts = count_params(run.model)
    trained = [line for line in lines if line["step"] > 0]
    rates = [line["tokens_per_s"] for line in trained if "tokens_per_s" in line]
    model = f"{run.run_name}: {counts.total:,} parameters, {counts.active:,} active per token"
    trained_on = f"{len(trained)} steps, {trained[-1]['tokens']:,} tokens, {median(rates):,.0f} tokens/s (median)"
    out = [f"{model}; {trained_on}", "", "Held-out loss, nats per token (bits per byte):"]
    evaluated = [line for line in lines if "heldout" in line.get("eval", {})]
    for line in evaluated:
        values = "   ".join(
            f"{name} {value['loss']:.4f}" + (f" ({value['bits_per_byte']:.4f})" if value["bits_per_byte"] is not None else "")
            for name, value in line["eval"]["heldout"].items()
        )
        out.append(f"  step {line['step']:>6}   {values}")
    for name in run.data.sources:
        corpus = source_corpus(run.data, name, folder / "data")
        out.append(
            f"  unigram entropy of {corpus.folder}: {entropy(unigram_counts(corpus, MAX_TOKENS)):.4f}   (a model "
            "of word frequencies alone)"
        )
    return out


def _places(folder: Path, run: TrainConfig, steps: list[StepInfo]) -> list[str]:
    rows = [
        (f"{folder}/steps/", f"{len(steps)} checkpoints, steps {steps[0].step} to {steps[-1].step}"),
        (f"{folder}/metrics.jsonl", "a line per step: loss, gradient norm, learning rate, balance of the experts"),
        (f"{folder}/data.jsonl", "a line per step: which instances, their checksum, what was masked or skipped"),
        (f"{folder}/provenance.json", "every start of the run: code, versions, hardware, kernels"),
    ]
    for name in run.data.sources:
        rows.append(
            (f"{source_corpus(run.data, name, folder / 'data').folder}/", "token shards, their manifest and document index")
        )
    width = max(len(place) for place, _ in rows)
    return ["What lies where:", *(f"  {place:<{width}}  {what}" for place, what in rows)]


def _next_commands(folder: Path, run: TrainConfig, steps: list[StepInfo]) -> list[str]:
    name = next(iter(run.data.sources))
    corpus = source_corpus(run.data, name, folder / "data")
    document = corpus.files[0].index.row(0)
    anneal = 10 * run.data.global_batch_size
    rows = [
        (f"olmo generate {folder} --prompt 'def main():'", "text from the newest checkpoint"),
        (f"olmo data batch {folder} {steps[-1].step} --row 0 --text", "what the last step saw"),
        (f"olmo data when {folder} {document.id}", "the steps that saw a document"),
        (f"olmo checkpoints list {folder}", "sizes and losses of the checkpoints"),
        (f"olmo checkpoints verify {folder}", "every byte against its manifest"),
        (
            f"olmo train run_name={run.run_name}_anneal experiment=anneal load.path={steps[-1].path} max_tokens={anneal}",
            "a new run from the last checkpoint, its learning rate to zero",
        ),
    ]
    return ["Try next:", *(f"  {command}\n      {what}" for command, what in rows)]


if __name__ == "__main__":
    raise SystemExit(run_command(main))
