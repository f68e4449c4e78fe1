"""Words as strings of 0 and 1, most significant first; flipping a bit flips a character."""

from __future__ import annotations

import struct

import torch

_STRUCT = {torch.float64: (">d", 64), torch.float32: (">f", 32), torch.float16: (">e", 16)}


def text_of(value: float, dtype: torch.dtype) -> str:
    """The bits of a number that `dtype` holds exactly."""
    if dtype == torch.bfloat16:
        return text_of(value, torch.float32)[:16]
    code, width = _STRUCT[dtype]
    return "".join(f"{byte:08b}" for byte in struct.pack(code, value)).zfill(width)


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
