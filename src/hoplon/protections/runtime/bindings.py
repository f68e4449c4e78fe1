"""Tensors of a module by name, and the check that they are still the same ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hoplon.errors import HoplonError
from hoplon.program.memory import StoredWords, named_with_share
from hoplon.program.words import without_covered
from hoplon.protections.memory_guard import pieces_of_turn

_READS: tuple[Callable[[Tensor], Any], ...] = (
    attrgetter("device", "dtype"),
    Tensor.size,
    Tensor.stride,
    Tensor.data_ptr,
)
_Form = list[list[Any]]
_Other = tuple["_Table", str, nn.Module | None]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, as the module holds it; names that share a storage are all there."""
    named = (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    return {name: tensor for table in named for name, tensor in table}


def memory_of(module: nn.Module, leave_out: Collection[str] = ()) -> dict[str, Tensor]:
    """Every stored tensor by name, live and detached: parameters, buffers, and those in other attributes.

    They share torch's version counters too, whatever mode this is called in.

    Names of one tensor are all there, of tensors that share words otherwise one that shows all of them. They come in
    the order of their names, whatever the order of the modules: guards that lay tensors out one after the other do so
    in the same way in every module with these names.

    A tensor of complex128, whose words are wider than any integer, is given as the real numbers it is made of.

    Raises:
        HoplonError: something without words of its own to guard: on the meta device, sparse, quantised, packed, or a
            view that is conjugated or negated as it is read.
    """
    stored = StoredWords.of(module)
    unstruck = {name: why for name, why in stored.unstruck.items() if name not in leave_out}
    if unstruck:
        found = named_with_share(unstruck, stored.tensors)
        raise HoplonError(
            f"expected dense tensors in memory to guard, got {found}; load, unpack or resolve them: weights packed by "
            "torch.ao.quantization are out of reach, those quantised by torchao are tensors"
        )
    guarded = {name: tensor for name, tensor in stored.tensors.items() if name not in leave_out}
    with torch.inference_mode(False):  # what is made there has no counter
        return {
            name: torch.view_as_real(tensor.detach()) if tensor.dtype == torch.complex128 else tensor.detach()
            for name, tensor in sorted(without_covered(guarded).items())
        }


def written_in_training(module: nn.Module) -> list[str]:
    """Names of the buffers that normalisation in training mode writes to in each forward pass."""
    return [
        f"{path}.{key}" if path else key
        for path, child in module.named_modules()
        if isinstance(child, _NormBase) and child.training
        for key, buffer in child._buffers.items()
        if buffer is not None
    ]


class _Table(NamedTuple):
    """One of the tables of one module: its parameters, buffers or children."""

    path: str
    held: dict[str, Any]
    names: tuple[str, ...]


class _Row(NamedTuple):
    """A tensor where it was found, and what it was (:func:`_form_of`)."""

    table: _Table
    key: str
    tensor: Tensor
    form: _Form

    @property
    def name(self) -> str:
        return self.table.path + self.key


@final
class Bindings:
    """The tensors of a module as they were bound to its names when this was made, but for those to leave out."""

    def __init__(self, root: nn.Module, leave_out: Collection[str] = ()) -> None:
        self._tables: list[_Table] = []
        self._rows: list[_Row] = []
        self._others: list[_Other] = []
        self._slices: dict[tuple[int, int], _Slice] = {}
        for path, module in root.named_modules():
            prefix = f"{path}." if path else ""
            for held in (module._parameters, module._buffers):
                table = self._table(prefix, held)
                for key, tensor in held.items():
                    if tensor is None:
                        self._others.append((table, key, None))
                    elif prefix + key not in leave_out:
                        self._rows.append(_Row(table, key, tensor, _form_of([tensor])))
            children = self._table(prefix, module._modules)
            self._others += [(children, key, child) for key, child in module._modules.items()]

    def _table(self, prefix: str, held: dict[str, Any]) -> _Table:
        table = _Table(prefix, held, tuple(held))
        self._tables.append(table)
        return table

    def require_same(self, *, turn: int = 0, turns: int = 1) -> None:
        """Refuse tensors that were replaced, moved, cast, reshaped, added or removed.

        Args:
            turn: which slice of the tensors to look at, in ``range(turns)``.
            turns: into how many slices they are cut.
        Raises:
            HoplonError: names the tensor and what became of it.
        """
        if (turn, turns) not in self._slices:
            tables, others, rows = (
                slice(part.start, part.stop)
                for count in (len(self._tables), len(self._others), len(self._rows))
                for part in [pieces_of_turn(count, turn, turns)]
            )
            self._slices[turn, turns] = _Slice(self._tables[tables], self._others[others], self._rows[rows])
        portion = self._slices[turn, turns]
        if not portion.is_same():
            portion.refuse()

    def same(self) -> bool:
        """Return True if :meth:`require_same` has nothing to refuse."""
        try:
            self.require_same()
        except HoplonError:
            return False
        return True


@final
class _Slice:
    """Some tables of modules and some of what they held, compared in few calls: small models are checked often."""

    def __init__(self, tables: list[_Table], others: list[_Other], rows: list[_Row]) -> None:
        self._tables, self._others, self._rows = tables, others, rows
        self._held = [table.held for table in tables]
        self._counts = [len(table.names) for table in tables]
        self._known = [child for *_, child in others] + [row.tensor for row in rows]
        self._where = [table.held for table, *_ in others] + [row.table.held for row in rows]
        self._keys = [key for _, key, _ in others] + [row.key for row in rows]
        self._tensors = [row.tensor for row in rows]
        self._form = [[row.form[number][0] for row in rows] for number in range(len(_READS))]

    def is_same(self) -> bool:
        return (
            list(map(len, self._held)) == self._counts
            and all(map(is_, map(dict.get, self._where, self._keys), self._known))
            and _form_of(self._tensors) == self._form
        )

    def refuse(self) -> None:
        for table in self._tables:
            if len(table.held) != len(table.names):
                _refuse(_change_of_names(table))
        for table, key, child in self._others:
            if table.held.get(key) is not child:
                name = f"{table.path}{key}"
                _refuse(f"{name}, which was not there" if child is None else f"another module as {name}")
        for row in self._rows:
            now = row.table.held.get(row.key)
            if now is not row.tensor or _form_of([now]) != row.form:
                _refuse(_change_of(row, now))


def _refuse(got: str) -> None:
    raise HoplonError(
        f"expected the memory that the guards were armed on, got {got}; call monitor.refresh() after replacing a "
        "parameter or changing the model on purpose"
    )


def _change_of_names(table: _Table) -> str:
    added = [key for key in table.held if key not in table.names]
    if added:
        return f"{table.path}{added[0]}, which was not there"
    return f"no {table.path}{next(key for key in table.names if key not in table.held)}"


def _form_of(tensors: Sequence[Tensor]) -> _Form:
    return [list(map(read, tensors)) for read in _READS]


def _change_of(row: _Row, now: Tensor | None) -> str:
    if now is None:
        return f"no {row.name}"
    (device, dtype), shape = row.form[0][0], row.form[1][0]
    if now.device != device:
        return f"{row.name} on {now.device} where it was on {device}"
    if now.dtype != dtype:
        return f"{row.name} cast from {dtype} to {now.dtype}"
    if tuple(now.shape) != shape:
        return f"{row.name} of shape {tuple(now.shape)} where it was of {tuple(shape)}"
    return f"another tensor as {row.name}"
