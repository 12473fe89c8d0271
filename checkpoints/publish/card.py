"""The model card of a release, from facts alone: nothing in it is typed by hand, and nothing is praised."""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from checkpoints.hf_names import hf_model_type
from checkpoints.publish.card_commands import trace_section, use_section, verify_section
from checkpoints.publish.facts import Facts, Start, effective_starts, source_facts
from checkpoints.publish.markdown import code, escape, one_line, table, wrap
from checkpoints.publish.plots import short_count
from olmo_train.config.model import ModelConfig, MoEConfig
from olmo_train.config.optim import OptimConfig, ScheduleKind
from olmo_train.config.train import Float8, TrainConfig
from olmo_train.model.shapes import d_head, n_kv_heads, vocab_rows
from olmo_train.model.size import FLOPS_CONVENTION, count_params, flops_per_token

UNITS = {
    "loss": "cross entropy, nats per token", "bits_per_byte": "bits per byte", "acc": "accuracy", "perplexity": "perplexity",
}  # fmt: skip
"""What metrics are called in a card."""
COUNTS = ("tokens",)
"""Metrics that are no results but what they were taken over."""


def write_card(facts: Facts) -> str:
    """README.md of a release: YAML front matter as the hub wants it, then text."""
    sections = [
        _title(facts), _model(facts), _training(facts), _code(facts), _data(facts), _evaluations(facts), _curves(facts),
        use_section(facts), verify_section(facts), trace_section(facts), _limits(facts), _licence(facts),
    ]  # fmt: skip
    header = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{header}---\n\n" + "\n\n".join("\n".join(section) for section in sections if section) + "\n"


# ---- front matter ----------------------------------------------------------------------------------------------------


