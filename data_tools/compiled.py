"""numba's decorator for kernels, without what other packages hang into numba.

At its first compilation numba imports every package that registers an extension; gigatoken brings one (awkward), which costs each
process 45 MB and 0.6 s and is of no use to our kernels, which take plain arrays.
"""

from numba import njit
from numba.core import entrypoints

entrypoints._already_initialized = True

__all__ = ["njit"]
