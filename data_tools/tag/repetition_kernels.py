"""Stretches of tokens that repeat a short n-gram, compiled by numba."""

import numpy as np

from data_tools.compiled import njit


@njit(cache=True, nogil=True)
def find_runs(tokens, position, history, runs, least, best, out):
    """Go on through a text whose token number `position` is tokens[0]; returns how many stretches were written to `out`.

    `history`: the last tokens before, by number modulo its length, which is the longest period. `runs`: int64, by period: tokens
    up to here, each equal to the one a period before. A stretch of m such tokens is m + period tokens, (m + period) // period
    repeats; `out` (int64, (rows, 4)): start, end, period, repeats, of those with at least `least`. `best[0]`: most so far.
    """
    longest, rows = len(history), 0
    for i in range(len(tokens)):
        token, number = np.int64(tokens[i]), position + i
        for period in range(1, longest + 1):
            if number >= period and history[(number - period) % longest] == token:
                runs[period] += 1
            elif runs[period]:
                rows = _close(number, period, runs, least, best, out, rows)
        history[number % longest] = token
    return rows


@njit(cache=True, nogil=True)
def close_runs(number, runs, least, best, out):
    """The stretches that the end of the text, after `number` tokens, ends."""
    rows = 0
    for period in range(1, len(runs)):
        if runs[period]:
            rows = _close(number, period, runs, least, best, out, rows)
    return rows


@njit(cache=True, nogil=True)
def _close(number, period, runs, least, best, out, rows):
    repeats = (runs[period] + period) // period
    best[0] = max(best[0], repeats)
    if repeats >= least:
        out[rows, 0], out[rows, 1], out[rows, 2], out[rows, 3] = number - runs[period] - period, number, period, repeats
        rows += 1
    runs[period] = 0
    return rows
