"""What a model stores: its tensors by name, wherever it holds them, what no fault can reach, and its state kept."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hoplon.formats.base import equal_bits, integer_view
from hoplon.program.words import place_of

_OF_TORCH = frozenset(vars(nn.Module()))  # tables that every module has
WRITTEN_IN_CODE = "written in the code of forward"
HELD_BY_NONE = "held by no attribute of the model: register it as a buffer"
_NAMED = 3
_DEEPEST = 6  # attributes of attributes
_FOREIGN = sys.stdlib_module_names | {"torch", "hoplon", "numpy"}


@dataclass(frozen=True)
class Unstruck:
    """Memory that no fault strikes: why, and how many bytes it has."""

    reason: str
    nbytes: int


@dataclass(frozen=True, eq=False)
class StoredWords:
    """What a model stores, wherever it holds it: in parameters, buffers, other attributes, lists and closures.

    Args:
        tensors: by name, those in plain memory, parameters and buffers first; names of one tensor are all there, but
            those of an attribute that is a parameter or a buffer as well.
        unstruck: by name, all others.
        parameters: names of those that are parameters.
    """

    tensors: Mapping[str, Tensor]
    unstruck: Mapping[str, Unstruck]
    parameters: frozenset[str]

    @classmethod
    def of(cls, model: nn.Module) -> StoredWords:
        """All of a model."""
        tensors: dict[str, Tensor] = {}
        unstruck: dict[str, Unstruck] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            _add(name, parameter, tensors, unstruck)
        parameters = set(tensors)
        for name, buffer in model.named_buffers(remove_duplicate=False):
            _add(name, buffer, tensors, unstruck)
        known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        for name, held in _attributes(model):
            if id(held) in known:
                continue
            known.add(id(held))
            if isinstance(held, Tensor) and held.grad_fn is not None:
                continue  # computed from others
            before = len(tensors)
            _add(name, held, tensors, unstruck)
            if isinstance(held, nn.Parameter):
                parameters.update(list(tensors)[before:])
        return cls(tensors, unstruck, frozenset(parameters))


def named_with_share(unstruck: Mapping[str, Unstruck], tensors: Mapping[str, Tensor]) -> str:
    """Names of what no fault strikes, with its reason, and its share of all bytes: for messages."""
    beyond = sum(row.nbytes for row in unstruck.values())
    places = {place_of(tensor): tensor.nbytes for name, tensor in tensors.items() if name not in unstruck}
    share = beyond / max(1, beyond + sum(places.values()))
    rows = [f"{name} ({row.reason})" for name, row in unstruck.items()]
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"{', '.join(rows[:_NAMED])}{more}, {share:.1%} of the bytes"


def is_plain(tensor: Tensor) -> bool:
    """Tell whether the words of a tensor are its own and lie in plain memory."""
    return not is_wrapper(tensor) and _reason_unstruck(tensor) is None


def is_wrapper(held: Any) -> bool:
    """Tell whether something is a tensor subclass that holds other tensors, as quantised weights of torchao are."""
    return isinstance(held, Tensor) and bool(is_traceable_wrapper_subclass(held))


def _inner(wrapper: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(wrapper, name)) for name in wrapper.__tensor_flatten__()[0]]


def _reason_unstruck(tensor: Tensor) -> str | None:
    """Why the words of a tensor cannot be addressed one by one; None where they can."""
    if tensor.is_meta:
        return "on the meta device"
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return f"{tensor.layout} of {tensor.dtype}"
    return "a lazy conjugate" if tensor.is_conj() or tensor.is_neg() else None


def _add(name: str, held: Any, tensors: dict[str, Tensor], unstruck: dict[str, Unstruck]) -> None:
    if is_wrapper(held):
        for key, inner in _inner(held):
            _add(f"{name}.{key}", inner, tensors, unstruck)
    elif isinstance(held, torch.ScriptObject):
        if nbytes := _packed_bytes(held):
            unstruck[name] = Unstruck("packed", nbytes)
    elif (reason := _reason_unstruck(held)) is not None:
        unstruck[name] = Unstruck(reason, 0 if held.is_meta else _bytes_of(held))
    else:
        tensors[name] = held


def _packed_bytes(packed: torch.ScriptObject) -> int:
    try:
        state = packed.__getstate__()
    except (RuntimeError, AttributeError, NotImplementedError):
        return 1  # how much is not known, but something
    return sum(_bytes_of(leaf) for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def parts_of(tensor: Tensor) -> list[Tensor]:
    """The tensors in memory that make up a tensor: itself, indices and values, or those inside a subclass."""
    if is_wrapper(tensor):
        return [part for _, inner in _inner(tensor) for part in parts_of(inner)]
    if tensor.layout is torch.strided:
        return [integer_view(tensor) if tensor.is_quantized else tensor]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    axes = (tensor.crow_indices(), tensor.col_indices()) if rows else (tensor.ccol_indices(), tensor.row_indices())
    return [*axes, tensor.values()]


def _bytes_of(tensor: Tensor) -> int:
    return sum(part.nbytes for part in parts_of(tensor))


def _attributes(model: nn.Module, visit: Callable[[Any], None] | None = None) -> Iterator[tuple[str, Any]]:
    """Tensors and packed objects that modules hold outside of their parameters and buffers, by name.

    Args:
        visit: called with each container on the way.
    """
    seen = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if key in _OF_TORCH or key in _computed(module):
                continue
            if not isinstance(module, fx.GraphModule) or isinstance(value, Tensor):
                yield from _inside(value, f"{path}.{key}" if path else key, seen, _DEEPEST, visit)


def _computed(module: nn.Module) -> set[str]:
    """Names of attributes that hooks of torch make before each pass: masked and normalised weights."""
    hooks = module._forward_pre_hooks.values()
    return {str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", None)) for hook in hooks}


def _inside(
    value: Any, name: str, seen: set[int], deepest: int, visit: Callable[[Any], None] | None
) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (Tensor, torch.ScriptObject)):
        yield name, value
        return
    children = _children(value) if deepest and id(value) not in seen else None
    if children is None:
        return
    seen.add(id(value))
    if visit is not None:
        visit(value)
    for key, child in children:
        yield from _inside(child, f"{name}.{key}", seen, deepest - 1, visit)


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    """What a container, a module that is not registered, a function or an object of the user's own class holds."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple, deque)):
        return list(enumerate(value))
    if isinstance(value, nn.Module):
        tables = (value._parameters, value._buffers, value._modules)
        own = {key: held for key, held in vars(value).items() if key not in _OF_TORCH}
        return [item for table in (*tables, own) for item in table.items()]
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
        return [(key, cell.cell_contents) for key, cell in cells if _is_filled(cell)]
    if isinstance(value, MethodType):
        return [("self", value.__self__), ("function", value.__func__)]
    if isinstance(value, partial):
        return [("function", value.func), *enumerate(value.args), *value.keywords.items()]
    ours = type(value).__module__.partition(".")[0] not in _FOREIGN
    if isinstance(value, SimpleNamespace) or (ours and not isinstance(value, type) and hasattr(value, "__dict__")):
        return list(vars(value).items())
    return None


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 -- raises where it is empty
    except ValueError:
        return False
    return True


