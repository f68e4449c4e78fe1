"""An erasure code over GF(2^16): sums of rows by a Cauchy matrix, and the rows that are missing from them.

Source:
    Bloemer et al., An XOR-Based Erasure-Resilient Coding Scheme, ICSI TR-95-048, 1995: the Cauchy matrix. Here products
    are looked up as sums of logarithms.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint16]

ORDER = (1 << 16) - 1
"""Elements but zero: as many rows and sums as one code can have."""

_POLYNOMIAL = 0x1100B  # primitive


def factors(kernels: int, redundant: int) -> Symbols:
    """A Cauchy matrix, shape ``(kernels, redundant)``, whose first column is ones: each square part has an inverse."""
    logs, powers = _tables()
    rows, columns = redundant + np.arange(kernels)[:, None], np.arange(redundant)
    return np.asarray(powers[(logs[rows] - logs[rows ^ columns]) % ORDER])


def combined(symbols: Symbols, by: Symbols) -> Symbols:
    """Add up rows times factors over GF(2^16): ``(rows, symbols)`` by ``(rows, sums)`` to ``(sums, symbols)``."""
    logs, powers = _tables()
    of_symbols = logs[symbols]
    found = np.zeros((by.shape[1], symbols.shape[1]), np.uint16)
    for sums, column in zip(found, logs[by.T], strict=True):
        np.bitwise_xor.reduce(powers[of_symbols + column[:, None]], axis=0, out=sums)
    return found


def solved(matrix: Symbols, right: Symbols) -> Symbols:
    """Solve equations over GF(2^16): ``(n, n)`` and ``(n, symbols)`` to ``(n, symbols)``; no leading minor is zero."""
    logs, powers = _tables()
    both = np.concatenate([matrix, right], axis=1)
    for number in range(len(both)):
        both[number] = powers[logs[both[number]] + (ORDER - logs[both[number, number]])]
        by = logs[both[:, number]]
        by[number] = 2 * ORDER  # the logarithm of zero: the row itself stays
        both ^= powers[by[:, None] + logs[both[number]]]
    return np.ascontiguousarray(both[:, len(both) :])


@functools.cache
def _tables() -> tuple[NDArray[np.int64], Symbols]:
    """Logarithms, and powers of the generator up to twice the order; above it all are zero, as products with zero."""
    logs, powers = np.full(1 << 16, 2 * ORDER, np.int64), np.zeros(4 * ORDER + 1, np.uint16)
    value = 1
    for exponent in range(ORDER):
        powers[exponent], logs[value] = value, exponent
        value = value << 1 ^ (_POLYNOMIAL if value >> 15 else 0)
    powers[ORDER : 2 * ORDER] = powers[:ORDER]
    return logs, powers
