"""Models and calls in the forms that people bring, brought to the one that is captured."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from hoplon.errors import CaptureError
from hoplon.program.operators import operator_name

_WRAPPERS = {nn.DataParallel: "module", nn.parallel.DistributedDataParallel: "module"}
_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_WITHOUT_CACHE = "call it without a cache of keys and values (use_cache=False), which is not supported yet"


def unwrapped(model: Any) -> nn.Module:
    """The module that does the work: compiled modules and those of several devices taken out of their wrappers.

    Also where they are modules of a module: then all that hold one are shallow copies, which share memory with the
    user's. An exported program gives its module.

    Raises:
        CaptureError: TorchScript, or no module at all.
    """
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    if isinstance(model, torch.jit.ScriptFunction) or not isinstance(model, nn.Module):
        raise CaptureError(
            f"expected a torch.nn.Module or an exported program, got {type(model).__name__}; "
            "wrap a function in a module that calls it in forward"
        )
    for path, part in model.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f" as {path}" if path else ""
            raise CaptureError(
                f"expected a model in Python, got TorchScript ({part.original_name}){where}, whose operators cannot be "
                "struck one by one; capture the model that was scripted or traced"
            )
    return _unwrapped(model, {})


def _unwrapped(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    if id(module) in seen:
        return seen[id(module)]
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # a second to load, and there if anything was compiled
    compiled = {} if compiler is None else {compiler.OptimizedModule: "_orig_mod"}
    for wrapper, name in (_WRAPPERS | compiled).items():
        if isinstance(module, wrapper):
            seen[id(module)] = _unwrapped(getattr(module, name), seen)
            return seen[id(module)]
    seen[id(module)] = module  # a module that holds itself
    children = {key: child if child is None else _unwrapped(child, seen) for key, child in module._modules.items()}
    changed = any(child is not module._modules[key] for key, child in children.items())
    if changed or getattr(module, "_compiled_call_impl", None) is not None:
        seen[id(module)] = _like(module, _modules=children, _compiled_call_impl=None)
    return seen[id(module)]


def _like(module: nn.Module, **attributes: Any) -> nn.Module:
    """A shallow copy with other attributes; memory and modules are those of the module."""
    made: nn.Module = object.__new__(type(module))
    made.__dict__ = {**module.__dict__, **attributes}
    return made


def with_named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """The model with a forward that names its inputs, if it has one with ``**``, which torch.export mixes up."""
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return model

    def forward(*given: Any, **named: Any) -> Any:
        return model.forward(*given, **named)

    names = [*(f"input_{number}" for number in range(len(args))), *kwargs]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return _like(model, forward=forward)


def require_eval(model: nn.Module) -> None:
    """Refuse a model in train mode; of exported modules, whose mode is fixed, the operators of their graph tell.

    Raises:
        CaptureError: names the modules or the operator, and a way out that works on this model.
    """
    exported = [path for path, part in model.named_modules() if _is_exported(part)]
    for path in exported:
        graph_module = model.get_submodule(path)
        for part in (part for part in graph_module.modules() if isinstance(part, fx.GraphModule)):
            if (node := next(filter(_trains, part.graph.nodes), None)) is not None:
                raise CaptureError(
                    f"expected a model in eval mode, got one exported in train mode ({operator_name(node.target)} in "
                    "its graph); export model.eval() instead"
                )
    inside = tuple(f"{path}." if path else "" for path in exported)
    training = [
        path or type(model).__name__
        for path, part in model.named_modules()
        if part.training and path not in exported and not (inside and path.startswith(inside))
    ]
    if training:
        raise CaptureError(
            f"expected a model in eval mode, got train mode in {', '.join(training[:3])}"
            f"{' and others' if len(training) > 3 else ''}; {_way_to_eval(model, exported)}"
        )


def _is_exported(module: nn.Module) -> bool:
    """Tell whether a module is of torch.export, of which eval() raises."""
    return isinstance(module, fx.GraphModule) and "eval" in vars(module)


def _trains(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    for position, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name in ("train", "training"):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return given is True
    return False


def _way_to_eval(model: nn.Module, exported: Sequence[str]) -> str:
    if exported:
        return "set training = False on each of model.modules(), since eval() of the exported one in it raises"
    parameters = list(inspect.signature(model.train).parameters.values())
    if parameters and parameters[0].name == "mode":
        return "call model.eval() first"
    networks = [name for name, _ in model.named_children()]
    inner = f"capture the network in it, model.{networks[0]}" if len(networks) == 1 else "capture the network in it"
    return f"{type(model).__name__}.train() trains instead of setting a mode: {inner}, in eval mode"


def require_plain_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Refuse inputs that are neither tensors nor plain values, such as caches of keys and values.

    Raises:
        CaptureError: names the input.
    """
    for path, leaf in pytree.tree_flatten_with_path((args, dict(kwargs)))[0]:
        if not isinstance(leaf, (Tensor, *_PLAIN)):
            kind = type(leaf).__name__
            raise CaptureError(
                f"expected inputs of tensors and plain values, got {kind} as input {pytree.keystr(path[1:])}; "
                + (_WITHOUT_CACHE if "cache" in kind.lower() else "give tensors, alone or in tuples, lists and dicts")
            )
    caches = [kind.__name__ for kind in _kinds(pytree.tree_structure((args, dict(kwargs)))) if "Cache" in kind.__name__]
    if caches:
        raise CaptureError(f"expected inputs of tensors and plain values, got a {caches[0]}; {_WITHOUT_CACHE}")


