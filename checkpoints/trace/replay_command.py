"""Train again without a document, and say how a span's probability differs.   olmo trace replay runs/first --document ID

From the checkpoint before the document was first seen to the one after it, twice: as it was, and without the document, everything
else bitwise equal (docs/trace_replay.md). For runs that this machine can train a few steps of.
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from checkpoints.inspect.readable import one_line, visible_token
from checkpoints.inspect.tables import check_target, columns, write_json
from checkpoints.trace.queries import Context
from checkpoints.trace.replay import CONTROL, WITHOUT, Counterfactual, Manner, choose_placebos, replay_without
from checkpoints.trace.replay_plan import LAST, Document, Interval, Training, choose_interval, find_document, open_training
from checkpoints.trace.replay_span import (
    Indexes,
    Span,
    block_lists,
    count_holders,
    find_copies,
    find_text,
    locate,
    make_span,
    open_indexes,
    sighted_part,
    tokenizer_of,
)
from checkpoints.verify.ends import Wanted, find_ends
from checkpoints.verify.release_check import Depth
from checkpoints.verify.releases import Findings
from checkpoints.verify.targets import find_target
from data_tools.trace.opening import load_trace_config
from data_tools.trace.privacy import Privacy
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError, run_command
from olmo_train.parallel.mesh import choose_device
from olmo_train.tokenizer import Tokenizer

MAX_STEPS = 200
SHOWN = 40
"""Tokens of a span that are printed one by one."""


def main(argv: list[str]) -> None:
    """Replay, print what it showed.

    Raises:
        ConfigError: what was asked cannot be replayed; says why, before anything is trained. CheckpointError: a checkpoint is
            damaged, or training failed.
    """
    args = _parse(argv)
    _check(args)
    shards = {name: Path(folder) for name, _, folder in (word.partition("=") for word in args.shards)}
    config = load_trace_config(args.overrides)
    training, start = open_training(find_target(args.where), args.where, args.start, shards)
    privacy = Privacy(config.privacy, block_lists(training, config.indexes))
    indexes = open_indexes(training, config.indexes, privacy)
    left_out, part = _choose(training, indexes, args)
    interval = choose_interval(training, left_out, start, args.end, args.max_steps)
    if args.document is not None:  # its id may be that of several, of which the first was seen elsewhere
        named = [document for document in left_out if document.id == args.document]
        seen = [document for document, _ in interval.sights if document in named]
        document = (seen or named)[0]
        part = _part(training, document, interval, args.span)
    else:
        document = left_out[0]
    assert part is not None
    span = make_span(training, document, part, interval, None if args.context is None else Context(args.context))
    placebos = choose_placebos(training, left_out, span, interval, args.placebos)
    manner = Manner(args.ranks, shards, not args.no_control, placebos, choose_device(Device(args.device)))
    shown = Shown(training, indexes, left_out, interval, span, args.placebos)
    for line in shown.plan(manner):
        print(line, flush=True)
    with ExitStack() as stack:
        work = args.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="olmo-replay-")))
        findings = Findings(lambda line: print(line, flush=True))
        wanted = Wanted(training.names[interval.start], interval.n_steps)
        first, last, _ = find_ends(training.target, wanted, Depth(False, False, []), work, findings)
        found = replay_without(training, left_out, span, (first, last), manner, work, lambda line: print(line, flush=True))
    found.cautions = list(shown.cautions(found))
    print("\n".join(shown.lines(found)))
    if args.json is not None:
        write_json(args.json, shown.to_json(found))


# ---- what was asked ------------------------------------------------------------------------------------------------------


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "olmo trace replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("where", help="folder of a run, of one step, of a release or of releases; a URL; owner/name[@revision] on a hub")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--document", metavar="ID", help="the document to leave out (every document with this id)")
    which.add_argument(
        "--text", help="leave out the first document that holds the longest part of this text which stands in training data"
    )
    add("--span", metavar="WORDS", help="words of the document to ask for; default: the longest part that a row predicted")
    add("--context", choices=[Context.ROW.value, Context.DOCUMENT.value], help="what stands before the span; default: its row")
    add("--copies", action="store_true", help="leave out documents of equal tokens, too (needs the index)")
    add("--from", dest="start", metavar="STEP", help="begin at this checkpoint; default: the newest before the first sighting")
    add("--to", dest="end", metavar="STEP", help=f"end at this checkpoint, or `{LAST}` in reach; default: the first that saw it")
    add("--max-steps", type=int, default=MAX_STEPS, help="refuse to train more, default %(default)s")
    add("--ranks", type=int, metavar="N", help="train on so many ranks; default: as many as then")
    add("--shards", action="append", default=[], metavar="NAME=FOLDER", help="where the shards of a source lie here")
    add("--placebos", type=int, default=0, metavar="N", help="leave out N other documents of the same steps instead, one by one")
    add("--no-control", action="store_true", help="compare with the published checkpoint; do not train as it was")
    add("--device", default="auto", choices=[str(device) for device in Device], help="where probabilities are computed")
    add("--keep", type=Path, metavar="FOLDER", help="keep the run folders of the replays here")
    add("--json", type=Path, metavar="FILE", help="write what was found there, too")
    add("overrides", nargs="*", metavar="name=value", help="of configs/trace.yaml: indexes=[FOLDER], privacy.redact=[], ...")
    return parser.parse_intermixed_args(argv)


def _check(args: argparse.Namespace) -> None:
    problems = [f"--shards {word} is not NAME=FOLDER; e.g. --shards web=shards/web" for word in args.shards if "=" not in word]
    least = {"--ranks": (args.ranks, 1), "--max-steps": (args.max_steps, 1), "--placebos": (args.placebos, 0)}
    problems += [f"{flag}={n} must be at least {low}" for flag, (n, low) in least.items() if n is not None and n < low]
    if args.span is not None and args.text is not None:
        problems.append("--span goes with --document; with --text the span is what the document has of it")
    if args.keep is not None and args.keep.exists() and (not args.keep.is_dir() or any(args.keep.iterdir())):
        problems.append(f"--keep={args.keep} is there already and is not an empty folder; give another")
    if problems:
        raise ConfigError(problems)
    check_target(args.json)


def _choose(training: Training, indexes: Indexes, args: argparse.Namespace) -> tuple[list[Document], tuple[int, int] | None]:
    """The documents to leave out, the one in question first, and the part of it that a text has (None: an id was given)."""
    part = None
    if args.document is not None:
        asked = find_document(training, args.document, indexes.blocked)
    else:
        document, *part_of = find_text(training, indexes, args.text)
        part = part_of[0], part_of[1]
        same_id = find_document(training, document.id, indexes.blocked)
        asked = [document, *(other for other in same_id if other != document)]
    if args.copies:
        ids = {copy.id for document in asked for copy in find_copies(training, indexes, document)} - {asked[0].id}
        asked += [document for name in sorted(ids) for document in find_document(training, name, frozenset())]
    return asked, part


def _part(training: Training, document: Document, interval: Interval, words: str | None) -> tuple[int, int]:
    if words is not None:
        return locate(document, words, tokenizer_of(training))
    return sighted_part(document, interval, training.run.data.document_masking)


# ---- what is shown -------------------------------------------------------------------------------------------------------


class Shown:
    """A counterfactual in words, and as JSON."""

    def __init__(
        self, training: Training, indexes: Indexes, left_out: list[Document], interval: Interval, span: Span, n_placebos: int
    ) -> None:
        self.training, self.left_out, self.interval, self.span, self.n_placebos = training, left_out, interval, span, n_placebos
        self.n_holders = count_holders(training, indexes, span, left_out)
        self.missing = indexes.missing
        tokenizer = tokenizer_of(training)
        texts = _texts(span.query.ids, tokenizer)
        context = "".join(_texts(span.query.context_ids, tokenizer))
        (self.context, *self.tokens), _ = indexes.privacy.redact_parts([context, *texts])

    def plan(self, manner: Manner) -> Iterator[str]:
        """What will be trained, and what it costs."""
        interval, document = self.interval, self.span.document
        first, last = document.span
        ids = list(dict.fromkeys(found.id for found in self.left_out))
        yield f"document {one_line(document.id)} of source {document.source}: {last - first:,} tokens"
        if len(self.left_out) > 1:
            others = [one_line(name) for name in ids if name != document.id]
            named = f"; other ids: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''}" if others else ""
            yield f"left out with it: {len(self.left_out) - 1} more documents{named}"
        rows = [f"step {seen.step} row {seen.row}" for _, seen in interval.sights]
        where = f"{', '.join(rows[:6])}{', ...' if len(rows) > 6 else ''}"
        yield f"seen after step {interval.start} up to {interval.end} in {len(rows)} rows: {where}"
        names = ([CONTROL] if manner.has_control else []) + [WITHOUT] + [f"placebo {n + 1}" for n in range(len(manner.placebos))]
        tokens = len(names) * interval.n_steps * self.training.run.data.global_batch_size
        yield f"to train: {interval.n_steps} steps {len(names)} times ({', '.join(names)}), {tokens:,} tokens in all"

    def cautions(self, found: Counterfactual) -> Iterator[str]:
        """What the numbers cannot say."""
        if self.n_holders:
            yield (
                f"{self.n_holders} other documents of the run hold the span and were not left out: they teach it, too "
                "(--copies leaves out those of equal tokens)"
            )
        if self.n_holders is None:
            folder = self.missing[0]
            yield f"nobody looked for other documents with the span: there is no index (olmo trace index shards={folder.parent})"
        if self.interval.n_before:
            yield f"{self.interval.n_before} rows had seen it up to step {self.interval.start}: what they taught is in both"
        if found.control is None:
            yield "no control was trained: the effect includes what this machine rounds otherwise than the published one"
        elif not found.control.is_equal:
            yield "the control is not the published checkpoint bit for bit, but both trainings are of this machine"
        if found.unlearned:
            yield f"seen but not learned from: {'; '.join(found.unlearned[:5])}"
        if found.judged:
            yield f"the guard judged steps otherwise: {'; '.join(found.judged[:5])}"
        if len(found.placebos) < self.n_placebos:
            yield f"there are only {len(found.placebos)} other documents in these steps that do not hold the span"
        if not found.placebos:
            yield "any change of a batch moves all weights a little: --placebos N says how much of the effect that could be"

    def lines(self, found: Counterfactual) -> Iterator[str]:
        """For people."""
        yield ""
        yield f"steps {self.interval.start + 1} to {self.interval.end} trained again without {one_line(self.span.document.id)}"
        yield f"  span, {len(self.tokens)} tokens: {_short(''.join(self.tokens), 200)}"
        yield f"  after ({self.span.context}): {_short(self.context, 100, is_end_kept=True)}"
        yield ""
        heldout = list(found.readings[0].heldout)
        rows = [["", "log p", "per token", *(f"held out, {name}" for name in heldout)]]
        for r in found.readings:
            losses = [f"{r.heldout[name]:.4f}" for name in heldout]
            rows.append([f"{r.name}, step {r.step}", f"{r.log_prob:.3f}", f"{r.log_prob / len(self.tokens):.3f}", *losses])
        yield from columns(rows, indent="  ")
        yield ""
        yield f"  effect of the document: {found.effect:+.4f} nats on the span, {found.effect / len(self.tokens):+.4f} per token"
        yield f"    ({found.baseline} less without; the span is {_times(found.effect)} as probable with it)"
        if found.placebos:
            effects = [placebo.effect for placebo in found.placebos]
            listed = ", ".join(f"{effect:+.4f}" for effect in effects)
            yield f"  of other documents of the same steps, left out instead: {listed} nats"
        yield from self._weights(found)
        yield from self._tokens(found)
        yield from (f"  note: {caution}" for caution in found.cautions)

    def _weights(self, found: Counterfactual) -> Iterator[str]:
        if found.control is not None:
            how = "the published weights bit for bit" if found.control.is_equal else (
                f"NOT the published weights: difference {found.control.of_update:.3g} of the update"
            )  # fmt: skip
            yield f"  control: {how}"
            if not found.control.is_equal:
                yield from (f"    not as then: {difference}" for difference in found.machines)
        r = found.removal
        moved = "equal bit for bit" if r.is_equal else (
            f"{r.of_update:.3g} of the update away (RMS {r.rms:.3g}, largest {r.max_abs:.3g} in {r.where})"
        )  # fmt: skip
        yield f"  weights without the document: {moved}"

    def _tokens(self, found: Counterfactual) -> Iterator[str]:
        before = found.reading("before").log_probs_T
        there, gone = found.reading(found.baseline).log_probs_T, found.reading(WITHOUT).log_probs_T
        rows = [["token", "before", found.baseline, WITHOUT, "effect"]]
        for n, token in enumerate(self.tokens[:SHOWN]):
            values = [before[n], there[n], gone[n]]
            rows.append([visible_token(token), *(f"{x:.3f}" for x in values), f"{found.effects_T[n]:+.4f}"])
        yield ""
        yield from columns(rows, indent="  ")
        if len(self.tokens) > SHOWN:
            yield f"  and {len(self.tokens) - SHOWN} more tokens (--json has all)"
        yield ""

    def to_json(self, found: Counterfactual) -> dict[str, Any]:
        """For programs."""
        sights = [{"document": document.id, **asdict(seen)} for document, seen in self.interval.sights]
        return {
            "where": self.training.where,
            "document": self.span.document.id,
            "source": self.span.document.source,
            "left_out": list(dict.fromkeys(document.id for document in self.left_out)),
            "start_step": self.interval.start,
            "end_step": self.interval.end,
            "sights": sights,
            "rows_before": self.interval.n_before,
            "other_documents_with_span": self.n_holders,
            "span": {"start": self.span.start, "end": self.span.end, "tokens": self.tokens},
            "context": {"kind": self.span.context, "text": self.context},
            "effect": found.effect,
            "effects_T": found.effects_T,
            **asdict(found),
        }


def _texts(ids: Any, tokenizer: Tokenizer | None) -> list[str]:
    return [f"<{n}>" if tokenizer is None else tokenizer.decode([n]) for n in ids]


def _short(text: str, most: int, is_end_kept: bool = False) -> str:
    """On one line, cut."""
    line = one_line(text)
    if len(line) <= most:
        return line
    return f"...{line[-most:]}" if is_end_kept else f"{line[:most]}..."


def _times(nats: float) -> str:
    return f"{math.exp(nats):.3g} times" if abs(nats) < 50 else f"e^{nats:.1f} times"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
