"""Number formats: how a value is held in bits, and what a fault in those bits makes of it.

A word travels as int64 holding its unsigned value; a 64-bit word as its two's complement.
"""

from __future__ import annotations

from hoplon.formats.base import Field, NumberFormat, equal_bits, integer_view, same_bits
from hoplon.formats.fixed import FixedPoint
from hoplon.formats.named import format_named, one_per_word
from hoplon.formats.native import Native, native
from hoplon.formats.quantized import Quantized

__all__ = [
    "Field",
    "FixedPoint",
    "Native",
    "NumberFormat",
    "Quantized",
    "equal_bits",
    "format_named",
    "integer_view",
    "native",
    "one_per_word",
    "same_bits",
]
