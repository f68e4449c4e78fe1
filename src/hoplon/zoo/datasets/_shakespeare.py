"""A million characters of Shakespeare, read from the file in ``HOPLON_DATA``, as tokens of small language models."""

from __future__ import annotations

import torch
from torch import Tensor

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs
from hoplon.zoo.entries import ZooData
from hoplon.zoo.files import data_file

WINDOW = 128
_FILE = "tinyshakespeare.txt"
_CHARACTERS = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def encoded(text: str) -> Tensor:
    """Characters as tokens, int64, shape ``(len(text),)``: their places among the 65 that the file holds.

    Raises:
        DataError: another character.
    Example:
        >>> decoded(encoded("To be"))
        'To be'
    """
    places = {character: place for place, character in enumerate(_CHARACTERS)}
    if unknown := sorted(set(text) - places.keys()):
        raise DataError(f"expected characters out of {_CHARACTERS!r}, got {unknown[0]!r}")
    return torch.tensor([places[character] for character in text], dtype=torch.int64)


def decoded(tokens: Tensor) -> str:
    """Tokens, shape ``(n,)``, as characters; negative ones, after an end, are none."""
    return "".join(_CHARACTERS[token] for token in tokens.tolist() if token >= 0)


def shakespeare() -> ZooData:
    """Windows of 128 characters, the first nine tenths of the text to train with and the last tenth held out.

    Inputs are int64 of shape ``(n, 128)``, labels the characters that follow each.

    Raises:
        DataError: ``HOPLON_DATA`` or the file is missing or holds other characters.
    Source:
        A. Karpathy, "char-rnn", data/tinyshakespeare; the plays are in the public domain.
    """
    path = data_file(_FILE)
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeError) as error:
        raise DataError(f"expected ASCII text in {path}, got {error}") from error
    tokens = encoded(text)
    border = len(tokens) * 9 // 10
    parts = {"first nine tenths": tokens[:border], "last tenth": tokens[border:]}
    calibration, held_out = (_windows(part, f"tinyshakespeare, {name}") for name, part in parts.items())
    return ZooData(name="tinyshakespeare", calibration=calibration, held_out=held_out)


def _windows(tokens: Tensor, name: str) -> Inputs:
    count = (len(tokens) - 1) // WINDOW
    if count < 1:
        raise DataError(f"expected more than {10 * WINDOW} characters in {_FILE}, got a shorter text")
    x, y = (tokens[begin : begin + count * WINDOW].view(count, WINDOW) for begin in (0, 1))
    return Inputs(x, y, name=name)
