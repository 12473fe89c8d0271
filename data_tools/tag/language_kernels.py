"""Compiled loop of the language tagger."""

import numpy as np

from data_tools.compiled import njit


@njit(cache=True)
def count_features(next_state, row_of, feature_of, data, counts, seen):
    """Walk the automaton over bytes and count the features it passes, in `counts` (features,) int32, which is zero before.

    `seen` (features,) int32 takes their numbers in order of first appearance; returns how many.
    """
    state = 0
    n = 0
    for i in range(len(data)):
        state = next_state[(np.int64(row_of[state]) << 8) + data[i]]
        feature = feature_of[state]
        if feature >= 0:
            if counts[feature] == 0:
                seen[n] = feature
                n += 1
            counts[feature] += 1
    return n
