"""The interface of number formats, and bits compared as bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from hoplon.errors import HoplonError, checked

Field = Literal["sign", "exponent", "mantissa"]
Word = TypeVar("Word", int, Tensor)

_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@checked
def integer_view(values: Tensor) -> Tensor:
    """View the bits of `values` as integers of their width: uint8, int16, int32, int64; shares memory, any strides.

    Raises:
        HoplonError: elements of more than 8 bytes.
    """
    integer = _INTEGER_OF_SIZE.get(values.dtype.itemsize)
    if integer is None:
        raise HoplonError(f"expected elements of at most 8 bytes, got {values.dtype}")
    if values.is_quantized:
        words = torch.empty(0, dtype=integer, device=values.device)
        return words.set_(values.untyped_storage(), values.storage_offset(), values.shape, values.stride())
    return values.detach().view(integer)


def signed(word: Word, bits: int) -> Word:
    """Read unsigned words of so many bits as two's complement: ``signed(255, 8) == -1``."""
    sign = 1 << (bits - 1)
    return (word ^ sign) - sign


@checked
def same_bits(left: Tensor, right: Tensor) -> Tensor:
    """Compare two tensors bit by bit: True where an element has the same bits; bool, broadcast shape.

    Unlike ``==``, a NaN equals itself and +0.0 differs from -0.0.

    Raises:
        HoplonError: two different dtypes.
    Example:
        >>> same_bits(torch.tensor([float("nan"), 0.0]), torch.tensor([float("nan"), -0.0]))
        tensor([ True, False])
    """
    if left.dtype != right.dtype:
        raise HoplonError(f"expected two tensors of one dtype, got {left.dtype} and {right.dtype}")
    return integer_view(left) == integer_view(right)


@checked
def equal_bits(left: Tensor, right: Tensor) -> bool:
    """Return True if two tensors have one shape and dtype and hold the same bits everywhere.

    Example:
        >>> equal_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
        True
    """
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(integer_view(left), integer_view(right))


@dataclass(frozen=True)
class NumberFormat(ABC):
    """A representation of values in words of bits.

    Every fault within one word is a pair (keep, flip): ``after = (before & keep) ^ flip``. A bit flip keeps
    all and flips its mask; stuck at 1 is ``(~mask, mask)``; stuck at 0 is ``(~mask, 0)``; zero is ``(0, 0)``.
    A fault that leaves the word as it was leaves the value as it was, bit for bit.
    A new format is one subclass and one entry in `hoplon.formats.named`.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The name under which `format_named` finds the format again."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """Width of the word, 1 to 64."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> NumberFormat | None:
        """Return the format of this class with this name, or None when the name is not one of them."""

    @abstractmethod
    def words(self, values: Tensor) -> Tensor:
        """Return the word that holds each value: int64, shape and device of `values`."""

    @abstractmethod
    def apply(self, values: Tensor, keep: Tensor | int, flip: Tensor | int) -> Tensor:
        """Change the words of values to ``(word & keep) ^ flip``: a new tensor, dtype and device of `values`.

        Args:
            values: any shape; not modified.
            keep: words, int64, broadcast against `values`.
            flip: words, likewise.
        Returns:
            The broadcast shape; may hold NaN or infinity. Outside autograd.
        Raises:
            HoplonError: a dtype this format does not hold, or a word wider than the format.
        """

    def encode(self, numbers: Tensor) -> Tensor:
        """Return the word of each number, as near as the format can hold it: int64, shape of `numbers`.

        Args:
            numbers: float64, any shape.
        """
        return self.words(numbers)

    def field(self, name: Field) -> tuple[int, ...]:
        """Return the positions of a field of the word, 0 = least significant.

        Raises:
            HoplonError: a format whose words have no such fields.
        """
        raise HoplonError(f"expected a floating-point format, which has a field {name!r}, got {self.name}; use bits")

    def at(self, elements: Tensor, shape: Sequence[int]) -> NumberFormat:
        """Return the format of the values at these elements, where it differs between them.

        Args:
            elements: int64, shape ``(n,)``, row-major indices into `shape`.
            shape: of the tensor, or of one sample.
        Returns:
            A format for values of shape ``(n,)``.
        """
        return self

    def only(self, which: Tensor) -> NumberFormat:
        """Return the format of some values: `which` are indices, or bool of their shape."""
        return self

    @property
    def varies(self) -> bool:
        """True if `at` gives another format for other elements."""
        return False

    @property
    def bytes(self) -> int:
        """Whole bytes that hold a word."""
        return -(-self.bits // 8)

    @property
    def all_ones(self) -> int:
        """The `keep` that keeps every bit, as int64 (-1 for 64-bit words)."""
        return -1 if self.bits == 64 else (1 << self.bits) - 1

    def __str__(self) -> str:
        return self.name

    def _mask(self, word: Tensor | int, device: torch.device) -> Tensor:
        """A `keep` or `flip` as int64 on `device`, checked to fit the word."""
        mask = torch.as_tensor(word)
        if mask.is_floating_point() or mask.dtype == torch.bool:
            raise HoplonError(f"expected words as int64, got {mask.dtype}")
        mask = mask.to(torch.int64)
        if self.bits < 64:
            outside = (mask < 0) | (mask > self.all_ones)
            if outside.any():
                first = int(mask[outside].flatten()[0])
                raise HoplonError(f"expected words in [0, 2**{self.bits}) for {self.name}, got {first}")
        return mask.to(device)