def front_matter(facts: Facts) -> dict[str, Any]:
    """What the hub reads of a card. `model-index` is there if this step was evaluated."""
    model = facts.run.model
    tags = ["pretraining", "base-model", hf_model_type(model), *(["mixture-of-experts"] if model.moe else [])]
    values: dict[str, Any] = {
        "license": facts.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    results = list(_results(facts))
    if results:
        values["model-index"] = [{"name": one_line(facts.release.run), "results": results}]
    return values


def _results(facts: Facts) -> Iterator[dict[str, Any]]:
    for row in facts.release.evaluations:
        metrics = [
            {"type": one_line(name), "value": value, "name": UNITS.get(name, one_line(name))}
            for name, value in row["metrics"].items()
            if value is not None and name not in COUNTS
        ]
        if metrics:
            label = one_line(row["label"])
            kind = re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-.") or "unnamed"
            source = "all sources" if label == "all" else label
            dataset = f"held-out documents of {source}" if row["suite"] == "heldout" else label
            yield {
                "task": {"type": "text-generation"},
                "dataset": {"name": dataset, "type": kind},
                "metrics": metrics,
            }


# ---- what it is ------------------------------------------------------------------------------------------------------


def _title(facts: Facts) -> list[str]:
    release, model = facts.release, facts.run.model
    total, active = release.parameters["total"], release.parameters["active"]
    kind = "mixture-of-experts" if model.moe else "dense"
    size = f"{total:,} parameters" + (f", of which a token uses {active:,}" if active != total else "")
    where = f"step {release.step:,} of {_last_step(facts.run):,}"
    seen = "before any training" if release.step == 0 else f"after {release.tokens:,} tokens"
    text = (
        f"A {kind} language model with {size}, {seen} ({where} of its run). It predicts the next token of text; it was not "
        f"tuned to follow instructions. This is revision {code(release.name)}. The numbers on this page come from the files "
        "beside it: `release.json` lists every file and tensor with its SHA-256, `training/` has the configuration and the "
        "records of the run."
    )
    return [f"# {escape(release.run)}, step {release.step:,}", "", *wrap(text)]


def _model(facts: Facts) -> list[str]:
    run, model, release = facts.run, facts.run.model, facts.release
    counts, flops = count_params(model), flops_per_token(model, run.data.seq_len)
    rows = [
        ("Class in transformers", code(release.architecture)),
        ("Parameters", f"{counts.total:,}"),
        ("Parameters used by a token", f"{counts.active:,}"),
        ("of these in the input embedding", f"{counts.embedding:,}"),
        ("Layers", f"{model.n_layers:,}"),
        ("Width", f"{model.d_model:,}"),
        ("Attention heads", f"{model.n_heads:,} of width {d_head(model)}, {n_kv_heads(model):,} for keys and values"),
        ("Feed-forward", _feed_forward(model)),
        ("Vocabulary", f"{model.vocab_size:,} ids, {vocab_rows(model):,} rows"),
        ("Input and output embeddings", "shared" if model.tie_embeddings else "separate"),
        ("Positions", f"rotary, base {model.rope_theta:,.0f}{_yarn(model)}"),
        ("Attention window", _window(model)),
        ("Norm", f"{model.norm}, {model.norm_order}; of queries and keys: {model.qk_norm}"),
        ("Sequence length in training", f"{run.data.seq_len:,} tokens"),
        ("Weights as published", f"{release.dtype}, {'as saved by the run' if release.is_exact else 'converted'}"),
        ("Training FLOPs per token", f"{flops:,.0f}"),
    ]  # fmt: skip
    note = f"FLOPs: {FLOPS_CONVENTION}."
    return ["## Model", "", *table(("", ""), rows), "", *wrap(note)]


def _feed_forward(model: ModelConfig) -> str:
    if model.moe is None:
        return f"SwiGLU of width {model.d_ff:,}"
    moe = model.moe
    text = f"{moe.n_experts} experts of width {moe.d_expert:,} (SwiGLU), {moe.top_k} for each token"
    shared = f", {moe.n_shared_experts} shared" if moe.n_shared_experts else ""
    dense = f"; the first {moe.n_dense_layers} layers dense, of width {model.d_ff:,}" if moe.n_dense_layers else ""
    return text + shared + dense


def _yarn(model: ModelConfig) -> str:
    return f", YaRN factor {model.rope_yarn.factor:g}" if model.rope_yarn is not None else ""


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _window(model: ModelConfig) -> str:
    if model.sliding_window is None:
        return "all tokens before"
    return f"{model.sliding_window:,} tokens; all tokens before on every {_ordinal(model.full_attention_every)} layer"


# ---- how it was trained ----------------------------------------------------------------------------------------------


def _training(facts: Facts) -> list[str]:
    release, run, state = facts.release, facts.run, facts.state
    flops = flops_per_token(run.model, run.data.seq_len) * release.tokens
    rows = [
        ("Steps taken", f"{release.step:,} of {_last_step(run):,}"),
        ("Tokens seen", f"{release.tokens:,}"),
        ("Training loss at this step", "-" if release.loss is None else f"{release.loss:.4f} nats per token"),
        ("Training FLOPs so far", f"{flops:.4g}"),
        ("Batch", f"{run.data.global_batch_size:,} tokens, {run.data.global_batch_size // run.data.seq_len:,} sequences"),
        ("Optimizer", _optimizer(run.optim)),
        ("Gradient clipping", "none" if run.optim.max_grad_norm is None else f"L2 norm {run.optim.max_grad_norm:g}"),
        ("Learning rate at this step", f"{state['lr']:.6g}"),
        ("Schedule", _schedule(run, state)),
        ("Precision", _precision(run)),
        *([("Loss beside cross entropy", _auxiliary(run.model))] if _auxiliary(run.model) else []),
        ("Steps that changed nothing", _skipped(facts)),
        ("Attention across documents", "no" if run.data.document_masking else "yes: documents of a sequence see those before"),
        ("Began from", _parent(facts)),
        ("Seed", str(run.seed)),
    ]
    if facts.history.speed:
        rows.append(("Speed, median", f"{sorted(facts.history.speed)[len(facts.history.speed) // 2]:,.0f} tokens per second"))
    return [
        "## Training",
        "",
        *table(("", ""), rows),
        "",
        "Every value that training was given stands in `training/config.yaml`.",
    ]


def _optimizer(optim: OptimConfig) -> str:
    text = f"AdamW, beta {optim.beta1:g} and {optim.beta2:g}, epsilon {optim.eps:g}, weight decay {optim.weight_decay:g}"
    if optim.no_decay:
        text += f" (none on {', '.join(optim.no_decay)})"
    if optim.muon is not None:
        rate = "" if optim.muon.lr is None else f", peak rate {optim.muon.lr:g}"
        text = f"Muon for the matrices of the blocks, momentum {optim.muon.momentum:g}{rate}; for the rest {text}"
    return text


def _schedule(run: TrainConfig, state: dict[str, Any]) -> str:
    schedule, end = run.optim.schedule, run.optim.schedule.decay_tokens
    text = f"peak {state['peak_lr']:.6g}; {schedule.kind}; warm-up over {schedule.warmup_tokens:,} tokens"
    final = f"to {schedule.final_frac:g} of the peak"
    match schedule.kind:
        case ScheduleKind.CONSTANT:
            return text
        case ScheduleKind.WSD:
            return f"{text}; the last {end or 0:,} tokens {final}"
        case _:
            return f"{text}; {final} at {end or run.max_tokens:,} tokens"


def _precision(run: TrainConfig) -> str:
    parallel, optim = run.parallel, run.optim
    text = (
        f"compute {parallel.compute_dtype}, gradients reduced in {parallel.reduce_dtype} and added up in {optim.grad_dtype}, "
        f"weights {optim.weight_dtype}, moments {optim.moment_dtype}"
    )
    return text + (f", dense projections float8 {parallel.float8}" if parallel.float8 != Float8.NONE else "")


def _auxiliary(model: ModelConfig) -> str:
    moe: MoEConfig | None = model.moe
    parts = {"output z-loss": model.z_loss_weight}
    if moe is not None:
        parts |= {
            f"load balancing ({moe.load_balancing_scope})": moe.load_balancing_loss_weight,
            "router z-loss": moe.router_z_loss_weight,
            "selection bias, step": moe.bias_update_rate,
        }
    return ", ".join(f"{name} {weight:g}" for name, weight in parts.items() if weight)


def _skipped(facts: Facts) -> str:
    if not facts.history.tokens and facts.release.step > 0:
        return "not known: the run has no metrics.jsonl"
    counts = facts.history.skipped
    return ", ".join(f"{n:,} ({reason})" for reason, n in sorted(counts.items())) or "none"


def _parent(facts: Facts) -> str:
    if facts.run.load is None:
        return "random weights"
    return "the weights" + (" and moments" if facts.run.load.optimizer_state else "") + " of another checkpoint, see `load` there"


def _code(facts: Facts) -> list[str]:
    starts = effective_starts(facts.starts, facts.release.step)
    rows = []
    for start in starts:
        git, versions = start.git, start.facts.get("versions", {})
        commit = "not known" if git is None else code(git["commit"]) + (" with uncommitted changes" if git["has_changes"] else "")
        packages = ", ".join(f"{one_line(name)} {one_line(version)}" for name, version in versions.items())
        hardware = f"{start.facts.get('n_ranks', '?')} x {one_line(str(start.facts.get('device', 'not known')))}"
        rows.append((_span(start), commit, code(hardware), code(f"Python {start.facts.get('python', '?')}, {packages}")))
    out = ["## Code and hardware", "", *table(("Steps", "Commit", "Ranks and device", "Versions"), rows)]
    if any(start.git is None or start.git["has_changes"] for start in starts):
        warning = (
            "**The code is not exactly known.** Files differed from the commit, or there was none, when steps of this table were "
            "taken; running the commit again may give other numbers."
        )
        out += ["", *wrap(warning)]
    return out


def _span(start: Start) -> str:
    return "0" if start.last == 0 else f"{start.first:,} to {start.last:,}"


# ---- data ------------------------------------------------------------------------------------------------------------


def _data(facts: Facts) -> list[str]:
    header = ("Source", "Documents", "Tokens", "Held-out documents", "Held-out tokens", "Weight", "Share of the batch", "Epochs")
    rows, prints = [], []
    for source in source_facts(facts):
        name = code(source.name) if source.part is None else f"of it {code(source.part)}"
        by_size = "by size" if source.part is None else ""
        rows.append((
            name, f"{source.documents:,}", f"{source.tokens:,}", f"{source.heldout_documents:,}", f"{source.heldout_tokens:,}",
            "" if source.weight is None else f"{source.weight:g}", by_size if source.share is None else f"{source.share:.2%}",
            "" if source.epochs is None else f"{source.epochs:.4f}",
        ))  # fmt: skip
        if source.part is not None:
            continue
        covers = "contents" if source.has_hashes else "counts, not contents: the shards were described without reading them"
        prints.append((code(source.name), f"{source.heldout_frac:g}", code(source.fingerprint), covers))
    text = (
        "Documents and tokens include the held-out ones, which training never sees: a document is held out by the hash of its "
        "id. Epochs are passes over the training tokens up to this step. The manifests of the shards, with a checksum for every "
        "file, lie in `training/data`."
    )
    return [
        "## Data", "", *table(header, rows, range(1, 8)), "", *wrap(text), "",
        *table(("Source", "Held-out fraction", "Fingerprint of the manifest", "It covers"), prints, [1]), "",
        f"Key of the data order (SHA-256): {code(facts.order.key['sha256'])}",
    ]  # fmt: skip


# ---- results ---------------------------------------------------------------------------------------------------------


def _evaluations(facts: Facts) -> list[str]:
    rows = []
    for row in facts.release.evaluations:
        over = ", ".join(f"{row['metrics'][name]:,} {name}" for name in COUNTS if row["metrics"].get(name) is not None)
        for name, value in row["metrics"].items():
            if name not in COUNTS:
                what = f"{code(name)} ({UNITS[name]})" if UNITS.get(name, name) != name else code(name)
                rows.append((code(row["suite"]), code(row["label"]), what, _number(value), over or "-"))
    if not rows:
        return ["## Evaluations", "", "None at this step."]
    note = "`evaluations.json` has these, those of earlier steps, and the settings of each."
    return ["## Evaluations", "", *table(("Suite", "Task or source", "Metric", "Value", "Over"), rows, [3, 4]), "", note]


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _curves(facts: Facts) -> list[str]:
    out = [f"![{plot.caption}](plots/{plot.file})" for plot in facts.plots]
    return ["## Curves", "", *"\n\n".join(out).split("\n")] if out else []


# ---- limits ----------------------------------------------------------------------------------------------------------


def _limits(facts: Facts) -> list[str]:
    return ["## Limits", "", *(line for text in _limit_lines(facts) for line in wrap(f"- {text}", "  "))]


def _limit_lines(facts: Facts) -> Iterator[str]:
    release, run = facts.release, facts.run
    yield "A base model: it continues text. It was not tuned to follow instructions, to be truthful or to refuse."
    if release.step == 0:
        yield "The weights are those before the first step; its text is noise unless the run began from a trained checkpoint."
    else:
        per_parameter = release.tokens / release.parameters["active"]
        yield (
            f"It saw {short_count(release.tokens)} tokens in this run, {per_parameter:.3g} for each parameter that a token uses."
        )
    if release.step < _last_step(run):
        yield f"The run goes on to step {_last_step(run):,}; at this step its learning rate was {facts.state['lr']:.3g}."
    yield f"It was trained on sequences of {run.data.seq_len:,} tokens; what it does with longer ones was not measured."
    yield "The languages and the topics of the data are not recorded, beyond the names of the sources."
    if not release.evaluations:
        yield "It was not evaluated at this step."
    if not release.is_exact:
        yield f"The weights are rounded or widened to {release.dtype}; loss and evaluations are of the run's own."
    if not facts.history.tokens and release.step > 0:
        yield "The run's metrics.jsonl is gone, so there are no curves."


def _licence(facts: Facts) -> list[str]:
    text = f"The weights: {code(facts.license)}. The documents it was trained on keep the licences they have."
    return ["## Licence", "", text]


def _last_step(run: TrainConfig) -> int:
    return run.max_tokens // run.data.global_batch_size
