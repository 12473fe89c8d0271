"""What influence is worth: estimates of leaving one document out of a step, against AdamW's step with and without it.

    python benchmarks/trace_influence.py runs/first --step 50 [--queries 16]

Takes the batch of the step after a checkpoint, and spans from the middle of some of its documents. For each document the step is
taken once without it, from the saved weights and moments, with clipping and weight decay; what changes in the log-probability of
each span is the truth. Prints how well each estimate orders the documents of each span (Spearman, mean over spans), how often it
has the document that the span came from first, and the ratio of truth to estimate. docs/trace_influence.md quotes it.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor

from checkpoints.inspect.moments import MomentWeights
from checkpoints.load import load_model
from checkpoints.opening import Checkpoint, open_checkpoint
from checkpoints.trace.gradients import Gradient, adam_scale, choose_parameters, example_gradient, inner, rescale, total
from checkpoints.trace.influence_examples import Example, row_example, span_example
from checkpoints.trace.span_probability import SpanQuery
from data_tools.inspect.run_order import open_run
from data_tools.trace.bm25 import bm25
from olmo_train.config.optim import ParamKind
from olmo_train.data.order import DataOrder
from olmo_train.model.shapes import param_shapes
from olmo_train.model.transformer import Transformer
from olmo_train.optim.schedule import multiplier
from olmo_train.tokenizer import Tokenizer

CPU = torch.device("cpu")
MIN_TOKENS, SPAN_TOKENS, CONTEXT_TOKENS = 24, 8, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--step", type=int, required=True, help="a saved step")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--documents", type=int, default=48)
    args = parser.parse_args()
    config, order = open_run(args.run)
    checkpoint = open_checkpoint(args.run, args.step)
    examples = documents_of(order, checkpoint, args.step + 1, args.documents)
    queries = [query_of(example) for example in examples[: args.queries]]
    tokenizer = Tokenizer(checkpoint.tokenizer or Path("tokenizer.json"))
    truth_QD = Truth(checkpoint, order).effects(examples, queries)
    print(
        f"step {args.step} of {args.run}: {len(queries)} spans, {len(examples)} documents of the next batch ({config.run_name})"
    )
    print(f"largest effect of a document on its own span: {np.abs(truth_QD.diagonal()).max():.4f} nats")
    print(f"{'estimate':<28} {'Spearman':>9} {'own first':>9} {'truth/estimate':>15}")
    for name, estimate_QD in estimates(checkpoint, examples, queries, tokenizer).items():
        report(name, estimate_QD, truth_QD)


def documents_of(order: DataOrder, checkpoint: Checkpoint, step: int, limit: int) -> list[Example]:
    """Documents of a batch, each in its row."""
    assert checkpoint.run is not None
    out = []
    for instance in order.batch(step):
        for document in order.documents(instance):
            if document.column_end - document.column_start >= MIN_TOKENS and len(out) < limit:
                out.append(row_example(order, checkpoint.run.data, step, instance.row, document.column_start))
    return out


def query_of(example: Example) -> Example:
    """A span from the middle of a document, with a few tokens before it."""
    middle = (example.start + example.end) // 2
    ids = example.rows.ids[0].tolist()
    return span_example(SpanQuery(ids[middle : middle + SPAN_TOKENS], ids[middle - CONTEXT_TOKENS : middle]), 1024)


# ---- the truth -----------------------------------------------------------------------------------------------------------


class Truth:
    """AdamW's step from a checkpoint, taken again and again."""

    def __init__(self, checkpoint: Checkpoint, order: DataOrder) -> None:
        assert checkpoint.run is not None
        self.checkpoint, self.order, self.run = checkpoint, order, checkpoint.run
        self.model = load_model(checkpoint, CPU)
        self.names = choose_parameters(checkpoint.model, ["all"])
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        moments = MomentWeights.of(checkpoint)
        self.first = {name: moments.read(f"exp_avg/{name}") for name in self.names}
        self.second = {name: moments.read(f"exp_avg_sq/{name}") for name in self.names}
        kinds: dict[str, ParamKind] = {shape.name: shape.kind for shape in param_shapes(checkpoint.model)}
        self.decay = {name: 0.0 if kinds[name] in self.run.optim.no_decay else self.run.optim.weight_decay for name in self.names}

    def effects(self, examples: list[Example], queries: list[Example]) -> np.ndarray:
        """(queries, documents): log-probability of the span after the whole step, less that after it without the document."""
        step = int(self.checkpoint.step or 0) + 1
        n = self.order.rows * (self.run.data.seq_len - 1)
        whole: Gradient = {name: torch.zeros_like(self.start[name]) for name in self.names}
        for instance in self.order.batch(step):
            for document in self.order.documents(instance):
                example = row_example(self.order, self.run.data, step, instance.row, document.column_start)
                for name, gradient in example_gradient(
                    self.model, self.names, example.rows, self.run.model.z_loss_weight
                ).items():
                    whole[name] += gradient / n
        full = self._after(whole, queries)
        columns = []
        for example in examples:
            self._restore()
            own = example_gradient(self.model, self.names, example.rows, self.run.model.z_loss_weight)
            columns.append(full - self._after({name: whole[name] - own[name] / n for name in self.names}, queries))
        return np.stack(columns, 1)

    @torch.no_grad()
    def _restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.start[name])

    @torch.no_grad()
    def _after(self, gradient: Gradient, queries: list[Example]) -> np.ndarray:
        optim, step = self.run.optim, int(self.checkpoint.step or 0) + 1
        peak = self.checkpoint.state["peak_lr"]
        lr = peak * multiplier(optim.schedule, step * self.run.data.global_batch_size, self.run.max_tokens)
        norm = torch.stack([g.double().square().sum() for g in gradient.values()]).sum().sqrt()
        clip = float(((norm + 1e-6) / (optim.max_grad_norm or torch.inf)).clamp_min(1.0))
        t = self.checkpoint.state["optimizer_steps"] + 1
        for name, parameter in self.model.named_parameters():
            g = gradient[name] / clip
            first = optim.beta1 * self.first[name] + (1 - optim.beta1) * g
            second = optim.beta2 * self.second[name] + (1 - optim.beta2) * g.square()
            direction = first / (1 - optim.beta1**t) / ((second / (1 - optim.beta2**t)).sqrt() + optim.eps)
            parameter.copy_(self.start[name] * (1 - lr * self.decay[name]) - lr * direction)
        return np.array([log_prob(self.model, query) for query in queries])


