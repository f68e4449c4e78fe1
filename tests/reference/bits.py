"""Words as strings of 0 and 1, most significant first; flipping a bit flips a character."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import torch

_STRUCT = {torch.float64: (">d", 64), torch.float32: (">f", 32), torch.float16: (">e", 16)}
# Exponent bits, mantissa bits, bias (OFP8 1.0); in E4M3 only the pattern of all ones is NaN.
_FLOAT8 = {torch.float8_e4m3fn: (4, 3, 7), torch.float8_e5m2: (5, 2, 15)}
_INTEGERS = {torch.int64: 64, torch.int32: 32, torch.int16: 16, torch.int8: 8, torch.uint8: 8, torch.bool: 1}


def text_of(value: float, dtype: torch.dtype) -> str:
    """The bits of a number that `dtype` holds exactly."""
    if dtype in _INTEGERS:
        width = _INTEGERS[dtype]
        return f"{int(value) % 2**width:0{width}b}"
    if dtype in _FLOAT8:
        return _float8_text(value, *_FLOAT8[dtype])
    if dtype == torch.bfloat16:
        return text_of(value, torch.float32)[:16]
    code, width = _STRUCT[dtype]
    return "".join(f"{byte:08b}" for byte in struct.pack(code, value)).zfill(width)


def _float8_text(value: float, exponent_bits: int, mantissa_bits: int, bias: int) -> str:
    sign = "1" if math.copysign(1, value) < 0 else "0"
    if math.isnan(value):
        return sign + "1" * 7
    if math.isinf(value):
        return sign + "1" * exponent_bits + "0" * mantissa_bits
    for pattern in range(2**7):
        if float8_value(pattern, exponent_bits, mantissa_bits, bias) == abs(Fraction(value)):
            return sign + f"{pattern:07b}"
    raise AssertionError(value)


def float8_value(pattern: int, exponent_bits: int, mantissa_bits: int, bias: int) -> Fraction:
    """The number that seven bits stand for, were there no special values."""
    exponent, mantissa = divmod(pattern, 2**mantissa_bits)
    digits = mantissa + (2**mantissa_bits if exponent else 0)
    return digits * Fraction(2) ** (max(exponent, 1) - bias - mantissa_bits)


def struck(text: str, keep: str, flip: str) -> str:
    """Character by character: cleared where `keep` is 0, then inverted where `flip` is 1."""
    cleared = (bit if kept == "1" else "0" for bit, kept in zip(text, keep, strict=True))
    return "".join(
        ("1" if bit == "0" else "0") if inverted == "1" else bit for bit, inverted in zip(cleared, flip, strict=True)
    )


def flipped(text: str, position: int) -> str:
    """The string with one character inverted; position 0 is the last one, the least significant bit."""
    index = len(text) - 1 - position
    return text[:index] + ("1" if text[index] == "0" else "0") + text[index + 1 :]