class _State:
    """Buffers, tensors in attributes, and the attributes themselves, as they were."""

    def __init__(self, model: nn.Module) -> None:
        self._tables: list[tuple[Any, Any]] = []
        tensors: dict[str, Tensor] = {}
        for module in model.modules():
            for table in (vars(module), module._parameters, module._buffers, module._modules):
                self._tables.append((table, dict(table)))
        for number, (_, held) in enumerate((*model.named_buffers(), *_attributes(model, self._keep))):
            if not isinstance(held, nn.Parameter):
                _add(str(number), held, tensors, {})
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors.values()]

    def _keep(self, held: Any) -> None:
        if isinstance(held, (dict, list, deque)):
            self._tables.append((held, held.copy()))
        elif not isinstance(held, (tuple, FunctionType, MethodType, partial)):
            self._tables.append((vars(held), dict(vars(held))))

    def restore(self) -> None:
        """Put back what differs."""
        for table, before in self._tables:
            if not _same_items(table, before):
                table.clear()
                (table.update if isinstance(table, dict) else table.extend)(before)
        for tensor, before in self._tensors:
            if not equal_bits(_real(tensor.detach()), _real(before)):
                tensor.data.copy_(before)


def _real(tensor: Tensor) -> Tensor:
    """A tensor as words that an integer can hold."""
    return torch.view_as_real(tensor) if tensor.dtype == torch.complex128 else tensor


def _same_items(table: Any, before: Any) -> bool:
    if len(table) != len(before):
        return False
    if isinstance(table, dict):
        return all(key in before and value is before[key] for key, value in table.items())
    return all(value is kept for value, kept in zip(table, before, strict=True))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back every byte of buffers and attributes that a forward pass changes, also after an error."""
    state = _State(model)
    try:
        yield
    finally:
        state.restore()
