"""Windows cut out of golden maps: the same pixels whether maps are held as they are, turned, or on one sheet."""

from __future__ import annotations

import numpy as np
import torch

from hoplon.injection.replay.windows import Pixels, StackedPixels, on_one_sheet


def test_maps_of_several_batches_give_the_same_windows_from_one_sheet() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = {number: torch.randn(3, 5, 6, 7, generator=generator) for number in (1, 2, 4)}
    padded = {number: torch.nn.functional.pad(value, (2, 2, 2, 2), value=-1.0) for number, value in maps.items()}
    stack = StackedPixels(3, {number: Pixels.of(value) for number, value in maps.items()})
    draw = np.random.default_rng(0)
    sheets = 0
    for _ in range(30):
        count = int(draw.integers(1, 12))
        rows = draw.choice([3, 4, 5, 6, 7, 8, 12, 13, 14], count)
        top, left = draw.integers(-2, 5, count), draw.integers(-2, 6, count)
        found = stack.cut(rows, top, left, 4, 3, fill=-1.0)
        for window, row, y, x in zip(found, rows, top, left, strict=True):
            whole = padded[int(row) // 3][int(row) % 3, :, y + 2 : y + 6, x + 2 : x + 5]
            assert torch.equal(window[: whole.shape[1], : whole.shape[2]], whole.permute(1, 2, 0))
        sheets += on_one_sheet(list(stack.parts.values())) is not None
        assert all(torch.equal(stack.parts[number].value(), value) for number, value in maps.items())
    assert 0 < sheets < 30
    single = stack.parts[2].cut(np.array([0]), np.array([-1]), np.array([-1]), 2, 2)  # outside: zeros, of its own map
    assert torch.equal(single[0, 1, 1], maps[2][0, :, 0, 0])
    assert not single[0, 0].any()
