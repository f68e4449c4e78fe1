"""Inputs that leave nothing out, and slow answers to compare with."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def awkward(dtype: torch.dtype) -> Tensor:
    """Every 16-bit word, spread over the upper bits of the dtype, some low bits set: NaNs, zeros, subnormals."""
    words = torch.arange(2**16, dtype=torch.int64)
    shift = 8 * dtype.itemsize - 16
    words = (words << shift) | (words % 7 if shift else 0)
    bits = 8 * dtype.itemsize
    signed = words if bits == 64 else ((words + 2 ** (bits - 1)) % 2**bits) - 2 ** (bits - 1)
    return signed.to({16: torch.int16, 32: torch.int32, 64: torch.int64}[bits]).view(dtype)


def outwards(bound: tuple[float, float], dtype: torch.dtype) -> tuple[float, float]:
    """The ends as values of the dtype, moved to the next one outwards where rounding went inwards."""
    limit = torch.finfo(dtype).max
    low, high = (torch.tensor(end, dtype=torch.float64).clamp(-limit, limit).to(dtype) for end in bound)
    if low.double() > max(bound[0], -limit):
        low = torch.nextafter(low, torch.tensor(-math.inf, dtype=dtype))
    if high.double() < min(bound[1], limit):
        high = torch.nextafter(high, torch.tensor(math.inf, dtype=dtype))
    return low.item(), high.item()


def snapshot(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in memory.items()}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def changed(memory: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors whose bytes are others than before."""
    assert memory.keys() == before.keys()
    return [name for name, tensor in before.items() if not _bytes(memory[name]).equal(_bytes(tensor))]


def assert_same(memory: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """The same names and bytes."""
    assert not changed(memory, wanted)


class _Sites(TorchDispatchMode):
    """Calls ``change`` with the site and the output of every operator, and writes what it gives over the output."""

    def __init__(self, owners: list[str], change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__()
        self.owners, self.change, self.calls = owners, change, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            kind = func.__name__.split(".")[0].rstrip("_").replace("conv2d", "conv").replace("pool2d", "pool")
            site = f"{self.owners[-1]}:{kind}"
            number = self.calls[site]
            self.calls[site] += 1
            out.copy_(self.change(f"{site}.{number}" if number else site, out))
        return out


def naive_forward(model: nn.Module, x: Tensor, change: Callable[[str, Tensor], Tensor]) -> Tensor:
    """Outputs of the module called as it is, the output of every operator replaced by what ``change`` makes of it.

    Args:
        change: called with a site, as a person would name it, and the value there; shares nothing with the code.
    """
    owners: list[str] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, path=path: owners.append(path)))
        handles.append(module.register_forward_hook(lambda module, args, out: (owners.pop(), None)[1]))
    own = x.clone()
    try:
        with torch.inference_mode(), _Sites(owners, change):
            out: Tensor = model(own)
    finally:
        for handle in handles:
            handle.remove()
    return out


def with_flipped_bit(model: nn.Module, name: str, element: int, bit: int) -> nn.Module:
    """A copy of the model with one bit of a float32 parameter or buffer flipped."""
    broken = copy.deepcopy(model)
    tensor = dict([*broken.named_parameters(remove_duplicate=False), *broken.named_buffers(remove_duplicate=False)])[
        name
    ]
    index = torch.unravel_index(torch.tensor(element), tensor.shape)
    tensor.detach().view(torch.int32)[index] ^= (1 << bit) - (1 << 32 if bit == 31 else 0)
    return broken
