"""OLMoE's instance filter: leave out of the loss what repeats one short n-gram many times in a row.

Source: OLMoE paper section 2 (documents) and OLMo-core `InstanceFilterConfig` (instances: period 1 to 13, 32 repeats).
"""

import numpy as np


def repeats(ids_BT: np.ndarray, min_period: int, max_period: int, max_count: int) -> np.ndarray:
    """Bool (B,): whether some n-gram of min_period..max_period tokens stands at least `max_count` times in a row.

    A stretch of m positions each equal to the one p before it is m + p tokens of period p, that is (m + p) // p repeats.
    """
    found = np.zeros(len(ids_BT), bool)
    n = ids_BT.shape[1]
    for period in range(min_period, max_period + 1):
        needed = period * (max_count - 1)
        if needed > n - period:
            break
        equal = ids_BT[:, period:] == ids_BT[:, :-period]
        candidates = np.flatnonzero(~found & (equal.sum(axis=1) >= needed))
        if len(candidates):
            found[candidates] = _longest_run(equal[candidates]) >= needed
    return found


def _longest_run(flags: np.ndarray) -> np.ndarray:
    """Length of the longest run of True in each row."""
    columns = np.arange(1, flags.shape[1] + 1)
    last_false = np.maximum.accumulate(np.where(flags, 0, columns), axis=1)
    return (columns - last_false).max(axis=1)