@torch.no_grad()
def log_prob(model: Transformer, query: Example) -> float:
    logits_TV: Tensor = model(torch.from_numpy(query.rows.ids))[0].double()  # type: ignore[assignment]
    labels_T = torch.from_numpy(query.rows.labels)[0]
    return -float(torch.nn.functional.cross_entropy(logits_TV, labels_T, reduction="sum"))


# ---- the estimates -------------------------------------------------------------------------------------------------------


def estimates(
    checkpoint: Checkpoint, examples: list[Example], queries: list[Example], tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """(queries, documents) of each: influence in nats of this step alone (AdamW's momentum gives it 1 - beta1), cosine, BM25."""
    assert checkpoint.run is not None
    run, step = checkpoint.run, int(checkpoint.step or 0) + 1
    lr = checkpoint.state["peak_lr"] * multiplier(run.optim.schedule, step * run.data.global_batch_size, run.max_tokens)
    n = run.data.global_batch_size // run.data.seq_len * (run.data.seq_len - 1)
    now = (1 - run.optim.beta1) / (1 - run.optim.beta1 ** (checkpoint.state["optimizer_steps"] + 1))
    model = load_model(checkpoint, CPU)
    out: dict[str, np.ndarray] = {}
    for kinds in (["all"], ["blocks"], ["attention"], ["experts"]):
        names = choose_parameters(checkpoint.model, kinds)
        for how in ("adam", "none"):
            scales = adam_scale(checkpoint, names, CPU) if how == "adam" else None

            def gradient(example: Example, names: list[str] = names, scales: dict[str, Tensor] | None = scales) -> Gradient:
                return rescale(example_gradient(model, names, example.rows), scales)

            dots, cosines = compare(gradient, queries, examples, model)
            out[f"{kinds[0]}, {how}"] = dots * lr * now / n
            out[f"{kinds[0]}, {how}, cosine"] = cosines
    texts = [tokenizer.decode(example.rows.ids[0, example.start :].tolist()) for example in examples]
    spans = [tokenizer.decode(query.rows.ids[0, query.start :].tolist()) for query in queries]
    out["BM25"] = np.stack([bm25(span, texts) for span in spans])
    out["length"] = np.tile([float(example.n_targets) for example in examples], (len(queries), 1))
    return out


def compare(
    gradient: Callable[[Example], Gradient], queries: list[Example], examples: list[Example], model: Transformer
) -> tuple[np.ndarray, np.ndarray]:
    """Inner products and cosines."""
    spans = [gradient(query) for query in queries]
    norms = [total(inner(span, span, model.config)) ** 0.5 for span in spans]
    dots, cosines = np.zeros((len(queries), len(examples))), np.zeros((len(queries), len(examples)))
    for d, example in enumerate(examples):
        document = gradient(example)
        norm = total(inner(document, document, model.config)) ** 0.5
        for q, span in enumerate(spans):
            dots[q, d] = total(inner(span, document, model.config))
            cosines[q, d] = dots[q, d] / (norms[q] * norm)
    return dots, cosines


def report(name: str, estimate_QD: np.ndarray, truth_QD: np.ndarray) -> None:
    def ranks(values: np.ndarray) -> np.ndarray:
        return values.argsort().argsort().astype(float)

    spearman = [np.corrcoef(ranks(a), ranks(b))[0, 1] for a, b in zip(estimate_QD, truth_QD, strict=True)]
    own = float(np.mean(estimate_QD.argmax(1) == np.arange(len(estimate_QD))))
    is_nats = "," in name and "cosine" not in name
    slope = f"{(estimate_QD * truth_QD).sum() / (estimate_QD**2).sum():>15.3f}" if is_nats else f"{'-':>15}"
    print(f"{name:<28} {np.mean(spearman):>9.3f} {own:>9.2f} {slope}")


if __name__ == "__main__":
    main()
