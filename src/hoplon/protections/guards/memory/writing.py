"""Writing to live memory: the words that differ, and nothing where the system lets nobody write."""

from __future__ import annotations

import ctypes
import errno
import os

from torch import Tensor

from hoplon.protections.memory_guard import ReadOnlyMemory


def write_differing(words: Tensor, right: Tensor) -> None:
    """Make integers what others of their shape are, and write to those alone that differ.

    Raises:
        ReadOnlyMemory: there are such, in memory that cannot be written to; nothing was written.
    """
    places = (words != right).nonzero(as_tuple=True)
    write_at(words, places, right[places])


def write_at(words: Tensor, places: tuple[Tensor, ...], right: Tensor) -> None:
    """Write integers to these places, one index per axis.

    Raises:
        ReadOnlyMemory: as above.
    """
    if right.numel():
        if words.device.type == "cpu":
            for number in (0, -1):
                axes = zip(places, words.stride(), strict=True)
                offset = sum(int(place[number]) * stride for place, stride in axes)
                if not _is_writable(words.data_ptr() + offset * words.itemsize):
                    raise ReadOnlyMemory
        words[places] = right.to(words.device)


def _is_writable(address: int) -> bool:
    """Tell whether a byte of memory can be written to: the system writes it there as it is, or says that it cannot.

    A write of this process's own would end it. Where the system cannot be asked, the answer is yes.
    """
    if not hasattr(os, "readv"):
        return True
    byte = (ctypes.c_char * 1).from_address(address)
    try:
        reader, writer = os.pipe()
    except OSError:
        return True
    try:
        os.write(writer, byte)
        os.readv(reader, [byte])
    except OSError as error:
        return error.errno != errno.EFAULT
    finally:
        os.close(reader)
        os.close(writer)
    return True
