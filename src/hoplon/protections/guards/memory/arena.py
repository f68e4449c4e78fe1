"""Tensors end to end in one piece of memory, which is read faster than many pieces."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

_MOST_ALIGNED = 64  # bytes: what torch itself aligns memory to
_HUGE = 1 << 21  # bytes of a huge page

_arenas: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by address; tensors in them keep them alive


def end_to_end(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies with the same bits, dtypes and strides, those on the CPU end to end in one piece of memory.

    Sizes that are a multiple of 64 bytes come first, then those of 32, and so on: so each copy is aligned to its
    elements, and to 64 bytes where that leaves no gaps. To torch each is a storage of its own, so that it is saved,
    exported and copied like any other; :func:`arena_around` finds the whole. What is on another device, or not plain
    memory (sparse, quantised, empty, of a subclass), is copied by itself.

    Returns:
        The copies, in the order of the tensors; none requires gradients.
    """
    with torch.inference_mode(False), torch.no_grad():  # a tensor made in inference mode could not require gradients
        copies = [tensor.detach() if _is_plain(tensor) else tensor.detach().clone() for tensor in tensors]
        inside = [number for number, tensor in enumerate(tensors) if _is_plain(tensor)]
        if inside:
            pages = _pages(sum(tensors[number].nbytes for number in inside))
            start = 0
            for number in sorted(inside, key=lambda number: -_alignment(tensors[number].nbytes)):
                tensor = tensors[number]
                row = torch.frombuffer(pages, dtype=tensor.dtype, count=tensor.numel(), offset=start)
                strides = torch.empty_like(tensor, device="meta").stride()
                copies[number] = row.as_strided(tensor.shape, strides).copy_(tensor).data
                start += tensor.nbytes
    return copies


def lay_end_to_end(module: nn.Module) -> None:
    """Move what a module's parameters and buffers hold to one piece of memory, in the order of their names.

    They stay the same tensors. Those that share a storage with another one stay where they are, and so do those made in
    inference mode, those that processes share, and what :func:`end_to_end` copies alone.
    """
    by_storage: dict[int, dict[int, Tensor]] = {}
    named = [*module.named_parameters(), *module.named_buffers()]
    for _, tensor in sorted(named, key=lambda pair: pair[0]):
        if _is_plain(tensor) and not tensor.is_inference() and not tensor.is_shared():
            by_storage.setdefault(tensor.untyped_storage()._cdata, {})[id(tensor)] = tensor
    alone = [tensor for sharing in by_storage.values() if len(sharing) == 1 for tensor in sharing.values()]
    for tensor, copy in zip(alone, end_to_end(alone), strict=True):
        tensor.data = copy


def is_end_to_end(module: nn.Module) -> bool:
    """Return True if anything that a module holds lies in an arena."""
    return any(arena_around(tensor) is not None for tensor in [*module.parameters(), *module.buffers()])


def arena_around(tensor: Tensor) -> Tensor | None:
    """All of the memory among which :func:`end_to_end` put a tensor: uint8, live; None where it did not."""
    if tensor.device.type == "cpu" and tensor.layout == torch.strided:
        for address, pages in list(_arenas.items()):
            if address <= tensor.data_ptr() < address + len(pages):
                return torch.frombuffer(pages, dtype=torch.uint8)
    return None


def _is_plain(tensor: Tensor) -> bool:
    special = tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.layout != torch.strided
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and not special and tensor.numel() > 0


def _alignment(nbytes: int) -> int:
    """The largest power of two that divides a size, 64 at most."""
    return min(nbytes & -nbytes, _MOST_ALIGNED)


def _pages(nbytes: int) -> mmap.mmap:
    """Memory for so many bytes; in huge pages where there are such: it is read faster."""
    if sys.platform == "win32":
        pages = mmap.mmap(-1, nbytes)
    else:  # by default, processes that this one forks would write to it as well
        whole = nbytes if nbytes < _HUGE else -(-nbytes // _HUGE) * _HUGE
        pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if nbytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a system that was built without
            pages.madvise(mmap.MADV_HUGEPAGE)
    _arenas[torch.frombuffer(pages, dtype=torch.uint8).data_ptr()] = pages
    return pages
