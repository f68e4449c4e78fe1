"""Majority votes over three copies of memory, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hoplon.errors import checked
from hoplon.formats.base import integer_view
from hoplon.protections.guards.memory.writing import write_differing


@checked
def distinct(memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor per storage, under the first of its names; empty tensors left out.

    What is written to them does not move the version counters of the memory: a repair is no update.
    """
    return {name: memory[name].data for name, *_ in tied(memory)}


def tied(memory: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each storage, most have one; empty tensors left out."""
    names: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in memory.items():
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            names.setdefault(place, []).append(name)
    return list(names.values())


def copy_of(tensor: Tensor) -> Tensor:
    """A copy that may be written to in and outside of inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        return tensor.detach().clone()


def agree(live: Tensor, first: Tensor, second: Tensor) -> bool:
    """Return True if three tensors hold the same bits; reads each once and allocates nothing."""
    words = integer_view(live)
    return torch.equal(words, integer_view(first)) and torch.equal(words, integer_view(second))


def unlike_both(live: Tensor, first: Tensor, second: Tensor) -> int:
    """Count the elements of a tensor that are neither what one copy of it holds nor what the other does."""
    words = integer_view(live)
    return int(((words != integer_view(first)) & (words != integer_view(second))).sum())


def vote_(live: Tensor, first: Tensor, second: Tensor) -> tuple[int, int]:
    """Give every element of three equally shaped tensors the value that two of them hold, the second and third first.

    Elements with three different values stay as they are. Words are compared, and copied, as integers: NaN payloads and
    the sign of zero count.

    Returns:
        How many elements were not all equal, and how many of these have no majority.
    Raises:
        ReadOnlyMemory: the first one differs, and cannot be written to.
    """
    a, b, c = integer_view(live), integer_view(first), integer_view(second)
    detected = (a != b) | (a != c)
    uncorrectable = detected & (a != b) & (a != c) & (b != c)
    majority = torch.where(b == c, b, a)  # without b == c, the majority includes a, if there is one
    for words in (b, c, a):
        write_differing(words, torch.where(uncorrectable, words, majority))
    return int(detected.sum()), int(uncorrectable.sum())
