"""Models in files: graphs of ``torch.export`` and ONNX; files of weights alone are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hoplon.errors import DataError, HoplonError, said
from hoplon.program.archives.exported import graph_of
from hoplon.program.archives.tensors import plain_tensors
from hoplon.program.given.example import Example
from hoplon.zoo.entries import ZooModel
from hoplon.zoo.libraries import required

_FREE = 2  # samples of an example, where the file leaves their number open
_FREE_LENGTH = 16
_LARGEST_GAP = 1e-3  # of outputs, relative to the largest: two runtimes sum in other orders


def file_model(text: str, *, seed: int) -> ZooModel:
    """The model in a file, and an example of random numbers.

    Raises:
        HoplonError: the file holds weights alone, or an operator that is not known; DataError: it cannot be read, or
            its model computes something else here.
    """
    path = Path(text).expanduser()
    if not path.is_file():
        raise DataError(f"expected a model in {text}, which {'is no file' if path.exists() else 'does not exist'}")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module, call = MODEL_FILES[path.suffix](path)
    return ZooModel(name=text, module=module, example=Example(*call))


def _exported(path: Path) -> tuple[nn.Module, tuple[Any, ...]]:
    try:
        graph = graph_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"expected a program of torch.export in {path}, got: {said(error)}; save it again") from error
    values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    leaves = [_random(_sizes(value), value.dtype) if isinstance(value, Tensor) else value for value in values]
    return graph, pytree.tree_unflatten(leaves, graph._in_spec)


def _sizes(value: Tensor) -> list[int]:
    """The sizes of an input; those that are free get a number that is likely to be taken."""
    free = (_FREE if axis == 0 else _FREE_LENGTH for axis in range(value.dim()))
    sizes: Any = value.shape  # of the values of a graph, which may be symbols
    return [number if isinstance(size, torch.SymInt) else int(size) for size, number in zip(sizes, free, strict=True)]


def _random(sizes: list[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(sizes).to(dtype) if dtype.is_floating_point else torch.randint(0, 2, sizes).to(dtype)


def _onnx(path: Path) -> tuple[nn.Module, tuple[Any, ...]]:
    onnx2torch, onnx = required("onnx2torch", "onnx", "an ONNX file"), required("onnx", "onnx", "an ONNX file")
    try:
        model = onnx.load(path)
        module: nn.Module = onnx2torch.convert(model).eval()
    except NotImplementedError as error:
        raise HoplonError(
            f"expected operators that onnx2torch knows in {path}, got: {said(error)}; export the model by "
            "torch.onnx.export from its PyTorch source, or give that source as file.py:factory"
        ) from error
    except Exception as error:  # whatever protobuf and the converters raise
        raise DataError(f"expected an ONNX model that can be read in {path}, got: {said(error)}") from error
    held = {one.name for one in model.graph.initializer}
    args = []
    for one in (one for one in model.graph.input if one.name not in held):
        form = one.type.tensor_type
        free = (_FREE if axis == 0 else _FREE_LENGTH for axis in range(len(form.shape.dim)))
        sizes = [dim.dim_value or number for dim, number in zip(form.shape.dim, free, strict=True)]
        kind = onnx.helper.tensor_dtype_to_np_dtype(form.elem_type)
        args.append(_random(sizes, getattr(torch, kind.name)))
    _require_same(path, module, {one.name: arg for one, arg in zip(model.graph.input, args, strict=False)}, args)
    return module, (tuple(args),)


def _require_same(path: Path, module: nn.Module, named: Mapping[str, Tensor], args: list[Tensor]) -> None:
    """Refuse a conversion that computes something else than onnxruntime.

    Raises:
        DataError: says how far apart the outputs are.
    """
    onnxruntime = required("onnxruntime", "onnx", "an ONNX file")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {name: arg.numpy() for name, arg in named.items()})
    with torch.inference_mode():
        ours = [leaf for leaf in pytree.tree_leaves(module(*args)) if isinstance(leaf, Tensor)]
    for number, (one, other) in enumerate(zip(map(torch.as_tensor, wanted), ours, strict=True)):
        gap = (one.double() - other.double()).abs().max().item() if one.shape == other.shape else float("inf")
        if not gap <= _LARGEST_GAP * max(1.0, one.double().abs().max().item()):
            raise DataError(
                f"expected {path} to compute in PyTorch what it computes in onnxruntime, got outputs {number} that are "
                f"{gap:.3g} apart on random input; give the model's PyTorch source as file.py:factory"
            )


def _weights_alone(path: Path) -> tuple[nn.Module, tuple[Any, ...]]:
    what = "a pickle, which is never executed"
    with suppress(OSError, ValueError):
        content = plain_tensors(path.read_bytes()) if path.suffix != ".safetensors" else {}
        if isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values()):
            what = "weights without a network (a state dict)"
    raise HoplonError(
        f"expected a model in {path}, got {what}; write a factory that builds the network and loads them, "
        "file.py:factory that returns (module.eval(), example), or save it with torch.export.save as .pt2"
    )


MODEL_FILES: Mapping[str, Callable[[Path], tuple[nn.Module, tuple[Any, ...]]]] = {
    ".pt2": _exported,
    ".onnx": _onnx,
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".safetensors"), _weights_alone),
}
"""By ending of the file."""