def register_structures(value: Any) -> None:
    """Tell torch how to take dataclasses and subclasses of dict in a value apart, unless they are our own."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if type(item).__module__.startswith("hoplon."):
            continue
        if (fields := _fields(item)) is not None:
            register_kind(type(item))
            waiting += fields.values()
        else:
            waiting += [part for part in _parts(item) if part is not item]


def _parts(item: Any) -> list[Any]:
    """What a value consists of, one level down; itself where torch cannot take it apart."""
    return pytree.tree_leaves(item, is_leaf=lambda part: part is not item)


def structures_in(spec: pytree.TreeSpec) -> set[type]:
    """The classes of a structure that :func:`register_structures` finds: another process has to be told them."""
    return set(filter(_is_structure, _kinds(spec)))


def _kinds(spec: pytree.TreeSpec) -> set[type]:
    own = {spec.type} if isinstance(spec.type, type) else set()
    return own.union(*map(_kinds, spec.children()))


def _is_structure(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (
        issubclass(kind, dict) and kind.__module__ not in ("builtins", "collections")
    )


def _fields(item: Any) -> dict[str, Any] | None:
    """The parts by name of an instance of a dataclass or of a subclass of dict; None for anything else."""
    if not _is_structure(type(item)):
        return None
    return (
        dict(item)
        if isinstance(item, dict)
        else {f.name: getattr(item, f.name, None) for f in dataclasses.fields(item)}
    )


def register_kind(kind: Any) -> None:
    """Tell torch how to take instances of such a class apart, if it does not know; they are put together unchecked."""
    if kind in pytree.SUPPORTED_NODES:
        return

    def flatten(item: Any) -> tuple[list[Any], list[str]]:
        fields = _fields(item) or {}
        return list(fields.values()), list(fields)

    def flatten_with_keys(item: Any) -> tuple[list[tuple[Any, Any]], list[str]]:
        fields = _fields(item) or {}
        return [(pytree.MappingKey(name), value) for name, value in fields.items()], list(fields)

    def unflatten(values: Any, names: list[str]) -> Any:
        made = kind.__new__(kind)
        for name, value in zip(names, values, strict=True):
            if isinstance(made, dict):
                (OrderedDict if isinstance(made, OrderedDict) else dict).__setitem__(made, name, value)
            if dataclasses.is_dataclass(kind):
                object.__setattr__(made, name, value)
        return made

    pytree.register_pytree_node(
        kind,
        flatten,
        unflatten,
        flatten_with_keys_fn=flatten_with_keys,
        serialized_type_name=f"{kind.__module__}.{kind.__qualname__}",
    )


@contextmanager
def slow_attention() -> Iterator[None]:
    """Have attention modules run the operators that a graph has, not PyTorch's fused kernel for eval mode."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def has_fast_path(model: nn.Module) -> bool:
    """Tell whether PyTorch may run parts of a model by its fused kernel for eval mode."""
    parts = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return torch.backends.mha.get_fastpath_enabled() and any(isinstance(part, parts) for part in model.modules())
