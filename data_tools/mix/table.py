"""Documents, bytes and tokens of every source after each step: counted per part, added up, printed."""

from typing import Any

from data_tools.mix.judge import Verdict
from data_tools.mix.plan import SourcePlan
from data_tools.work.counts import Counts, add_counts
from data_tools.work.part import Record


class Tally:
    """Of one part."""

    def __init__(self, plan: SourcePlan) -> None:
        self._plan = plan
        self._read = [0, 0, 0]
        self._dropped = [[0, 0, 0] for _ in plan.rules]
        self._changed = 0
        self._cuts: dict[str, int] = {}
        self._redacted, self._short, self._sampled, self._written = [0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]

    def drop(self, verdict: Verdict) -> None:
        """A document that a rule or its length keeps back."""
        _add(self._read, verdict.read)
        if verdict.rule >= 0:
            _add(self._dropped[verdict.rule], verdict.read)
            return
        self._note_cuts(verdict)
        _add(self._redacted, verdict.left)
        _add(self._short, verdict.left)

    def take(self, verdict: Verdict, copies: int) -> None:
        """One that passed the filters, and is written so often."""
        _add(self._read, verdict.read)
        self._note_cuts(verdict)
        _add(self._redacted, verdict.left)
        if copies:
            _add(self._sampled, verdict.left)
            _add(self._written, verdict.left, copies)

    def _note_cuts(self, verdict: Verdict) -> None:
        if verdict.cuts:
            self._changed += 1
            for cut in verdict.cuts:
                self._cuts[cut.rule] = self._cuts.get(cut.rule, 0) + 1

    def add_to(self, counts: Counts) -> None:
        """Put everything under the names that stages share, and the steps under `steps`."""
        written = _named(self._written)
        add_counts(counts, {
            "documents_in": self._read[0], "documents_out": self._written[0],
            "text_bytes_in": self._read[1], "text_bytes_out": self._written[1], "tokens_out": self._written[2],
            "by_source": {self._plan.name: written}, "steps": {self._plan.name: self._steps()},
            "redacted": {self._plan.name: {"documents": self._changed, "spans": self._cuts}},
        })  # fmt: skip

    def _steps(self) -> dict[str, dict[str, int]]:
        """What is left after each, in order."""
        left = list(self._read)
        steps = {"read": _named(left)}
        for rule, gone in zip(self._plan.rules, self._dropped, strict=True):
            left = [a - b for a, b in zip(left, gone, strict=True)]
            steps[rule.name] = _named(left)
        if self._plan.redactions:
            steps["redacted"] = _named(self._redacted)
        if self._plan.min_text_length:
            steps["min_text_length"] = _named([a - b for a, b in zip(self._redacted, self._short, strict=True)])
        return steps | {"sampled": _named(self._sampled), "written": _named(self._written)}


def _add(counts: list[int], size: tuple[int, int], times: int = 1) -> None:
    counts[0] += times
    counts[1] += size[0] * times
    counts[2] += size[1] * times


def _named(counts: list[int]) -> dict[str, int]:
    return {"documents": counts[0], "text_bytes": counts[1], "tokens": counts[2]}


def totals_of(records: list[Record], plans: dict[str, SourcePlan]) -> Counts:
    """Of all parts, sources in the order of the config."""
    totals: Counts = {}
    for record in records:
        add_counts(totals, record.counts)
    totals["repeat"] = {name: plan.threshold.repeat for name, plan in plans.items()}
    return totals


HEADS = ("source", "step", "documents", "MB of text", "tokens", "left")


def table_of(totals: dict[str, Any]) -> str:
    """Every source, and every step of it, as lines of text; steps that changed nothing are left out, and told."""
    rows: list[tuple[str, ...]] = [HEADS]
    for source, steps in totals["steps"].items():
        first, before = steps["read"], None
        for step, size in steps.items():
            if size != before or step in ("read", "written"):
                rows.append(_row(source if step == "read" else "", step, size, first["documents"]))
            before = size
    written = {name: totals[f"{name}_out"] for name in ("documents", "text_bytes", "tokens")}
    rows.append(_row("all", "written", written, totals["documents_in"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    )


def _row(source: str, step: str, size: dict[str, int], of: int) -> tuple[str, ...]:
    tokens = f"{size['tokens']:,}" if size["tokens"] else "-"
    share = f"{100 * size['documents'] / of:.1f} %" if of else "-"
    return source, step, f"{size['documents']:,}", f"{size['text_bytes'] / 1e6:,.1f}", tokens, share
