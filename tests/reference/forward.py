"""A slow injector: the whole forward of the user's model for every fault, eagerly, sharing no code with hoplon."""

from __future__ import annotations

import copy
import struct
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ALIASES = {
    "conv2d": "conv",
    "relu_": "relu",
    "add_": "add",
    "mul_": "mul",
    "leaky_relu_": "leaky_relu",
    "max_pool2d": "max_pool",
    "avg_pool2d": "avg_pool",
    "adaptive_avg_pool2d": "adaptive_avg_pool",
}


def flip_text(value: float, positions: list[int]) -> float:
    """A float32 with bits inverted through a string of 0s and 1s."""
    text = list(f"{struct.unpack('>I', struct.pack('>f', value))[0]:032b}")
    for position in positions:
        text[31 - position] = "1" if text[31 - position] == "0" else "0"
    return float(struct.unpack(">f", struct.pack(">I", int("".join(text), 2)))[0])


class _Strike(TorchDispatchMode):
    """Overwrites elements of one sample in the output of one operator call."""

    def __init__(self, owners: list[str], owner: str, kind: str, call: int, row: int, changes: list[Any]) -> None:
        super().__init__()
        self.owners, self.owner, self.kind, self.left = owners, owner, kind, call
        self.row, self.changes, self.landed = row, changes, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if _ALIASES.get(name, name) == self.kind and (self.owners or [""])[-1] == self.owner:
            if self.left == 0:
                sample = out[self.row]
                for element, positions in self.changes:
                    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), sample.shape))
                    sample[where] = _as_tensor(flip_text(float(sample[where]), positions))
                    self.landed += 1
            self.left -= 1
        return out


def _as_tensor(value: float) -> Tensor:
    return torch.frombuffer(bytearray(struct.pack("<f", value)), dtype=torch.float32)[0]


def faulty_outputs(model: nn.Module, x: Tensor, site: str, row: int, changes: list[tuple[int, list[int]]]) -> Tensor:
    """Outputs of a batch when ``changes`` (element, bit positions) strike sample ``row`` at ``site``."""
    owner, _, rest = site.partition(":")
    kind, _, call = rest.partition(".")
    owners: list[str] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda module, args, path=path: owners.append(path)))
        handles.append(module.register_forward_hook(lambda module, args, out: (owners.pop(), None)[1]))
    mode = _Strike(owners, owner, kind, int(call or 0), row, changes)
    try:
        with torch.inference_mode(), mode:
            out = model(x.clone())
    finally:
        for handle in handles:
            handle.remove()
    assert mode.landed == len(changes), f"{site} was not reached"
    return out


def faulty_memory_outputs(model: nn.Module, x: Tensor, name: str, element: int, positions: list[int]) -> Tensor:
    """Outputs of a batch of a copy of the model with one word of a parameter or buffer flipped."""
    broken = copy.deepcopy(model)
    tensor = dict(broken.named_parameters(remove_duplicate=False)) | dict(broken.named_buffers(remove_duplicate=False))
    flat = tensor[name].detach().view(-1)
    flat[element] = _as_tensor(flip_text(float(flat[element]), positions))
    with torch.inference_mode():
        return broken(x.clone())
