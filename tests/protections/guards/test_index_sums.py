from __future__ import annotations

import pytest
import torch

from hoplon.protections.guards.index_sums import power_sums


@pytest.mark.parametrize("count", [0, 1, 7, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_sums_of_few_and_of_many_entries_are_exact(count: int, dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(count)
    entries = torch.randint(limits.min, limits.max + 1, (count,), generator=generator).to(dtype)
    values = entries.tolist()
    wanted = [sum(place**power * value for place, value in enumerate(values, 1)) for power in range(3)]
    assert [total % 2**64 for total in power_sums(entries).tolist()] == [total % 2**64 for total in wanted]
