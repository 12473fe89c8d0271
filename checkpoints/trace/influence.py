"""Influence: the traced shortlist of a span, ranked by gradient similarity at the checkpoints before training saw each document.

    sum over visits i of  w_i <g_span(theta_i), P_i g_document(theta_i)>,    w_i = learning rate * clipping / tokens of the batch

The gradients are of summed log-losses, so the sum is in nats of the span: by how much the visits are estimated to have raised its
log-probability. Source: TracInCP of arXiv 2002.08484 with P = 1; there with checkpoints at intervals, here with the newest one
before each visit. With `precondition=adam`, P is AdamW's, as in LESS (arXiv 2402.04333), but of the second moments as saved and
without momentum, so that the sum stays linear in both gradients. Cosines are taken in the same metric, <a, P b> over the roots of
<a, P a> and <b, P b>: the unit normalisation of TrackStar (arXiv 2410.17413), whose P is another one.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev

from checkpoints.opening import open_checkpoint
from checkpoints.trace.gradients import choose_parameters, why_no_scale
from checkpoints.trace.influence_examples import Example, heldout_examples, span_example
from checkpoints.trace.influence_measure import Job
from checkpoints.trace.influence_results import (
    LIMITS,
    DocumentInfluence,
    Influence,
    InfluenceOptions,
    Measured,
    NullNoise,
    Strongest,
)
from checkpoints.trace.influence_visits import ONE, Candidate, Plan, Shortlist, StepSizes, find_places, plan_visits
from checkpoints.trace.queries import query_text
from data_tools.trace.answer import Answer, FoundSpan
from data_tools.trace.opening import Trace
from data_tools.trace.text_tokens import encode
from data_tools.trace.when import History
from olmo_train.config.train import Device
from olmo_train.errors import ConfigError
from olmo_train.parallel.mesh import choose_device

N_STRONGEST = 3


def influence_of(trace: Trace, answer: Answer, span: int, options: InfluenceOptions) -> Influence:
    """Rank the documents of span number `span` of an answer of this trace.

    Holds one model, and of its chosen parameters the gradient of the span and of one example, and AdamW's scale.

    Raises:
        ConfigError: options that cannot be, or that the checkpoints do not allow. CheckpointError: a checkpoint is damaged.
    """
    found = _check(answer, span, options)
    if trace.history is None:
        raise ConfigError(f"{trace.where} has no weights; influence needs the folder of a run, of a release or of several")
    places = find_places(trace.where, trace.history.run.run_name, options)
    newest = open_checkpoint(places[max(places)])
    names = choose_parameters(newest.model, options.parameters, options.layers)
    options, notes = _resolve(options, why_no_scale(newest, names))
    tokenizer = trace.searcher.tokenizer
    ids = encode(tokenizer, answer.text).ids
    query = span_example(query_text(ids, found.start, found.end, tokenizer.eos_id, newest.seq_len), newest.seq_len)
    plan = plan_visits(answer, found, Shortlist(trace.searcher, trace.history), ONE in places, options)
    _check_size(plan, options)
    job = Job(query, plan, _null(trace.history, plan, ids[found.start : found.end], options), names, StepSizes(trace.history))
    device = choose_device(Device(options.device))
    for key in plan.checkpoints:
        checkpoint = open_checkpoint(places[key], with_optimizer=options.precondition == "adam")
        job.measure(key, checkpoint, device, options.precondition == "adam")
    return _collect(trace.where, found, job, options, notes)


def _check(answer: Answer, span: int, options: InfluenceOptions) -> FoundSpan:
    """The span, after everything that can be checked without a checkpoint.

    Raises:
        ConfigError: lists every problem.
    """
    spans = {each.number: each for each in answer.spans}
    problems = []
    if span not in spans:
        have = f"its spans are {', '.join(map(str, spans))}" if spans else "no span of it stands in training documents"
        problems.append(f"--span={span} is not a span of the text; {have}")
    problems += option_problems(options)
    if problems:
        raise ConfigError(problems)
    return spans[span]


def option_problems(options: InfluenceOptions) -> list[str]:
    """What cannot be, whatever the text and the checkpoints are."""
    problems = []
    for flag, value, known in (
        ("--precondition", options.precondition, ("auto", "adam", "none")),
        ("--rank", options.rank, ("influence", "cosine")),
        ("--device", options.device, tuple(device.value for device in Device)),
    ):
        if value not in known:
            problems.append(f"{flag}={value} is not one of {', '.join(known)}")
    for flag, number, least in (
        ("--null", options.null, 0),
        ("--seed", options.seed, 0),
        ("--documents", options.max_documents, 1),
        ("--checkpoints", options.max_checkpoints, 1),
    ):
        if number < least:
            problems.append(f"{flag}={number} must be at least {least}")
    return problems


def _resolve(options: InfluenceOptions, why_not: str | None) -> tuple[InfluenceOptions, list[str]]:
    """The options with `precondition=auto` decided, and what to say of it."""
    if options.precondition != "auto":
        return options, []
    if why_not is None:
        return replace(options, precondition="adam"), []
    note = f"Plain gradients are compared, which AdamW does not follow: {why_not}. Read the order, not the size of influences."
    return replace(options, precondition="none"), [note]


def _check_size(plan: Plan, options: InfluenceOptions) -> None:
    steps = plan.checkpoints
    if len(steps) > options.max_checkpoints:
        few = ",".join(map(str, steps[:: -(-len(steps) // 4)]))
        raise ConfigError(
            f"--checkpoints={options.max_checkpoints}: the documents were seen after {len(steps)} checkpoints, and each "
            f"is loaded; name some (--steps {few}), compare fewer documents (--documents), or allow more "
            f"(--checkpoints {len(steps)})"
        )


def _null(history: History, plan: Plan, span_ids: Sequence[int], options: InfluenceOptions) -> list[Example]:
    """Held-out text in the rows of the documents."""
    examples = [visit.example for candidate in plan.candidates for visit in candidate.visits[:1]]
    if not examples or not options.null:
        return []
    files = [file for source in history.order.sources for file in source.files]
    return heldout_examples(examples, files, span_ids, (options.null, options.seed))


# ---- what is told --------------------------------------------------------------------------------------------------------


def _collect(where: str, span: FoundSpan, job: Job, options: InfluenceOptions, notes: list[str]) -> Influence:
    by_cosine = options.rank == "cosine"
    found = [_document(job, number, candidate) for number, candidate in enumerate(job.plan.candidates)]
    found.sort(key=lambda d: (not d.measured, -((d.cosine or 0.0) if by_cosine else d.influence), d.bm25_rank))
    return Influence(
        where=where,
        span=span.text,
        n_span_tokens=span.end - span.start,
        unit="nats" if job.knows_step_sizes else "nats per unit of step size",
        options=options,
        n_parameters=job.n_parameters,
        checkpoints=list(job.steps.values()),
        documents=found,
        null=[_noise(job.steps[key], values) for key, values in job.noise.items() if values],
        cautions=[*notes, *job.plan.cautions, *_cautions(job, options), *LIMITS],
    )


def _document(job: Job, number: int, candidate: Candidate) -> DocumentInfluence:
    measured = [job.measured[number, v] for v in range(len(candidate.visits))]
    cosines = [each.cosine for each in measured if each.cosine is not None]
    near = fmean(cosines) if cosines else None
    percentile, z = _against_noise(job, candidate, near)
    document = candidate.document
    return DocumentInfluence(
        number=document.number,
        id=document.id,
        source=document.source,
        n_tokens=document.n_tokens,
        bm25_rank=candidate.bm25_rank,
        influence=sum(each.weight * each.dot for each in measured),
        cosine=near,
        percentile=percentile,
        z=z,
        steps=candidate.learned_at,
        strongest=_strongest(measured),
        measured=measured,
    )


def _against_noise(job: Job, candidate: Candidate, near: float | None) -> tuple[float | None, float | None]:
    """(percentile, z) of a document's cosine among the held-out windows, each one's meaned over the same checkpoints."""
    by_visit = [[near for _, near in job.noise[visit.checkpoint]] for visit in candidate.visits]
    windows = [[value for value in column if value is not None] for column in zip(*by_visit, strict=True)]
    null = [fmean(values) for values in windows if values]
    if near is None or not null:
        return None, None
    below = sum(value < near for value in null) + 0.5 * sum(value == near for value in null)
    spread = pstdev(null)
    return 100 * below / len(null), (near - fmean(null)) / spread if spread > 0 else None


def _strongest(measured: list[Measured]) -> list[Strongest]:
    """The largest parts of the influence, experts told apart."""
    parts: dict[str, float] = {}
    for each in measured:
        for group in each.groups:
            if not group.kind.startswith("experts."):
                name = group.kind if group.layer is None else f"layer {group.layer} {group.kind}"
                parts[name] = parts.get(name, 0.0) + group.influence
        for layer in each.experts:
            for expert, influence in enumerate(layer.influence_E):
                name = f"layer {layer.layer} expert {expert}"
                parts[name] = parts.get(name, 0.0) + influence
    best = sorted(parts, key=lambda name: -abs(parts[name]))[:N_STRONGEST]
    return [Strongest(name, parts[name]) for name in best if parts[name] != 0]


def _noise(step: int | None, values: list[tuple[float, float | None]]) -> NullNoise:
    dots = [dot for dot, _ in values]
    cosines = [near for _, near in values if near is not None]
    mean, spread = (fmean(cosines), pstdev(cosines)) if cosines else (None, None)
    return NullNoise(step, len(values), fmean(dots), pstdev(dots), mean, spread)


def _cautions(job: Job, options: InfluenceOptions) -> list[str]:
    """Of this answer."""
    out = []
    if job.distance:
        out.append(f"Checkpoints stand up to {job.distance} steps before the visits they stand for; the weights had moved on.")
    if not job.knows_step_sizes:
        out.append("The learning rate is not known here: influence is the bare inner product, and compares documents only.")
    if job.n_unscaled:
        share = job.n_unscaled / job.n_parameters
        out.append(f"Up to {share:.1%} of the weights had no gradient before their checkpoint, so no scale; they are left out.")
    if options.steps is not None:
        out.append("Measured at the checkpoints that were named, as if the next step saw each document, whether or not it did.")
    return out
