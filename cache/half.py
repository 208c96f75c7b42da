"""Half precision widened to single at the speed of memory.

NumPy converts one number at a time. A half's bits, shifted to where a single keeps its sign, exponent and fraction, are
the same number but for the bias of the exponent, which one multiplication puts right, exactly, subnormals included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SHIFT = 23 - 10  # fraction bits of a single and of a half
_SIGN_AND_SHIFTED = np.int32(~0x70000000)  # all but the copies of the sign that sign extension makes
_BIAS = np.float32(2.0 ** (127 - 15))  # biases of a single's and of a half's exponent


def widen(half: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Write ``half`` to ``out``, of the same shape. Numbers must be finite, as stored states are.

    It is fastest when both fit into the processor's cache.
    """
    bits = out.view(np.int32)
    np.copyto(bits, half.view(np.int16))
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _SIGN_AND_SHIFTED, out=bits)
    np.multiply(out, _BIAS, out=out)


def copy_as_single(stored: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Write numbers of any stored type to ``out``, of the same shape."""
    if stored.dtype == np.float16:
        widen(stored, out)
    else:
        np.copyto(out, stored)
