"""Inputs: the samples a campaign runs on, in memory and checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from hoplon.errors import Count, DataError, Seed, checked
from hoplon.formats.digest import add_words

# One sample, as a map-style data set gives it: x, or x with its label.
Sample = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@final
@checked
@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples and their labels, also a map-style data set.

    Args:
        x: what the model is called with, samples along the first axis: a tensor, a tuple of tensors, one per argument,
            or a dict of them, one per keyword.
        y: labels, integers of shape ``(samples,)``, or ``(samples, length)`` for token ids, kept as int64; None without
            labels.
        name: for reports.
    Raises:
        DataError: no samples, unequal lengths, NaN or infinity in x, labels that are not integers.
    Example:
        >>> data = Inputs(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        >>> len(data), len(data.take([0, 2])), [len(batch) for batch in data.batches(2)]
        (3, 2, [2, 1])
    """

    x: Tensor | tuple[Tensor, ...] | dict[str, Tensor]
    y: Tensor | None = None
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        given: Any = self.x
        x: Sample = tuple(given) if isinstance(given, list) else given
        _check_x(_parts(x))
        object.__setattr__(self, "x", _like(x, [tensor.detach() for tensor in _parts(x)]))
        if self.y is not None:
            object.__setattr__(self, "y", _checked_y(self.y, len(_parts(x)[0])))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors, always as a tuple; without keywords, ``model(*inputs.tensors)`` is the call."""
        return _parts(self.x)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The keywords of the tensors, in their order; None for positional ones."""
        return tuple(self.x) if isinstance(self.x, dict) else None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Sample | tuple[Sample, Tensor]:
        """Sample `index`: x, or (x, y) with labels."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a sample in [0, {len(self)}), got {index}")
        x = _like(self.x, [tensor[index] for tensor in self.tensors])
        return x if self.y is None else (x, self.y[index])

    def __repr__(self) -> str:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in self.tensors)
        return f"Inputs({self.name or 'unnamed'}: {shapes}, {'without' if self.y is None else 'with'} labels)"

    def take(self, indices: Sequence[int] | Tensor) -> Inputs:
        """The samples at `indices`, in this order; an index may come twice.

        Raises:
            DataError: an index outside the samples, or none.
        """
        index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        outside = (index < 0) | (index >= len(self))
        if outside.any():
            raise DataError(f"expected samples in [0, {len(self)}), got {int(index[outside][0])}")
        return self._part(index)

    def sample(self, count: Count | None, *, seed: Seed) -> Inputs:
        """So many samples in their old order, drawn by the seed; all of them for None or where there are not more.

        Raises:
            DataError: a count below 1.
        """
        if count is None or count >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[:count].sort().values)

    def batches(self, size: Count) -> Iterator[Inputs]:
        """The samples in order, `size` at a time; the last batch may be shorter. Views, not copies.

        Raises:
            DataError: a size below 1.
        """
        return (self._part(slice(start, start + size)) for start in range(0, len(self), size))

    def digest(self) -> str:
        """SHA-256 of dtypes, shapes and bits of x and y, 64 hexadecimal digits; the name does not count."""
        digest = hashlib.sha256()
        for tensor in (*self.tensors, self.y):
            if tensor is None:
                digest.update(b"no labels")
                continue
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            add_words(digest, tensor)
        return digest.hexdigest()

    @classmethod
    def from_dataset(cls, dataset: Dataset[Any], *, name: str = "") -> Self:
        """Every sample of a map-style data set, stacked.

        Args:
            dataset: gives ``x`` or ``(x, y)``: x a tensor or an array, within a pair also a tuple of them;
                y an integer, or token ids as a tensor or an array.
            name: for reports.
        Raises:
            DataError: no length, no samples, or samples that differ in form or shape.
        """
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise DataError(f"expected a map-style data set with a length, got {type(dataset).__name__}")
        samples = [dataset[index] for index in range(len(dataset))]
        if not samples:
            raise DataError(f"expected at least one sample, got 0 from {type(dataset).__name__}")
        labelled = isinstance(samples[0], tuple | list)
        xs, ys = [], []
        for index, sample in enumerate(samples):
            if isinstance(sample, tuple | list) != labelled or (labelled and len(sample) != 2):
                form = "(x, y)" if labelled else "x"
                raise DataError(f"expected every sample of the form {form}, got another in sample {index}")
            x, y = sample if labelled else (sample, None)
            xs.append(tuple(_as_tensor(part, index) for part in (x if isinstance(x, tuple | list) else (x,))))
            ys.append(y)
        columns = _stacked(xs)
        several = isinstance(samples[0][0] if labelled else None, tuple | list)
        return cls(columns if several else columns[0], _labels(ys) if labelled else None, name=name)

    def _part(self, index: slice | Tensor) -> Inputs:
        y = None if self.y is None else self.y[index]
        return Inputs(_like(self.x, [tensor[index] for tensor in self.tensors]), y, name=self.name)


def _parts(x: Sample) -> tuple[Tensor, ...]:
    """The tensors of x, whatever holds them."""
    if isinstance(x, dict):
        return tuple(x.values())
    return x if isinstance(x, tuple) else (x,)


def _like(x: Sample, tensors: Sequence[Tensor]) -> Sample:
    """Other tensors, held as those of x are."""
    if isinstance(x, dict):
        return dict(zip(x, tensors, strict=True))
    return tuple(tensors) if isinstance(x, tuple) else tensors[0]


def as_inputs(data: Inputs | Dataset[Any] | Tensor | tuple[Any, ...]) -> Inputs:
    """`data` as `Inputs`: itself, a map-style data set, x alone, or a pair (x, y).

    A tuple is always the pair (x, y); for a model with several arguments write ``Inputs((first, second))``.

    Raises:
        DataError: anything else, or data that `Inputs` refuses.
    """
    if isinstance(data, Inputs):
        return data
    if isinstance(data, Tensor):
        return Inputs(data)
    if isinstance(data, tuple) and len(data) == 2:
        return Inputs(data[0], data[1])
    if hasattr(data, "__getitem__") and not isinstance(data, tuple | list | dict | str | np.ndarray):
        return Inputs.from_dataset(data)
    raise DataError(f"expected Inputs, a map-style data set, a tensor or a pair (x, y), got {type(data).__name__}")


Stream: TypeAlias = Inputs | Dataset[Any] | Tensor | tuple[Any, ...] | Iterable[Any]
"""What `stream` takes."""


def is_sized(data: Stream) -> bool:
    """Whether samples can be asked for by number: how many there are is known, and any can be read on its own."""
    numbered = hasattr(data, "__getitem__") and not isinstance(data, tuple | list | dict | IterableDataset)
    return isinstance(data, Inputs | Tensor) or numbered


def stream(data: Stream, *, batch: int, fixed: int | None = None) -> Iterator[Inputs]:
    """The data in batches, as few samples in memory at a time as its form allows.

    Args:
        data: samples; a map-style data set, read a batch at a time; or any iterable of batches, each ``x`` or
            ``(x, y)``, such as a data loader.
        batch: samples per batch; an iterable's own batches stay as they are.
        fixed: no batch has more samples than this, whatever the data.
    Raises:
        DataError: none of these, or samples that `Inputs` refuses.
    """
    size = fixed or batch
    if isinstance(data, Inputs | Tensor) or (isinstance(data, tuple) and len(data) == 2):
        yield from as_inputs(data).batches(size)
    elif is_sized(data):
        for start in range(0, len(data), size):  # type: ignore[arg-type]
            yield Inputs.from_dataset(Subset(data, range(start, min(start + size, len(data)))))  # type: ignore[arg-type]
    elif isinstance(data, Iterable):
        for part in data:
            inputs = as_inputs(tuple(part) if isinstance(part, list) else part)
            yield from inputs.batches(fixed or len(inputs))
    else:
        raise DataError(f"expected samples or an iterable of batches, got {type(data).__name__}")


def _check_x(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise DataError("expected x to be a tensor or a tuple of tensors, got an empty tuple")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise DataError(
                f"expected x to be a tensor or a tuple of tensors, got {type(tensor).__name__}; "
                "torch.as_tensor makes one from an array"
            )
        if tensor.ndim == 0:
            raise DataError("expected x with a batch axis first, got a single number")
        if len(tensor) == 0:
            raise DataError(f"expected at least one sample, got 0 (x of shape {tuple(tensor.shape)})")
        if len(tensor) != len(tensors[0]):
            raise DataError(f"expected {len(tensors[0])} samples in every tensor of x, got {len(tensor)}")
        if not tensor.isfinite().all():
            bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(1)
            raise DataError(
                f"expected finite x, got NaN or infinity in sample {int(bad.nonzero()[0])} "
                f"({int(bad.sum())} of {len(tensor)} samples); repair or leave out these samples"
            )


def _checked_y(y: Tensor, count: int) -> Tensor:
    if not isinstance(y, Tensor):
        raise DataError(f"expected y to be a tensor of integers, got {type(y).__name__}")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DataError(f"expected y to hold integer labels, got {y.dtype}; y.long() makes them")
    if y.shape[:1] != (count,):
        raise DataError(f"expected y of shape ({count}, ...), one label per sample, got {tuple(y.shape)}")
    return y.to(torch.int64)


def _as_tensor(value: object, index: int) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    raise DataError(
        f"expected a tensor or an array in sample {index}, got {type(value).__name__}; "
        "give the data set a transform that makes tensors"
    )


def _stacked(samples: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The samples along a new first axis, one tensor per argument."""
    wanted = [(tensor.shape, tensor.dtype) for tensor in samples[0]]
    for index, sample in enumerate(samples):
        found = [(tensor.shape, tensor.dtype) for tensor in sample]
        if found != wanted:
            first, other = (", ".join(f"{tuple(s)} {d}" for s, d in form) for form in (wanted, found))
            raise DataError(f"expected every sample as sample 0 ({first}), got {other} in sample {index}")
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


def _labels(values: list[Any]) -> Tensor:
    labels: list[Tensor] = []
    for index, value in enumerate(values):
        known = isinstance(value, int | Tensor | np.generic | np.ndarray)
        label = torch.as_tensor(value) if known else torch.empty(0)
        if label.is_floating_point() or label.dtype == torch.bool:
            raise DataError(f"expected an integer label in sample {index}, got {value!r}")
        if label.numel() == 1:
            label = label.reshape(())
        if labels and label.shape != labels[0].shape:
            shapes = f"{tuple(labels[0].shape)}, got {tuple(label.shape)}"
            raise DataError(f"expected labels of the shape of sample 0, {shapes} in sample {index}")
        labels.append(label.to(torch.int64))
    return torch.stack(labels)
