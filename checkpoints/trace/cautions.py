"""What the numbers of a belief cannot say, in sentences for its reader."""

from checkpoints.trace.results import Belief, Estimate
from data_tools.trace.answer import Mark

FEW_CONTROLS = 20
"""Fewer cannot give a p-value below 0.05."""
UNTAUGHT = (Mark.MASKED, Mark.SKIPPED, Mark.LEFT_OUT)
"""Marks of sights that taught nothing."""
LR_FACTOR = 2.0
"""Learning rates that differ by more are called different."""

PARALLEL = (
    "The estimates assume that without its sights the span would have changed as the controls did. Training that drifts towards "
    "its topic or style moves it too, and is counted as memory."
)
VERBATIM = "Only verbatim occurrences are known as sights: near-duplicates and paraphrases in the training data are not."
CHOSEN = (
    "A span that was chosen because a checkpoint generated it was chosen for being probable there, which raises the effect up "
    "to that checkpoint."
)


def find_cautions(belief: Belief, part_counts: tuple[int, int]) -> list[str]:
    """The particular ones first. `part_counts`: how often the first and the last half of the span stand in training documents."""
    found = [*_of_sights(belief), *_of_parts(belief, max(part_counts)), *_of_controls(belief), *_of_estimates(belief)]
    return found + ([PARALLEL, VERBATIM, CHOSEN] if belief.matching is not None else [])


def _of_sights(belief: Belief) -> list[str]:
    found = []
    marks = [sight.mark for sight in belief.all_sights]
    if Mark.LEARNED not in marks:
        found.append("No step so far learned from the span: there is no effect to estimate, the curve shows training as a whole.")
    untaught = sum(mark in UNTAUGHT for mark in marks)
    if untaught:
        found.append(f"{untaught} of {len(marks)} sights were masked, skipped or left out: they taught nothing and do not count.")
    if belief.count > 1:
        some = f" (the steps of {belief.n_looked_at:,} were looked up)" if belief.n_looked_at < belief.count else ""
        found.append(f"The span stands {belief.count:,} times in training documents{some}: the effect is of all together.")
    kind = belief.span.context_kind
    if kind != "row" and belief.all_sights:
        found.append(
            f"The context is the {kind}'s; the steps that saw the span predicted it from another one, that of their row."
        )
    return found


def _of_parts(belief: Belief, most: int) -> list[str]:
    extra = most - belief.count
    if extra <= 0:
        return []
    return [f"Half of the span stands {extra:,} times more in training documents than all of it, and was learned there too."]


def _of_controls(belief: Belief) -> list[str]:
    matching, found = belief.matching, []
    if matching is None:
        return ["Without controls nothing tells what the span's own sights taught from what training taught."]
    n = matching.found
    if n == 1:
        found.append(f"Only one of {matching.wanted} controls was found: there is no estimate, for one control has no spread.")
    elif n < FEW_CONTROLS:
        found.append(
            f"Only {n} of {matching.wanted} controls were found: the interval rests on the spread of {n} changes, and the "
            f"p-value cannot be below {1 / (n + 1):.2g}."
        )
    if n > 1 and 2 * matching.n_documents < n:
        found.append(
            f"The {n} controls are from {matching.n_documents} held-out documents; those of one document change alike, so that "
            "the interval may be too narrow."
        )
    if not matching.same_source and belief.span.place is not None:
        found.append("Not all controls are from the span's own source, and sources are not learned at the same pace.")
    return found


def _of_estimates(belief: Belief) -> list[str]:
    found, estimates = [], belief.estimates
    learned = [sight.step for sight in belief.all_sights if sight.mark == Mark.LEARNED]
    if learned and len(belief.controls) > 1 and belief.total is None:
        found.append(
            f"The first sight is at step {min(learned)}, and no checkpoint before it, or none after it, is measured: there is "
            "no total."
        )
    placebo = belief.placebo
    if placebo is not None and not placebo.low <= 0 <= placebo.high:
        found.append(
            f"From step {placebo.step_before} to {placebo.step_after}, before any sight, the span changed by "
            f"{placebo.effect:+.2f} nats more than the controls, beyond their spread: they are not alike, and the "
            "estimates are to be doubted."
        )
    several = sum(len(e.steps) > 1 for e in estimates)
    if several:
        found.append(
            f"In {several} of {len(estimates)} intervals several steps saw the span: an estimate is of its steps together."
        )
    wide = [e for e in estimates if e.step_after - e.step_before > len(e.steps)]
    if wide:
        most = max(wide, key=lambda e: e.step_after - e.step_before)
        found.append(
            f"Checkpoints are up to {most.step_after - most.step_before} steps apart: what was learned and forgotten again "
            "between two of them is not seen."
        )
    if len(estimates) > 1:
        found.append(f"There are {len(estimates)} intervals: read their p-values after Holm, or take the total.")
    return found + _of_learning_rates(belief, estimates)


def _of_learning_rates(belief: Belief, estimates: list[Estimate]) -> list[str]:
    by_step = {point.step: point.lr for point in belief.span.points}
    rates = [rate for e in estimates if (rate := by_step.get(e.step_after))]
    if not rates or max(rates) <= LR_FACTOR * min(rates):
        return []
    goes = f"The learning rate at the ends of these intervals is between {min(rates):.2g} and {max(rates):.2g}"
    return [f"{goes}: equal sights do not teach equally, and a smaller effect may be a smaller rate."]
