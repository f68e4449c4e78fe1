"""Components as one writes them on a command line: ``aspis:1%``, ``ranger(policy=zero, quantile=99.9%)+parity``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from hoplon.errors import HoplonError

_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


def split(text: str, separator: str) -> list[str]:
    """Split at a character where it stands outside of brackets and quotes.

    Raises:
        HoplonError: brackets or quotes that do not match.
    Example:
        >>> split("ranger(policy=random(seed=3), where=all)+parity", "+")
        ['ranger(policy=random(seed=3), where=all)', 'parity']
    """
    parts, start = [], 0
    for place, character in _outside(text):
        if character == separator:
            parts.append(text[start:place].strip())
            start = place + 1
    return [*parts, text[start:].strip()]


def call(text: str) -> tuple[str, str | None, dict[str, Any]]:
    """Return the name, what follows it after a colon, and the named fields in brackets.

    Raises:
        HoplonError: brackets or quotes that do not match, or a field without a name.
    Example:
        >>> call("aspis:1%"), call("bitflip(count=2, bits=[30, 31], field=exponent)")
        (('aspis', '1%', {}), ('bitflip', None, {'count': 2, 'bits': [30, 31], 'field': 'exponent'}))
    """
    match = re.fullmatch(r"([^(:]*)\((.*)\)", text, re.DOTALL)
    if match is None:
        split(text, ",")  # brackets that do not end
        name, colon, rest = text.partition(":")
        return name.strip(), rest if colon else None, {}
    fields = {}
    for part in split(match[2], ","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if part and not (equals and name):
            raise HoplonError(f"expected field=value inside the brackets of {text!r}, got {part!r}")
        if part:
            fields[name] = plain(value)
    return match[1].strip(), None, fields


def plain(text: str) -> Any:
    """Return a value as TOML has it, or else as the text that it is.

    Example:
        >>> plain("0.5"), plain("[1, 2]"), plain("zero"), plain("1%")
        (0.5, [1, 2], 'zero', '1%')
    """
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def positions(text: str) -> list[int]:
    """Return integers and ranges of them.

    Raises:
        ValueError: anything else.
    Example:
        >>> positions("0,23-25")
        [0, 23, 24, 25]
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise ValueError("expected positions such as 30 or 30,31 or 23-30")
        found.extend(range(int(match[1]), min(int(match[2] or match[1]), int(match[1]) + 4096) + 1))
    return found


def _outside(text: str) -> Iterator[tuple[int, str]]:
    """The characters outside of brackets and quotes, by place."""
    waiting: list[str] = []
    quote = ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPEN:
            waiting.append(_CLOSE[_OPEN.index(character)])
        elif character in _CLOSE:
            if not waiting or waiting.pop() != character:
                raise HoplonError(f"expected brackets that match, got {text!r}")
        elif not waiting:
            yield place, character
    if waiting or quote:
        raise HoplonError(f"expected brackets and quotes that end, got {text!r}")
