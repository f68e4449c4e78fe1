"""Inputs: the samples a campaign runs on, in memory and checked once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset, IterableDataset, Subset

from hoplon.errors import Count, DataError, Seed, checked
from hoplon.formats.digest import add_words
from hoplon.program.given.samples import LABEL, Annotations, Sample, taken_apart


@final
@checked
@dataclass(frozen=True, eq=False)
class Inputs:
    """Samples and their labels, also a map-style data set.

    Args:
        x: what the model is called with, samples along the first axis: a tensor, a tuple of tensors, one per argument,
            or a dict of them, one per keyword.
        y: labels of shape ``(samples, ...)``: integers or truth values, kept as int64, such as classes or token ids; or
            floating point, such as the targets of a regression. `Annotations` for others, such as boxes. None without.
        name: for reports.
    Raises:
        DataError: no samples, unequal lengths, complex labels, NaN or infinity in x or y. Allowed is -inf in one of
            several inputs where no value is above zero: a mask that is added.
    Example:
        >>> data = Inputs(torch.zeros(3, 2), torch.tensor([0, 1, 0]))
        >>> len(data), len(data.take([0, 2])), [len(batch) for batch in data.batches(2)]
        (3, 2, [2, 1])
    """

    x: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
    y: Tensor | Annotations | None = None
    name: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        given: Any = self.x
        x: Sample = tuple(given) if isinstance(given, list) else dict(given) if isinstance(given, Mapping) else given
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
        return tuple(self.x) if isinstance(self.x, Mapping) else None

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Sample | tuple[Sample, Any]:
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
        rows, form = pytree.tree_flatten(self.y.rows if isinstance(self.y, Annotations) else self.y)
        for part in (*self.tensors, *(() if self.y is None else rows)):
            if not isinstance(part, Tensor):
                digest.update(repr(part).encode())
                continue
            digest.update(f"{part.dtype} {tuple(part.shape)}\n".encode())
            add_words(digest, part)
        if self.y is None or isinstance(self.y, Annotations):
            digest.update(b"no labels" if self.y is None else str(form).encode())
        return digest.hexdigest()

    @classmethod
    def from_dataset(cls, dataset: Stream, *, label: str = LABEL, drop: Sequence[str] = (), name: str = "") -> Self:
        """Every sample of a map-style data set, stacked: of torch, torchvision or Hugging Face `datasets`, or a list.

        Args:
            dataset: gives ``x``, ``(x, y)`` or a mapping with both: x a tensor, an array or lists of numbers, within a
                pair also a tuple of tensors or a mapping; y numbers or annotations, such as boxes by name. Sequences of
                different lengths are filled up where an ``attention_mask`` tells which positions are padding.
            label: the key of y in mappings; the default stands for "label" too.
            drop: keys in mappings that are no inputs.
            name: for reports.
        Raises:
            DataError: no length, no samples, or samples that differ in form or shape or hold anything but numbers.
        """
        samples = (dataset[index] for index in range(_length(dataset)))  # type: ignore[index]
        return cls(*taken_apart(samples, unit="sample", label=label, drop=drop), name=name)

    @classmethod
    def from_batches(
        cls, loader: Iterable[Any], *, label: str = LABEL, drop: Sequence[str] = (), name: str = ""
    ) -> Self:
        """Every batch of a data loader, end to end.

        Args:
            loader: gives batches in any form that :meth:`from_dataset` takes samples in, with a batch axis first.
            label, drop, name: see :meth:`from_dataset`.
        Raises:
            DataError: no batches, or batches that differ in form or shape or hold anything but numbers.
        Example:
            >>> ids, mask = torch.tensor([[5, 7, 0], [5, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
            >>> batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1])}
            >>> Inputs.from_batches([batch]).names
            ('input_ids', 'attention_mask')
        """
        return cls(*taken_apart(loader, unit="batch", label=label, drop=drop), name=name)

    @classmethod
    def by_length(
        cls, dataset: Stream, *, label: str = LABEL, drop: Sequence[str] = (), name: str = ""
    ) -> dict[int, Self]:
        """The samples of a data set in groups of one length, by that length: for sequences without padding.

        The length is that of the first input, its first axis in a sample; arguments and errors are those of
        :meth:`from_dataset`.
        """
        groups: dict[int, list[Any]] = {}
        for index in range(_length(dataset)):
            sample = dataset[index]  # type: ignore[index]
            x, _ = taken_apart([sample], unit="sample", label=label, drop=drop)
            groups.setdefault((*_parts(x)[0].shape[1:], 1)[0], []).append(sample)
        return {n: cls.from_dataset(groups[n], label=label, drop=drop, name=name) for n in sorted(groups)}

    def _part(self, index: slice | Tensor) -> Inputs:
        y = None if self.y is None else self.y[index]
        return Inputs(_like(self.x, [tensor[index] for tensor in self.tensors]), y, name=self.name)


def _parts(x: Sample) -> tuple[Tensor, ...]:
    """The tensors of x, whatever holds them."""
    if isinstance(x, Mapping):
        return tuple(x.values())
    return x if isinstance(x, tuple) else (x,)


def _like(x: Sample, tensors: Sequence[Tensor]) -> Sample:
    """Other tensors, held as those of x are."""
    if isinstance(x, Mapping):
        return dict(zip(x, tensors, strict=True))
    return tuple(tensors) if isinstance(x, tuple) else tensors[0]


Stream: TypeAlias = Inputs | Dataset[Any] | Tensor | Mapping[str, Any] | tuple[Any, ...] | Iterable[Any]
"""What `as_inputs` and `stream` take."""


def as_inputs(data: Stream) -> Inputs:
    """`data` as `Inputs`: itself, a map-style data set, a data loader, x alone, a pair (x, y), or a mapping of all.

    A tuple is always the pair (x, y); for a model with several arguments write ``Inputs((first, second))``.

    Raises:
        DataError: anything else, or data that `Inputs` refuses.
    """
    if isinstance(data, Inputs):
        return data
    if _is_whole(data):
        return _whole(data)
    if is_sized(data):
        return Inputs.from_dataset(data, name=_name_of(data))
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | IterableDataset):
        return Inputs.from_batches(data, name=_name_of(data))
    raise DataError(f"expected {_FORMS}, got {type(data).__name__}")


_FORMS = "Inputs, a map-style data set, a data loader, a tensor, a mapping of tensors or a pair (x, y)"


def _is_whole(data: Any) -> bool:
    """Tell whether these are all samples, as one batch."""
    return isinstance(data, Tensor | Mapping | np.ndarray) or (isinstance(data, tuple) and len(data) == 2)


def _whole(data: Any) -> Inputs:
    if isinstance(data, Mapping):
        sets = [key for key, part in data.items() if is_sized(part) and not isinstance(part, Tensor)]
        if sets:
            raise DataError(f"expected one data set, got {', '.join(map(str, data))}; choose one: data[{sets[0]!r}]")
    if isinstance(data, tuple) and all(isinstance(part, Tensor) for part in data):  # no copies, nor a look at each row
        return Inputs(*data)
    return Inputs(*taken_apart([data], unit="batch"))


def _name_of(data: Any) -> str:
    name = getattr(data, "name", "")
    return name if isinstance(name, str) else ""


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise DataError(f"expected a map-style data set with a length, got {type(dataset).__name__}")
    return len(dataset)


def is_sized(data: Stream) -> bool:
    """Whether samples can be asked for by number: how many there are is known, and any can be read on its own."""
    if isinstance(data, Inputs | Tensor):
        return True
    others = (tuple, list, str, bytes, Mapping, np.ndarray, IterableDataset)
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, others)


def stream(data: Stream, *, batch: int, fixed: int | None = None) -> Iterator[Inputs]:
    """The data in batches, as few samples in memory at a time as its form allows.

    Args:
        data: samples; a map-style data set, read a batch at a time; or any iterable of batches, such as a data loader,
            each in a form that :meth:`Inputs.from_batches` takes.
        batch: samples per batch; an iterable's own batches stay as they are.
        fixed: no batch has more samples than this, whatever the data.
    Raises:
        DataError: none of these, or samples that `Inputs` refuses.
    """
    size = fixed or batch
    if isinstance(data, Inputs) or _is_whole(data):
        yield from as_inputs(data).batches(size)
    elif is_sized(data):
        for start in range(0, len(data), size):  # type: ignore[arg-type]
            yield Inputs.from_dataset(Subset(data, range(start, min(start + size, len(data)))))  # type: ignore[arg-type]
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        for part in data:
            inputs = part if isinstance(part, Inputs) else Inputs.from_batches([part])
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
        added = len(tensors) > 1 and tensor.is_floating_point() and bool((tensor <= 0).all())
        _check_finite("x", tensor.nan_to_num(torch.nan, neginf=0) if added else tensor)


def _check_finite(what: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(1)
        raise DataError(
            f"expected finite {what}, got NaN or infinity in sample {int(bad.nonzero()[0])} "
            f"({int(bad.sum())} of {len(tensor)} samples); repair or leave out these samples"
        )


def _checked_y(y: Tensor | Annotations, count: int) -> Tensor | Annotations:
    if isinstance(y, Annotations):
        if len(y) != count:
            raise DataError(f"expected {count} annotations, one per sample, got {len(y)}")
        return y
    if y.is_complex():
        raise DataError(f"expected y to hold real numbers, got {y.dtype}")
    if y.shape[:1] != (count,):
        raise DataError(f"expected y of shape ({count}, ...), one label per sample, got {tuple(y.shape)}")
    if not y.is_floating_point():
        return y.to(torch.int64)
    _check_finite("y", y)
    return y
