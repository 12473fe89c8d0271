"""Which traced documents pulled the model towards a span: `olmo trace influence runs/first --text 'import os'`.

Traces the text, takes one of its spans, and orders the span's documents by the similarity of gradients at the checkpoints before
the steps that saw them (docs/trace_influence.md). A re-ranker: it looks at no document that the trace did not find.
"""

import argparse
import textwrap
from pathlib import Path

from checkpoints.inspect.readable import one_line
from checkpoints.inspect.tables import check_target, columns, value
from checkpoints.trace.gradients import Chosen
from checkpoints.trace.influence import influence_of, option_problems
from checkpoints.trace.influence_results import DocumentInfluence, Influence, InfluenceOptions
from data_tools.trace.answer import Answer
from data_tools.trace.questions import give, new_parser, open_question, parse
from data_tools.trace.trace_text import trace_text
from olmo_train.errors import ConfigError, run_command

WIDTH = 130
MAX_STEPS = 4
"""Shown of a document."""
MAX_TEXT = 60
"""Characters of a span in a heading."""


def main(argv: list[str]) -> None:
    """Print the documents of one span of a text, the most influential first."""
    args = parse(_parser(), argv, ["documents", "checkpoints"])
    options = _options(args)
    if args.json not in (None, "-"):
        check_target(Path(args.json))
    trace = open_question(args)
    answer = trace_text(trace, args.text, args.prompt)
    span = _choose_span(answer) if args.span is None else args.span
    influence = influence_of(trace, answer, span, options)
    give(args, influence, lines(influence, answer, span))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("influence", __doc__, wants_texts=False)
    add, default = parser.add_argument, InfluenceOptions()
    add("--text", required=True, metavar="TEXT", help="trace this text")
    add("--prompt", default="", metavar="TEXT", help="what it answers, for the BM25 order of the documents")
    add("--span", type=int, metavar="N", help="number of the span, as `olmo trace text` has it; default: the most improbable one")
    add("--steps", metavar="1,2,3", help="at these checkpoints; default: at the newest one before each step that saw a document")
    add("--parameters", default=",".join(default.parameters), metavar="KINDS", help=f"of {', '.join(Chosen)} (%(default)s)")
    add("--layers", metavar="0,1", help="parameters of these layers only")
    add("--precondition", default=default.precondition, help="adam (by AdamW's second moments), none or auto (%(default)s)")
    add("--rank", default=default.rank, help="influence or cosine (%(default)s)")
    add("--null", type=int, default=default.null, metavar="N", help="windows of held-out text to compare with (%(default)s)")
    add("--seed", type=int, default=default.seed, help="of their choice")
    add("--documents", type=int, default=default.max_documents, metavar="N", help="compare the first N by BM25 (%(default)s)")
    add("--checkpoints", type=int, default=default.max_checkpoints, metavar="N", help="load at most N (%(default)s)")
    add("--device", default=default.device, help="auto, cpu or cuda (%(default)s)")
    return parser


def _options(args: argparse.Namespace) -> InfluenceOptions:
    """Raises:
    ConfigError: a list has something else than numbers, or no text is given."""
    problems: list[str] = []
    steps, layers = _numbers("--steps", args.steps, problems), _numbers("--layers", args.layers, problems)
    if not args.text:
        problems.append("--text is empty; give the text to trace")
    options = InfluenceOptions(
        parameters=args.parameters.split(","),
        layers=layers,
        steps=steps,
        precondition=args.precondition,
        rank=args.rank,
        null=args.null,
        seed=args.seed,
        max_documents=args.documents,
        max_checkpoints=args.checkpoints,
        device=args.device,
    )
    problems += option_problems(options)
    if problems:
        raise ConfigError(problems)
    return options


def _numbers(flag: str, given: str | None, problems: list[str]) -> list[int] | None:
    if given is None:
        return None
    try:
        numbers = sorted({int(word) for word in given.split(",")})
    except ValueError:
        numbers = [-1]
    if numbers[0] < 0:
        problems.append(f"{flag}={given} must be whole numbers from 0 with commas between them, e.g. {flag} 0,10")
    return numbers


def _choose_span(answer: Answer) -> int:
    """The most improbable span.

    Raises:
        ConfigError: there is none.
    """
    if not answer.spans:
        raise ConfigError("no span of the text stands in training documents; a shorter one may: spans.min_tokens=2")
    return min(answer.spans, key=lambda span: span.log_prob).number


# ---- what is printed -----------------------------------------------------------------------------------------------------


def lines(influence: Influence, answer: Answer, span: int) -> list[str]:
    """The text of the command."""
    text, count = one_line(influence.span), next(each.count for each in answer.spans if each.number == span)
    shown = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 3]}..."
    at = ", ".join("unknown" if step is None else str(step) for step in influence.checkpoints) or "none"
    out = [
        f"span {span} of {len(answer.spans)}: {shown!r}, {influence.n_span_tokens} tokens, {count:,} times in training data",
        f"{len(influence.documents)} documents, {influence.n_parameters:,} weights ({_kinds(influence.options)}), at steps: {at}",
        "",
    ]
    rows = [["", "influence", "cosine", "percentile", "z", "BM25", "seen at steps", "document", "strongest parts"]]
    out += columns([*rows, *(_row(rank, document) for rank, document in enumerate(influence.documents, 1))], (6, 7, 8))
    out += ["", f"influence: {_unit(influence)}", f"percentile, z: {_noise(influence)}", "", "What this cannot say:"]
    for caution in influence.cautions:
        out += textwrap.wrap(caution, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return out


def _row(rank: int, d: DocumentInfluence) -> list[str]:
    steps = ", ".join(map(str, d.steps[:MAX_STEPS])) + (
        f" and {len(d.steps) - MAX_STEPS} more" if len(d.steps) > MAX_STEPS else ""
    )
    strongest = "; ".join(f"{part.part} {value(part.influence, 2)}" for part in d.strongest)
    percentile = value(None) if d.percentile is None else f"{d.percentile:.0f}"
    numbers = [value(d.influence, 3), value(d.cosine, 3), percentile, value(d.z, 2), str(d.bm25_rank)]
    return [f"{rank}.", *numbers, steps or value(None), one_line(d.id), strongest]


def _kinds(options: InfluenceOptions) -> str:
    return ", ".join(options.parameters) + (f" of layers {', '.join(map(str, options.layers))}" if options.layers else "")


def _unit(influence: Influence) -> str:
    if influence.unit != "nats":
        return "inner product of the gradients (the learning rate is not known)"
    how = "AdamW without momentum" if influence.options.precondition == "adam" else "plain gradient descent"
    when = "at its visits" if influence.options.steps is None else "in one step after each checkpoint"
    return f"nats that the document's share of the batch would have added to the span's log-probability {when}, by {how}"


def _noise(influence: Influence) -> str:
    if not influence.null:
        return "not computed (--null 0)"
    return f"of the cosine among those of {influence.null[0].n} windows of held-out text in the same rows"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
