"""What a run believed of a span at every checkpoint: `olmo trace belief runs/first --text 'import os' --span os`.

Log-probability of the span given its context at each checkpoint, beside control spans of held-out documents, and what the steps
that saw it are estimated to have added (docs/trace_belief.md).
"""

import argparse
from pathlib import Path

from checkpoints.inspect.readable import NONE, number, one_line, percent
from checkpoints.inspect.tables import check_target, columns
from checkpoints.trace.belief import BeliefOptions, measure_belief
from checkpoints.trace.belief_figure import belief_svg
from checkpoints.trace.controls import ControlOptions
from checkpoints.trace.likeness import Tolerance
from checkpoints.trace.queries import Context, place_name
from checkpoints.trace.results import Belief, BeliefPoint, Estimate
from checkpoints.trace.span_choice import SpanChoice, choose_query
from data_tools.trace.answer import Mark
from data_tools.trace.opening import load_trace_config, open_trace
from data_tools.trace.questions import give, parse
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.files import write_atomic

SHOWN_EXPERTS = 4
"""Of each layer, the most used."""


def main(argv: list[str]) -> None:
    """Print the curve, the estimates and what they cannot say."""
    args = parse(_parser(), argv)
    check_target(None if args.json in (None, "-") else Path(args.json))
    check_target(args.figure, "--figure")
    problems = _find_problems(args)
    if problems:
        raise ConfigError(problems)
    trace = open_trace(args.where, load_trace_config(args.overrides))
    context = None if args.context is None else Context(args.context)
    query = choose_query(trace, SpanChoice(args.text, args.span, context, args.place))
    controls = ControlOptions(args.controls, Tolerance(args.caliper), args.max_shared, seed=args.seed)
    options = BeliefOptions(args.steps, controls, args.checkpoints, Device(args.device), args.cache, not args.no_cache)
    belief = measure_belief(trace, query, options)
    if args.figure is not None:
        write_figure(args.figure, belief)
    give(args, belief, lines_of(belief, args.experts))


def lines_of(belief: Belief, with_experts: bool = False) -> list[str]:
    """Everything, for a terminal."""
    span = belief.span
    where = "" if span.place is None else f" at {place_name(span.place)}"
    document = "no training document" if span.document is None else f"document {one_line(span.document)}{where}"
    head = [
        f"span: {one_line(span.text)!r} ({len(span.tokens)} tokens), {document}; {belief.count:,} times in training documents",
        f"context: {span.n_context} tokens of the {span.context_kind}",
    ]
    if belief.matching is not None:
        m = belief.matching
        head.append(
            f"controls: {m.found} spans of {m.n_documents} held-out documents, unigram log-probability within "
            f"{number(m.largest_difference, 2)} nats per token, at most {m.max_shared} tokens in a row in training documents"
        )
    out = [*head, "", *_table(belief), ""]
    if with_experts:
        out += [*_experts(belief), ""]
    out += _estimates(belief)
    return [*out, *(["", *(f"note: {caution}" for caution in belief.cautions)] if belief.cautions else [])]


def _table(belief: Belief) -> list[str]:
    n_tokens = len(belief.span.tokens)
    titles = ["step", "log-prob", "per token"]
    has_experts = bool(belief.span.points[-1].experts)
    rows = [
        titles
        + (["controls", "difference"] if belief.controls else [])
        + (["routing"] if has_experts else [])
        + ["seen by steps"]
    ]
    before = -1
    for i, point in enumerate(belief.span.points):
        row = [str(point.step), f"{point.log_prob:.3f}", f"{point.log_prob / n_tokens:.3f}"]
        if belief.controls:
            mean = sum(curve.points[i].log_prob for curve in belief.controls) / len(belief.controls)
            row += [f"{mean:.3f}", f"{point.log_prob - mean:+.3f}"]
        if has_experts:
            row.append(_agreement(point))
        rows.append([*row, _seen(belief, before, point.step)])
        before = point.step
    return columns(rows, left=(len(rows[0]) - 1,))


def _agreement(point: BeliefPoint) -> str:
    """Mean over layers of the choices that the last checkpoint makes too."""
    known = [reading.agreement for reading in point.experts if reading.agreement is not None]
    return percent(sum(known) / len(known)) if known else NONE


