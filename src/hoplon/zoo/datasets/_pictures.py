"""Pictures kept as JPEG files one after another in one array."""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hoplon.errors import DataError, HoplonError


def pictures(arrays: Mapping[str, Any], *, file: str, labels: str) -> Tensor:
    """Decoded pictures, uint8 RGB of shape ``(n, 3, h, w)``.

    Args:
        arrays: ``jpeg``, the bytes of all files, ``offsets``, where each begins and the last one ends, and what
            belongs to each picture.
        file: that they were read from, for messages.
        labels: the array of what belongs to each picture, which says how many there are.
    Raises:
        DataError: another number of pictures, pictures of several sizes, or bytes that are no picture.
        HoplonError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise HoplonError(f"expected Pillow to decode {file}, got none; pip install 'hoplon[vision]'") from None
    stream, offsets, count = arrays["jpeg"].tobytes(), arrays["offsets"].tolist(), len(arrays[labels])
    if len(offsets) != count + 1 or count < 1:
        raise DataError(f"expected one offset more than {labels} in {file}, got {len(offsets)} and {count}")
    found: list[Any] = []
    try:
        for start, end in pairwise(offsets):
            with Image.open(io.BytesIO(stream[start:end])) as image:
                found.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
        return torch.from_numpy(np.stack(found))
    except (OSError, ValueError) as error:
        raise DataError(f"expected pictures of one size in {file}, got: {error}; copy the file again") from error
