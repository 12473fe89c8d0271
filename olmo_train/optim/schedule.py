"""Learning-rate schedules: pure functions from tokens seen to a multiplier of the peak rate."""

import math

from olmo_train.config.optim import ScheduleConfig, ScheduleKind


def multiplier(schedule: ScheduleConfig, tokens: int, max_tokens: int) -> float:
    """Fraction of the peak rate for the step that brings the run to `tokens` seen, its own batch included.

    Source: OLMo `olmo/optim.py` (CosWithWarmup, _linear_warmup), whose clock includes the current batch too; WSD: arXiv
    2404.06395.
    """
    warmup, start = schedule.warmup_tokens, schedule.warmup_start_frac
    if tokens < warmup:
        return start + (1 - start) * tokens / warmup
    final = schedule.final_frac
    match schedule.kind:
        case ScheduleKind.CONSTANT:
            return 1.0
        case ScheduleKind.COSINE:
            done = _progress(tokens, warmup, schedule.decay_tokens or max_tokens)
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        case ScheduleKind.LINEAR:
            return 1 - (1 - final) * _progress(tokens, warmup, schedule.decay_tokens or max_tokens)
        case ScheduleKind.WSD:
            decay = schedule.decay_tokens or 0
            return 1 - (1 - final) * _progress(tokens, max_tokens - decay, max_tokens) if decay else 1.0


def _progress(tokens: int, start: int, end: int) -> float:
    """0 at `start`, 1 from `end` on."""
    return min(max(tokens - start, 0) / max(end - start, 1), 1.0)
