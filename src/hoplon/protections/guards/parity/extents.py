"""Memory as consecutive bytes: which bytes a set of tensors occupies, each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hoplon.errors import HoplonError
from hoplon.formats.base import integer_view
from hoplon.protections.guards.memory.arena import arena_around
from hoplon.protections.guards.memory.words import is_dense, without_repeats
from hoplon.protections.guards.memory.writing import write_differing
from hoplon.protections.guards.voting import distinct


@dataclass(frozen=True, eq=False)
class Run:
    """Consecutive bytes of one storage, or all elements of a tensor that has gaps.

    Attributes:
        name: of the storage.
        tensor: live; uint8 of shape ``(bytes,)``, or, with gaps, of any shape, strides and dtype.
        itemsize: bytes per element of the storage.
        start: where the first byte is, counted from the storage's first.
    """

    name: str
    tensor: Tensor
    itemsize: int
    start: int = 0
    gaps: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of memory, gaps left out."""
        return self.tensor.nbytes

    def read(self) -> Tensor:
        """The bytes: uint8, shape ``(bytes,)``; live memory itself unless there are gaps."""
        return self.tensor.contiguous().reshape(-1).view(torch.uint8) if self.gaps else self.tensor

    def write(self, start: int, data: Tensor) -> None:
        """Put bytes (uint8) in place where they differ, the first one at ``start``.

        Raises:
            ReadOnlyMemory: they cannot be written.
        """
        if not self.gaps:
            write_differing(self.tensor[start : start + len(data)], data)
            return
        whole = self.read()
        whole[start : start + len(data)] = data
        write_differing(self.tensor, whole.view(self.tensor.dtype).reshape(self.tensor.shape))

    def part(self, start: int, stop: int) -> Run:
        """Some of the bytes of a run without gaps."""
        return Run(self.name, self.tensor[start:stop], self.itemsize, self.start + start)


def runs_of(memory: Mapping[str, Tensor]) -> list[Run]:
    """List the memory of tensors, a byte that several of them share once, under the name of the first.

    In the order of the tensors, wherever they lie: what a guard lays out by it fits the same tensors elsewhere.

    Raises:
        HoplonError: a tensor that is not plain memory: sparse, quantised, or without data.
    """
    dense: list[tuple[int, Run]] = []
    found: list[Run] = []
    for name, tensor in memory.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            got = "a quantised" if tensor.is_quantized else "a meta" if tensor.is_meta else f"a {tensor.layout}"
            raise HoplonError(f"expected plain memory as {name}, got {got} tensor; guard the others alone")
    for name, tensor in distinct(memory).items():
        single = without_repeats(tensor)
        if is_dense(single):
            flat = single.as_strided((single.numel(),), (1,)).view(torch.uint8)
            dense.append((flat.data_ptr(), Run(name, flat, tensor.itemsize)))
        else:
            real = torch.view_as_real(single) if single.is_complex() else single
            found.append(Run(name, integer_view(real), tensor.itemsize, gaps=True))
    covered: dict[torch.device, int] = {}
    for address, run in sorted(dense, key=lambda pair: (pair[0], -pair[1].nbytes)):
        device = run.tensor.device
        skip = max(0, covered.get(device, 0) - address)
        if skip < run.nbytes:
            found.append(run.part(skip, run.nbytes) if skip else run)
            covered[device] = address + run.nbytes
    order = {name: number for number, name in enumerate(memory)}
    return sorted(found, key=lambda run: (order[run.name], run.start))


def spans_of(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one arena, each of which begins where the one before ends, together; the others alone.

    Spans are in the order of their first runs.
    """
    arenas = {id(run): arena for run in runs if not run.gaps and (arena := arena_around(run.tensor)) is not None}
    inside = [(arenas[id(run)].data_ptr(), run.tensor.data_ptr(), run) for run in runs if id(run) in arenas]
    begins = {(arena, address): run for arena, address, run in inside}  # one arena may begin where another one ends
    follower = {id(run): begins.get((arena, address + run.nbytes)) for arena, address, run in inside}
    later = {id(run) for run in follower.values()}
    spans = []
    for run in runs:
        if id(run) not in later:
            span, following = [run], follower.get(id(run))
            while following is not None:
                span.append(following)
                following = follower[id(following)]
            spans.append(span)
    return spans


def cut(span: Sequence[Run], length: int) -> tuple[list[Run], list[Run]]:
    """The first bytes of a span, and the others."""
    before: list[Run] = []
    after: list[Run] = []
    for run in span:
        taken = min(length, run.nbytes)
        if 0 < taken < run.nbytes:
            before.append(run.part(0, taken))
            after.append(run.part(taken, run.nbytes))
        else:
            (before if taken else after).append(run)
        length -= taken
    return before, after


def bytes_of(span: Sequence[Run]) -> Tensor:
    """The memory of a span: uint8, live."""
    first = span[0].tensor
    arena = arena_around(first) if len(span) > 1 else None
    if arena is None:
        return first
    start = first.data_ptr() - arena.data_ptr()
    return arena[start : start + sum(run.nbytes for run in span)]
