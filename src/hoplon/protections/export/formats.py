"""A hardened module as a file that runs without hoplon: ``.pt2``, ONNX, AOTInductor."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from hoplon.errors import HoplonError, HoplonWarning, checked
from hoplon.files import replacing
from hoplon.program._torch_warnings import quiet_torch
from hoplon.program.archives.tensors import plain_tensors
from hoplon.program.tracing import save_export
from hoplon.protections.base import Chain, ValueProtection
from hoplon.protections.runtime.effect import Effect
from hoplon.protections.runtime.graph import writes_in_place
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.monitor import UncorrectableMemory
from hoplon.protections.values.clamp import BoundValue, clamp_words_, rounded_outwards

Guards = Literal["refuse", "drop"]


@checked
def export_pt2(module: HardenedModule, path: str | os.PathLike[str], *, guards: Guards = "refuse") -> None:
    """Write a ``.pt2`` file: the graph with its bounds, the user's names of the state, a free batch where it was free.

    ``torch.export.load(path).module()`` runs it, bit for bit the module without guards. The member ``hoplon.json`` of
    the file says what is bounded to what.

    Args:
        guards: what to do with guards of memory, which a graph cannot carry: refuse, or drop them.
    Raises:
        HoplonError: guards that are not to be dropped, another word for ``guards``, or what a file cannot hold: a
            detector, an operator that runs twice, a module that was cast.
        UncorrectableMemory: a guard found weights that it cannot repair, which would be wrong in the file for good.
    """
    exported = exported_program(module, guards=guards)
    _leave_out_objects(exported)
    content = io.BytesIO()  # torch ends the process where it finds the disk full
    with quiet_torch():
        save_export(exported, content, extra_files={"hoplon.json": json.dumps(_described(module), indent=1)})
    with replacing(path) as partial:
        partial.write_bytes(content.getbuffer())


@checked
def export_onnx(module: HardenedModule, path: str | os.PathLike[str], *, guards: Guards = "refuse") -> None:
    """Write an ONNX file that ``onnxruntime`` runs.

    ONNX has no operator that reads a float as an integer, and ONNX's own ``Clip`` and ``Relu`` let NaN through. So a
    bound becomes ``IsNaN``, ``Where`` and ``Clip``: values that are numbers come out as from the module, a NaN of
    either sign as the lower end of the bound, and -0.0 stays -0.0.

    Weights of more than 2 GB go into a second file, ``path`` and ".data".

    Args:
        guards: as for :func:`export_pt2`.
    Raises:
        HoplonError: guards that are not to be dropped, an effect or an operator that ONNX has no form of, or packages
            missing: they are the extra ``hoplon[onnx]``.
    Warns:
        HoplonWarning: values in bfloat16, before anything is written: onnxruntime has hardly an operator for them.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise HoplonError(f"expected {' and '.join(missing)} for an ONNX file, got none; pip install 'hoplon[onnx]'")
    held = (node.meta.get("val") for node in module.graph_module.graph.nodes)
    if any(isinstance(value, Tensor) and value.dtype == torch.bfloat16 for value in held):
        warnings.warn(
            "onnxruntime has no convolution and hardly another operator in bfloat16: it will refuse the file; capture "
            "the model in float16 or float32 for a file that it runs",
            HoplonWarning,
            stacklevel=3,
        )
    with _portable(module):
        exported = exported_program(module, guards=guards)
    with quiet_torch():
        try:
            program = torch.onnx.export(exported, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise HoplonError(
                f"expected operators that ONNX has, got one that it has not: {reason}; export_pt2 takes all of them"
            ) from error
    assert program is not None
    program.model.metadata_props["hoplon"] = importlib.metadata.version("hoplon")
    with replacing(path) as partial:
        program.save(partial)
        if (weights := partial.with_name(f"{partial.name}.data")).exists():
            with replacing(Path(path).with_name(weights.name)) as beside:
                weights.replace(beside)


@checked
def export_aoti(module: HardenedModule, path: str | os.PathLike[str], *, guards: Guards = "refuse") -> None:
    """Compile ahead of time into a package (``.pt2``) that ``torch._inductor.aoti_load_package`` loads.

    It runs the same bounds; where the compiler reorders sums, outputs differ from the module's in the last digits.

    Args:
        guards: as for :func:`export_pt2`.
    Raises:
        HoplonError: guards that are not to be dropped, a path that does not end in ``.pt2``, or no C++ compiler.
    """
    if Path(path).suffix != ".pt2":
        raise HoplonError(f"expected a path that ends in .pt2, which AOTInductor asks for, got {os.fspath(path)!r}")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None and shutil.which("clang++") is None:
        raise HoplonError(f"expected a C++ compiler for AOTInductor, got none ({compiler}); set CXX, or use export_pt2")
    exported = exported_program(module, guards=guards)
    with replacing(path) as partial, quiet_torch():
        torch._inductor.aoti_compile_and_package(exported, package_path=os.fspath(partial))


def exported_program(module: HardenedModule, *, guards: Guards = "refuse") -> ExportedProgram:
    """The hardened graph as a ``torch.export`` program; shares the module's memory.

    Raises:
        HoplonError, UncorrectableMemory: as :func:`export_pt2`.
    """
    if module.monitor.guards and guards == "refuse":
        raise HoplonError(
            f"expected a module without guards of memory, got {module.overlay.label}: a graph carries bounds, "
            "not guards; guards='drop' leaves them out"
        )
    if any(effect.detects for effect in module.overlay.values.values()):
        raise HoplonError(
            f"expected a module whose bounds act by themselves, got {module.overlay.label}: a graph cannot run itself "
            "once more; export another policy, such as Clamp()"
        )
    if any(effect.repeats for effect in module.overlay.values.values()):
        raise HoplonError(
            f"expected a module that runs each operator once, got {module.overlay.label}: what compiles or runs a file "
            "merges equal computations, and the second run would be gone; export the other protections alone"
        )
    _require_dtypes(module)
    report = module.check()
    if report.uncorrectable:
        raise UncorrectableMemory(report)
    args, kwargs, free = _inputs(module)
    with torch.no_grad(), quiet_torch():
        exported = torch.export.export(module.graph_module, args, kwargs, dynamic_shapes=free, strict=False)
    _leave_out_traces(exported)
    return exported


def _leave_out_traces(exported: ExportedProgram) -> None:
    """Take out where the user's code lies on this machine."""
    graphs = [part for part in exported.graph_module.modules() if isinstance(part, fx.GraphModule)]
    for meta in [node.meta for part in graphs for node in part.graph.nodes] + [part.meta for part in graphs]:
        for name in ("stack_trace", "from_node", "source_fn_stack", "torch_fn", "custom"):
            meta.pop(name, None)


def _leave_out_objects(exported: ExportedProgram) -> None:
    """Take out sample inputs that only a pickle of classes holds."""
    samples = io.BytesIO()
    torch.save(exported.example_inputs, samples)
    try:
        plain_tensors(samples.getvalue())
    except ValueError:
        exported.example_inputs = None


def _require_dtypes(module: HardenedModule) -> None:
    """Refuse a module that was cast: its graph and its inputs are those of the dtypes that were captured."""
    memory = module.memory()
    for node in module.graph_module.graph.nodes:
        captured, held = node.meta.get("val"), memory.get(str(node.target))
        if node.op == "get_attr" and held is not None and isinstance(captured, Tensor) and captured.dtype != held.dtype:
            raise HoplonError(
                f"expected a module in the dtypes it was captured in, got {node.target} of {held.dtype} where it was "
                f"of {captured.dtype}; cast the model, then capture and harden it"
            )


def _inputs(module: HardenedModule) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """Inputs as the graph was captured with, and which of their axes are free."""
    graph_module = module.graph_module
    held = [node.meta.get("val") for node in graph_module.graph.nodes if node.op == "placeholder"]
    device = next((tensor.device for tensor in module.memory().values()), torch.device("cpu"))
    batch = Dim("batch", min=1, max=2**20)
    leaves = [_example(value, device) for value in held]
    axes = [
        {axis: batch for axis, size in enumerate(value.shape) if _is_free(size)} if isinstance(value, Tensor) else None
        for value in held
    ]
    spec = graph_module._in_spec
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    shapes = pytree.tree_unflatten([axis or None for axis in axes], spec)
    names = list(inspect.signature(graph_module.forward).parameters)
    free = {**dict(zip(names, shapes[0], strict=False)), **shapes[1]} if kwargs else shapes[0]
    return args, kwargs, free


def _is_free(size: Any) -> bool:
    """Return True if a size of a captured value is a symbol."""
    return isinstance(size, torch.SymInt)


def _example(value: Any, device: torch.device) -> Any:
    """A batch of two where the batch is free."""
    if not isinstance(value, Tensor):
        return value
    shape = [2 if _is_free(size) else size for size in value.shape]
    return torch.zeros(shape, dtype=value.dtype, device=device)


def _described(module: HardenedModule) -> Mapping[str, Any]:
    return {
        "format": 1,
        "protections": module.overlay.label,
        "guards_dropped": bool(module.monitor.guards),
        "values": {name: str(effect) for name, effect in module.overlay.values.items()},
    }


def bound_floats(value: Tensor, low: float, high: float) -> Tensor:
    """A bound in float operators alone: a NaN of either sign becomes ``low``."""
    return torch.where(value.isnan(), low, value).clamp(low, high)


def bound_floats_(value: Tensor, low: float, high: float) -> Tensor:
    """The same in place."""
    return value.copy_(bound_floats(value, low, high))


@final
@dataclass(frozen=True)
class _FloatBound(ValueProtection):
    low: float
    high: float

    def __call__(self, value: Tensor) -> Tensor:
        return bound_floats(value, self.low, self.high)


@contextmanager
def _portable(module: HardenedModule) -> Iterator[None]:
    """The module's bounds in operators that other runtimes have, while this lasts.

    In place only where the bounded operator is: writing into the result of another, which may have strides of its own
    (a pooled map with its channels last), becomes an operator that ONNX has not.
    """
    graph_module = module.graph_module
    nodes = [node for node in graph_module.graph.nodes if "effect" in node.meta]
    calls = [(node, node.target, node.args) for node in nodes if node.op == "call_function"]
    places = [(graph_module.get_submodule(str(node.target)), node) for node in nodes if node.op == "call_module"]
    effects = [(place, node, place.effect, place.in_place) for place, node in places if isinstance(place, Effect)]
    try:
        for node, target, (value, *_) in calls:
            node.target = bound_floats_ if target is clamp_words_ and writes_in_place(value) else bound_floats
            node.args = (value, *rounded_outwards(node.meta["effect"], node.meta["val"].dtype))
        for place, node, effect, in_place in effects:
            place.effect = _in_floats(effect, node.meta["val"].dtype)
            place.in_place = in_place and writes_in_place(node.args[0])
        graph_module.recompile()
        yield
    finally:
        for node, target, args in calls:
            node.target, node.args = target, args
        for place, _, effect, in_place in effects:
            place.effect, place.in_place = effect, in_place
        graph_module.recompile()


def _in_floats(effect: ValueProtection, dtype: torch.dtype) -> ValueProtection:
    if isinstance(effect, Chain):
        return Chain(tuple(_in_floats(link, dtype) for link in effect.links))
    return _FloatBound(*rounded_outwards(effect, dtype)) if isinstance(effect, BoundValue) else effect
