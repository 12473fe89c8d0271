"""numba's decorator for kernels, without what is of no use to kernels that take plain arrays.

At its first compilation numba imports every package that registers an extension; gigatoken brings one (awkward), which costs each
process 45 MB and 0.6 s. It also asks SciPy for BLAS, if SciPy is installed: 15 MB and 0.2 s, for products of matrices.
"""

import sys

from numba import njit
from numba.core import entrypoints

entrypoints._already_initialized = True
if "scipy.linalg" not in sys.modules and "numba.np.arraymath" not in sys.modules:
    sys.modules["scipy.linalg"] = None  # type: ignore[assignment] # "is not installed"
    try:
        import numba.np.arraymath  # noqa: F401 - it is here that numba looks for it, once
    finally:
        del sys.modules["scipy.linalg"]

__all__ = ["njit"]
