"""What a run reached, what lies where, and what to try next: `olmo report runs/demo`."""

import argparse
import shlex
from pathlib import Path
from statistics import median
from typing import Any

from checkpoints.catalog import StepInfo, find_steps
from checkpoints.overrides import differences, hydra_word
from checkpoints.run_files import read_lines
from data_tools.inspect.run_order import open_run
from data_tools.unigram import entropy, unigram_counts
from olmo_train.checkpoint import read_state
from olmo_train.config.train import TrainConfig
from olmo_train.data.checks import find_tokenizer
from olmo_train.data.loader import source_corpus
from olmo_train.errors import run_command
from olmo_train.model.size import count_params
from olmo_train.schema import load_config, read_yaml, to_plain

MAX_TOKENS = 50_000_000
"""Read for the unigram entropy; more changes its second decimal at most."""


def main(argv: list[str]) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser("olmo report", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    args = parser.parse_args(argv)
    steps = find_steps(args.run)
    run = read_yaml(args.run / "config.yaml", TrainConfig)
    lines = read_lines(args.run / "metrics.jsonl")
    parts = [_results(args.run, run, lines), _places(args.run, run, steps), _next_commands(args.run, run, steps)]
    print("\n\n".join("\n".join(part) for part in parts))


def _results(folder: Path, run: TrainConfig, lines: list[dict[str, Any]]) -> list[str]:
    counts = count_params(run.model)
    model = f"{run.run_name}: {counts.total:,} parameters, {counts.active:,} active per token"
    trained = [line for line in lines if line["step"] > 0]
    rates = [line["tokens_per_s"] for line in trained if "tokens_per_s" in line]
    trained_on = f"{len(trained)} steps, {trained[-1]['tokens']:,} tokens" if trained else "no step yet"
    speed = f", {median(rates):,.0f} tokens/s (median)" if rates else ""
    evaluated = [line for line in lines if "heldout" in line.get("eval", {})]
    title = (
        "Held-out loss, nats per token (bits per byte):" if evaluated else "Held-out loss: not evaluated yet (eval.eval_every)"
    )
    out = [f"{model}; {trained_on}{speed}", "", title]
    for line in evaluated:
        values = "   ".join(f"{name} {_loss(value)}" for name, value in line["eval"]["heldout"].items())
        out.append(f"  step {line['step']:>6}   {values}")
    tested = [line for line in lines if "tasks" in line.get("eval", {})]
    for line in tested[-1:]:
        out += ["", f"Downstream tasks at step {line['step']}:"]
        for label, values in line["eval"]["tasks"].items():
            out.append(f"  {label}: " + ", ".join(f"{name} {_number(value)}" for name, value in values.items()))
        out.append("")
    for name in run.data.sources:
        corpus = source_corpus(run.data, name, folder / "data")
        nats = entropy(unigram_counts(corpus, MAX_TOKENS))
        out.append(f"  unigram entropy of {corpus.folder}: {nats:.4f}   (a model of word frequencies alone)")
    return out


def _loss(value: dict[str, Any]) -> str:
    """`3.2101 (1.7000)`; bytes may be unknown, and a loss that was not finite is null."""
    bits = value["bits_per_byte"]
    return _number(value["loss"]) + ("" if bits is None else f" ({bits:.4f})")


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


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
    """Command lines that work for this very run, from the folder the report is made in."""
    _, order = open_run(str(folder))
    seen = order.documents(order.batch(1, 0, 1)[0])[0]
    document = seen.file.index.row(seen.ordinal).id
    corpora = [source_corpus(run.data, name, folder / "data") for name in run.data.sources if run.data.sources[name].path]
    has_text = find_tokenizer(corpora) is not None
    here = shlex.quote(str(folder))
    rows = [
        (f"olmo generate {here} --prompt 'def main():'" if has_text else "", "text from the newest checkpoint"),
        (f"olmo data batch {here} {max(steps[-1].step, 1)} --row 0{' --text' if has_text else ''}", "what the last step saw"),
        (f"olmo data when {here} {shlex.quote(document)}", "the steps that saw a document"),
        (f"olmo checkpoints list {here}", "sizes and losses of the checkpoints"),
        (f"olmo checkpoints verify {here}", "every byte against its manifest"),
        (shlex.join(["olmo", "train", *_anneal(run, steps)]), "a new run from a checkpoint, its learning rate to zero"),
    ]
    return ["Try next:", *(f"  {command}\n      {what}" for command, what in rows if command)]


def _anneal(run: TrainConfig, steps: list[StepInfo]) -> list[str]:
    """Overrides of an anneal of ten steps on one rank; a checkpoint that stopped at a rate of zero has nothing to anneal."""
    best = next((info for info in reversed(steps) if info.lr > 0), steps[-1])
    words = [f"run_name={hydra_word(f'{run.run_name}_anneal')}", "experiment=anneal", f"load.path={hydra_word(str(best.path))}"]
    words.append(f"max_tokens={10 * run.data.global_batch_size}")
    base, kept = to_plain(load_config("train", TrainConfig, words)), to_plain(run)
    for section, name in (("optim", "lr"), ("optim", "schedule"), ("parallel", "shard_size")):
        kept[section][name] = base[section][name]
    if run.run_dir != f"runs/{run.run_name}":
        words.append(f"run_dir={hydra_word(f'{run.run_dir}_anneal')}")
    if best.lr == 0:
        words.append(f"optim.lr={read_state(best.path)['peak_lr']}")
    if run.eval.eval_every is None:
        words.append("eval.eval_every=null")
    for section in ("model", "data", "optim", "parallel"):
        words += differences(kept[section], base[section], section)
    return words


if __name__ == "__main__":
    raise SystemExit(run_command(main))
