"""Data as people hold it, taken apart: samples along the first axis of tensors, and their labels."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from hoplon.errors import DataError, shown

# One sample, or a batch of them: x alone, the arguments of a call, or its keywords.
Sample: TypeAlias = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Unit: TypeAlias = Literal["sample", "batch"]

LABEL = "labels"
_LABELS = (LABEL, "label")  # of a batch, and of a sample of a Hugging Face data set
_MASK = "attention_mask"  # says which positions are padding, by the name that transformers give it
_NOT_COUNTED = -100  # the label of padding, as PyTorch's losses have it


@final
@dataclass(frozen=True, eq=False)
class Annotations:
    """Labels with a structure, such as boxes, or of a shape that differs from sample to sample: one for each.

    ``rows``: tensors, alone or in dicts, tuples and lists, or texts. Taken at an index as a tensor of labels is.

    Example:
        >>> boxes = Annotations(({"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(0, 4)}))
        >>> len(boxes), len(boxes[torch.tensor([1])])
        (2, 1)
    """

    rows: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        """The annotation of one sample, or those of several as `Annotations`."""
        if isinstance(index, Tensor):
            return Annotations(tuple(self.rows[row] for row in index.tolist()))
        return Annotations(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def to(self, device: torch.device) -> Annotations:
        """The same on a device."""
        return Annotations(pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), self.rows))


@dataclass(frozen=True)
class _Item:
    """One sample or batch: its inputs, by keyword or in their order, and its labels."""

    where: str
    keys: tuple[str, ...] | int | None  # keywords, a number of arguments, or None for x alone
    values: tuple[Any, ...]
    y: Any

    @property
    def form(self) -> tuple[Any, bool]:
        return (frozenset(self.keys) if isinstance(self.keys, tuple) else self.keys, self.y is None)

    def __str__(self) -> str:
        x = f"({', '.join(self.keys)})" if isinstance(self.keys, tuple) else "x" if self.keys is None else "(x, ...)"
        return x if self.y is None else f"({x}, y)"

    def in_order(self, keys: Any) -> tuple[Any, ...]:
        """The values in the order of the keys of another item of this form."""
        if not isinstance(self.keys, tuple):
            return self.values
        own = dict(zip(self.keys, self.values, strict=True))
        return tuple(own[key] for key in keys)


def taken_apart(
    given: Iterable[Any], *, unit: Unit, label: str = LABEL, drop: Collection[str] = ()
) -> tuple[Sample, Tensor | Annotations | None]:
    """Samples or batches put together: what the model is called with, and the labels if there are any.

    Each is ``x``, ``(x,)``, ``(x, y)`` or a mapping with both, x being numbers in a tensor, an array or lists, several
    of them, or a mapping. Where lengths differ and ``attention_mask`` is among the inputs, all inputs of that length
    are filled up with zeros, and labels of it with -100.

    Args:
        label: the key of the labels in mappings; the default stands for "label" too.
        drop: keys in mappings that are no inputs.
    Raises:
        DataError: none, or one that is not of the form and shape of the first, or holds anything but numbers in x.
    """
    items = [_item(one, f"{unit} {number}", label, drop) for number, one in enumerate(given)]
    if not items:
        raise DataError(f"expected at least one {unit}, got 0")
    keys = items[0].keys
    columns: list[list[Tensor]] = [[] for _ in items[0].values]
    ys: list[Any] = []
    for item in items:
        if item.form != items[0].form:
            raise DataError(f"expected every {unit} of the form {items[0]}, got another, {item}, in {item.where}")
        names = keys if isinstance(keys, tuple) else (None,) * len(columns)
        parts = [_parts(value, item.where, unit, name) for name, value in zip(names, item.in_order(keys), strict=True)]
        if len({len(part) for part in parts}) > 1:  # an input with another length in each row
            parts = [[row for part in column for row in part.split(1)] for column in parts]
        for column, part in zip(columns, parts, strict=True):
            column.extend(part)
        if item.y is not None:
            ys += _label_parts(item.y, sum(map(len, parts[0])), item.where, unit)
    lengths = _fill_up(dict(zip(keys, columns, strict=True))) if isinstance(keys, tuple) else None
    tensors = _joined(columns, items, unit)
    y = _labels(ys, lengths, unit) if ys else None
    return dict(zip(keys, tensors, strict=True)) if isinstance(keys, tuple) else tensors if keys else tensors[0], y


def _item(given: Any, where: str, label: str, drop: Collection[str]) -> _Item:
    x, y = given, None
    if isinstance(given, tuple | list) and not hasattr(given, "_asdict"):
        if len(given) not in (1, 2):
            raise DataError(
                f"expected x, (x, y) or a mapping in {where}, got {len(given)} parts; for a call with several "
                "arguments give ((first, second), y), or a mapping of keywords"
            )
        x, y = given if len(given) == 2 else (given[0], None)
    x = x._asdict() if hasattr(x, "_asdict") else x
    if isinstance(y, tuple | list) and y and all(isinstance(row, Mapping) for row in y):
        return _Item(where, None, ([*x],), y)  # as detectors have it: pictures side by side, an annotation for each
    if isinstance(x, Mapping):
        named = dict(x)
        if y is None:
            y = named.pop(_label_in(named, label, where), None)
        if unknown := set(drop) - set(named):
            raise DataError(f"expected {', '.join(sorted(unknown))} in {where}, to drop it, got {_keys(named)}")
        kept = {str(key): value for key, value in named.items() if key not in drop}
        return _Item(where, tuple(kept), tuple(kept.values()), y)
    if isinstance(x, tuple | list) and any(isinstance(part, Tensor | np.ndarray) for part in x):
        return _Item(where, len(x), tuple(x), y)
    return _Item(where, None, (x,), y)


def _label_in(named: Mapping[Any, Any], label: str, where: str) -> str | None:
    if label != LABEL and label not in named:
        raise DataError(f"expected {label}, the key of the labels, in {where}, got {_keys(named)}")
    return label if label in named else next((key for key in _LABELS if key in named), None)


def _keys(named: Mapping[Any, Any]) -> str:
    return ", ".join(map(str, named)) or "nothing"


def _parts(value: Any, where: str, unit: Unit, name: str | None) -> list[Tensor]:
    """The tensors of one input with samples along their first axis: one, or one for each row where lengths differ."""
    place = where if name is None else f"{name} of {where}"
    if unit == "sample":
        return [_tensor(value, place, name).unsqueeze(0)]
    if isinstance(value, list | tuple) and len({_length(row) for row in value}) > 1:
        return [_tensor(row, place, name).unsqueeze(0) for row in value]
    tensor = _tensor(value, place, name)
    if tensor.ndim == 0:
        raise DataError(f"expected {place} with a batch axis first, got a single number")
    return [tensor]


def _length(row: Any) -> int | None:
    return len(row) if isinstance(row, list | tuple) or (isinstance(row, Tensor | np.ndarray) and row.ndim) else None


def _tensor(value: Any, place: str, name: str | None = None) -> Tensor:
    """Numbers as a tensor.

    Raises:
        DataError: anything else in them; says what, and the way out.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        return torch.from_numpy(np.asarray(value))
    try:
        if isinstance(value, list | tuple) and any(isinstance(row, Tensor | np.ndarray) for row in value):
            return torch.stack([_tensor(row, place) for row in value])
        if isinstance(value, bool | int | float | complex | list | tuple):
            return torch.tensor(value)
    except (ValueError, TypeError, RuntimeError):  # lists that no tensor is made of
        pass
    foreign = _foreign(value)
    dropped = f', or leave it out: drop=("{name}",)' if name is not None else ""
    if isinstance(foreign, str):
        raise DataError(f"expected numbers in {place}, got the text {shown(foreign)}; tokenize it{dropped}")
    if isinstance(foreign, list | tuple):
        raise DataError(f"expected rows of one length in {place}, got several; pad them{dropped}")
    raise DataError(
        f"expected a tensor or an array in {place}, got {type(foreign).__name__}; give the data set a transform that "
        f"makes tensors{dropped}"
    )


def _foreign(value: Any) -> Any:
    """The first part of nested lists that is no number; the lists where all are."""
    for part in pytree.tree_leaves(value, is_leaf=lambda one: not isinstance(one, list | tuple)):
        if not isinstance(part, bool | int | float | complex | Tensor | np.ndarray | np.generic):
            return part
        if isinstance(part, np.ndarray | np.generic) and part.dtype.kind not in "biufc":
            return next((one for one in np.asarray(part).reshape(-1).tolist()), part)
    return value


def _joined(columns: Sequence[Sequence[Tensor]], items: Sequence[_Item], unit: Unit) -> tuple[Tensor, ...]:
    """Each column as one tensor."""
    forms = [[(part.shape[1:], part.dtype) for part in column] for column in columns]
    for number, form in enumerate(zip(*forms, strict=True)):
        wanted = [column[0] for column in forms]
        if list(form) != wanted:
            first, other = (", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in one) for one in (wanted, form))
            where = items[number].where if len(items) == len(forms[0]) else f"row {number}"
            raise DataError(
                f"expected every sample as that of {unit} 0 ({first}), got {other} in {where}; pad them, with an "
                f"{_MASK} that says where, or make an Inputs of each length with Inputs.by_length"
            )
    return tuple(column[0] if len(column) == 1 else torch.cat(list(column)) for column in columns)


def _fill_up(columns: Mapping[str, list[Tensor]]) -> list[int] | None:
    """Give all columns that have the length of the mask its largest one, in place; return the lengths before.

    None where nothing had to be filled up.
    """
    masks = columns.get(_MASK, [])
    lengths = [mask.shape[1] if mask.ndim > 1 else 0 for mask in masks]
    if len(set(lengths)) < 2:
        return None
    for column in columns.values():
        if all(part.ndim > 1 and part.shape[1] == length for part, length in zip(column, lengths, strict=True)):
            column[:] = [_padded(part, max(lengths), 0) for part in column]
    return [length for length, mask in zip(lengths, masks, strict=True) for _ in range(len(mask))]


def _padded(part: Tensor, length: int, value: int) -> Tensor:
    rest = part.new_full((part.shape[0], length - part.shape[1], *part.shape[2:]), value)
    return torch.cat([part, rest], 1)


def _label_parts(y: Any, count: int, where: str, unit: Unit) -> list[Any]:
    """The label of each sample: a tensor, or an annotation."""
    if unit == "sample":
        return [_annotation(y, f"the label of {where}")]
    if isinstance(y, Mapping):
        y = [{key: value[row] for key, value in y.items()} for row in range(count)]
    rows = [_annotation(row, f"a label of {where}") for row in y]
    if len(rows) != count:
        raise DataError(f"expected {count} labels in {where}, one per sample, got {len(rows)}")
    return rows


def _annotation(value: Any, where: str) -> Any:
    """A label with its numbers as tensors; texts stay texts."""
    if isinstance(value, Mapping):
        return {str(key): _annotation(part, where) for key, part in value.items()}
    if isinstance(value, str):
        return value
    try:
        return _tensor(value, where)
    except DataError:
        if isinstance(value, list | tuple):
            return [_annotation(part, where) for part in value]
        raise


def _labels(rows: list[Any], lengths: Sequence[int] | None, unit: Unit) -> Tensor | Annotations:
    """Labels of one shape as a tensor, others as annotations."""
    if not all(isinstance(row, Tensor) for row in rows):
        return Annotations(tuple(rows))
    if unit == "sample" and all(row.numel() == 1 and not row.is_floating_point() for row in rows):
        rows = [row.reshape(()) for row in rows]  # a class in an array of its own
    if lengths is not None and all(row.shape[:1] == (length,) for row, length in zip(rows, lengths, strict=True)):
        rows = [_padded(row.unsqueeze(0), max(lengths), _NOT_COUNTED).squeeze(0) for row in rows]
    if len({row.shape for row in rows}) > 1:
        return Annotations(tuple(rows))
    return torch.stack([row if row.is_floating_point() or row.is_complex() else row.to(torch.int64) for row in rows])