def _seen(belief: Belief, before: int, step: int) -> str:
    own = {(sight.step, sight.row) for sight in belief.span.sights}
    words = []
    for sight in belief.all_sights:
        if before < sight.step <= step:
            about = [] if sight.mark == Mark.LEARNED else [sight.mark.value]
            about += ["elsewhere"] if own and (sight.step, sight.row) not in own else []
            words.append(f"{sight.step} ({', '.join(about)})" if about else str(sight.step))
    words = list(dict.fromkeys(words))
    return ", ".join(words[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")


def _experts(belief: Belief) -> list[str]:
    """By checkpoint and layer the experts that read the span, with their share of the choices."""
    rows = [["step", "layer", "as at the end", "experts"]]
    for point in belief.span.points:
        for reading in point.experts:
            order = sorted(range(len(reading.share_E)), key=lambda e: -reading.share_E[e])[:SHOWN_EXPERTS]
            shares = "  ".join(f"{e}: {percent(reading.share_E[e])}" for e in order if reading.share_E[e] > 0)
            rows.append([str(point.step), str(reading.layer), percent(reading.agreement), shares])
    return columns(rows, left=(3,)) if len(rows) > 1 else ["no experts: the model is dense"]


def _estimates(belief: Belief) -> list[str]:
    out = [f"{_words(estimate)}{_holm(estimate)}" for estimate in belief.estimates]
    if belief.total is not None:
        out.append(f"since the first sight: {_words(belief.total)}")
    return out or ["no estimate"]


def _words(e: Estimate) -> str:
    steps = f"{len(e.steps)} steps saw it" if len(e.steps) != 1 else f"step {e.steps[0]} saw it"
    sure = "" if e.low <= 0 <= e.high else ", beyond what the controls show"
    return (
        f"steps {e.step_before} to {e.step_after} ({steps}): effect {e.effect:+.3f} nats, 95 % interval {e.low:+.3f} to "
        f"{e.high:+.3f}{sure}; span {e.span_change:+.3f}, {e.n_controls} controls {e.control_change:+.3f}; p = {e.p_value:.3g}"
    )


def _holm(estimate: Estimate) -> str:
    return "" if estimate.p_holm is None or estimate.p_holm == estimate.p_value else f" ({estimate.p_holm:.3g} after Holm)"


def write_figure(path: Path, belief: Belief) -> None:
    """Draw the curve into a file.

    Raises:
        ConfigError: the file system refused.
    """
    try:
        write_atomic(path, belief_svg(belief).encode())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give --figure a file that can be written") from error


# ---- the command line ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "olmo trace belief", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("where", help="folder of a run, or of its releases; its shards need an index (olmo trace index)")
    add("--text", required=True, help="a text, generated or typed")
    add("--span", help="the part of it to measure; default: the first-ranked span that stands in training documents")
    add("--context", choices=[c.value for c in Context], help="what stands before the span; default: its row of training")
    add("--place", metavar="CORPUS:FILE:OFFSET", help="the occurrence in the shards; default: the one that was learned first")
    add("--steps", type=_steps, metavar="N,N", help="checkpoints; default: all")
    add("--checkpoints", metavar="WHERE", help="another run folder or store of releases to take the models from")
    add("--controls", type=int, default=64, metavar="N", help="control spans; 0: the curve alone (default: %(default)s)")
    add("--caliper", type=float, default=0.5, metavar="NATS", help="largest difference of unigram log-probability, per token")
    add("--max-shared", type=int, metavar="TOKENS", help="most tokens in a row that a control shares with training documents")
    add("--seed", type=int, default=0, help="of the controls")
    add("--experts", action="store_true", help="also print the experts that read the span, by layer")
    add("--device", choices=[device.value for device in Device], default="auto")
    add("--cache", type=Path, metavar="FOLDER", help="where results are kept; default: inspect/kept of the run")
    add("--no-cache", action="store_true", help="keep and read no results")
    add("--json", metavar="FILE", help="also write everything to this file; -: print it instead of text")
    add("--figure", type=Path, metavar="FILE.svg", help="draw the curve")
    add("overrides", nargs="*", metavar="name=value", help="of configs/trace.yaml, e.g. spans.min_tokens=8")
    return parser


def _steps(words: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in words.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{words!r} is not steps like 0,10,20") from None


def _find_problems(args: argparse.Namespace) -> list[str]:
    rules = (
        ("controls", args.controls, "not be negative; 0: the curve alone", args.controls >= 0),
        ("caliper", args.caliper, "be positive", args.caliper > 0),
        ("max-shared", args.max_shared, "be at least 0", args.max_shared is None or args.max_shared >= 0),
        ("seed", args.seed, "be at least 0", args.seed >= 0),
    )
    problems = [f"--{name}={value} must {rule}" for name, value, rule, ok in rules if not ok]
    if args.cache is not None and args.no_cache:
        problems.append(f"--cache={args.cache} and --no-cache exclude each other; drop one")
    return problems


if __name__ == "__main__":
    raise SystemExit(run_command(main))
