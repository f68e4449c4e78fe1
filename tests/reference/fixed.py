"""Fixed-point faults one value at a time: exact fractions, and the decimal strings of Ranger's published injector."""

from __future__ import annotations

import math
from fractions import Fraction


def fixed_word(value: float, integer: int, fraction: int) -> int:
    """min(floor(|value| 2^fraction), 2^(integer + fraction) - 1); NaN has 0."""
    largest = 2 ** (integer + fraction) - 1
    if math.isnan(value):
        return 0
    return largest if math.isinf(value) else min(math.floor(abs(Fraction(value)) * 2**fraction), largest)


def fixed_struck(value: float, integer: int, fraction: int, keep: int, flip: int) -> Fraction:
    """|struck value|, exactly; the word changes."""
    before = fixed_word(value, integer, fraction)
    after = (before & keep) ^ flip
    step = Fraction(1, 2**fraction)
    saturated = math.isinf(value) or (not math.isnan(value) and abs(Fraction(value)) >= 2**integer)
    residue = Fraction(0) if saturated or math.isnan(value) else abs(Fraction(value)) - before * step
    return after * step + residue


def nearest(exact: Fraction, precision: int, lowest: int) -> Fraction:
    """The nearest number of `precision` bits, halves to even; its unit is 2**lowest or more."""
    if exact == 0:
        return exact
    exponent = math.floor(math.log2(exact)) - precision + 1
    while exact / Fraction(2) ** exponent >= 2**precision:
        exponent += 1
    while exact / Fraction(2) ** exponent < 2 ** (precision - 1):
        exponent -= 1
    unit = Fraction(2) ** max(exponent, lowest)
    return round(exact / unit) * unit  # Fraction rounds halves to even


def read_digits(value: float, integer: int, fraction: int) -> str:
    """What a reader of the decimal string takes for the bits: whole part, then the doubled decimals."""
    whole, decimals = repr(abs(value)).split(".")
    text = f"{int(whole):b}".zfill(integer)
    for _ in range(fraction):
        digit, decimals = f"{2 * float('0.' + decimals):.10f}".split(".")
        text += digit
    return text


def read_and_flipped(value: float, integer: int, fraction: int, position: int) -> float:
    """The value after the injector flips the bit at `position`, 0 = the last digit read."""
    text = read_digits(value, integer, fraction)
    size = abs(value) if integer == 21 else min(abs(value), 2**integer - 2.0**-fraction)
    change = 2.0 ** (position - fraction)
    size += -change if text[len(text) - 1 - position] == "1" else change
    return -size if repr(value).startswith("-") else size
