"""From what a user writes on the command line to a model or data."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError, Seed, UserCodeError, checked, failure_of, no_match
from hoplon.program.given.example import Example
from hoplon.program.inputs import Inputs, as_inputs
from hoplon.zoo import registry
from hoplon.zoo.data_files import picture_folder, read_lines
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.files import read_arrays
from hoplon.zoo.libraries import LIBRARIES, library_model
from hoplon.zoo.model_files import MODEL_FILES, file_model
from hoplon.zoo.seeding import Progress
from hoplon.zoo.user_modules import beside, module_of_file

_CALIBRATION_SHARE = 0.2  # as in section IV of the Ranger paper
_FEW = 20  # below so many samples, stored runs are of what the first ones leave


def is_factory(what: Literal["model", "data"], text: str) -> bool:
    """Return True if a text names code, which is imported to be used."""
    if what == "data":
        return ":" in text and not (text.endswith(".npz") or ".jsonl" in text or Path(text).is_dir())
    return ":" in text and text.partition(":")[0] not in LIBRARIES and Path(text).suffix not in MODEL_FILES


@checked
def resolve_model(text: str, *, seed: Seed = 0, progress: Progress | None = None) -> ZooModel:
    """The model that ``text`` names.

    Args:
        text: a name of the zoo; one of another library, such as ``torchvision:NAME`` (random weights drawn from
            ``seed``) or ``hf:FOLDER``; a ``.pt2`` or ``.onnx`` file; or ``package.module:factory`` or
            ``file.py:factory``, a function without arguments that returns the module, in eval mode, and an example of
            at least two samples: a tensor, a tuple of positional inputs or a mapping of keywords, or both, or an
            `Example`.
        seed: of the weights, where they are trained or drawn here.
        progress: told after every epoch, where a network is trained first.
    Raises:
        HoplonError: ``text`` is none of these, or the factory returns something else.
        UserCodeError: its file cannot be executed, or the factory raises; says what and where.
    """
    prefix, colon, name = text.partition(":")
    if colon and prefix in LIBRARIES:
        return library_model(prefix, name, seed=seed)
    if Path(text).suffix in MODEL_FILES:
        return file_model(text, seed=seed)
    if not is_factory("model", text):
        others = ", ".join(f"{prefix}:{library.placeholder}" for prefix, library in LIBRARIES.items())
        _check_known("zoo model", text, registry.model_names(), others=f"{others}, a .pt2 or .onnx file")
        return registry.model(text, seed=seed, progress=progress)
    made = _made(text)
    parts = made if isinstance(made, tuple) and len(made) in (2, 3) else (None, None)
    module, example = parts[0], _example_of(*parts[1:])
    if not isinstance(module, nn.Module) or example is None:
        raise HoplonError(
            f"expected {text} to return (module, example batch), (module, args, kwargs) or (module, hp.Example), got "
            f"{_described(made)}"
        )
    if module.training:
        raise HoplonError(f"expected the module of {text} in eval mode, got train mode; call .eval() in the factory")
    if isinstance(parts[1], Tensor) and (parts[1].ndim == 0 or len(parts[1]) < 2):
        raise HoplonError(
            f"expected an example batch of at least 2 samples from {text}, got shape {tuple(parts[1].shape)}; "
            f"the first axis is the batch"
        )
    return ZooModel(name=text, module=module, example=example)


def _example_of(args: Any, kwargs: Any = None) -> Example | Tensor | None:
    """The example that a factory gives, None for what is none."""
    if isinstance(args, Example | Tensor) and kwargs is None:
        return args
    if isinstance(args, Mapping) and kwargs is None:
        return Example(kwargs=dict(args))
    taken = isinstance(args, Tensor | tuple | list) and isinstance(kwargs, Mapping | None)
    return Example(tuple(args) if isinstance(args, list) else args, dict(kwargs or {})) if taken else None


@checked
def resolve_data(text: str) -> ZooData:
    """The data that ``text`` names.

    Args:
        text: a name of the zoo; an ``.npz`` file with arrays ``x``, in the dtype that the model takes, or several by
            keyword, and ``y``, labels, and optionally the same with ``_calibration`` at the end of their names,
            ``classes`` and ``time``, a number for each sample that says that they are a series in time; ``.jsonl`` with
            an object of inputs and ``label`` in each line, with ``text`` in the place of inputs as
            ``FILE.jsonl@FOLDER``, the folder of a transformers tokenizer; a folder of pictures with a folder for each
            class; or ``package.module:factory`` or ``file.py:factory``, a function without arguments that returns
            ``ZooData`` or anything that `as_inputs` takes, such as a data loader or a data set.

    Where no calibration part is given, a random 20 % of the samples become it, the same in every run, and the others
    are held out. Of a series in time, whose neighbours are nearly equal, and of fewer than 20 samples it is the first
    20 %.

    Raises:
        HoplonError: ``text`` is none of these, or the factory returns something else.
        UserCodeError: its file cannot be executed, or the factory raises; says what and where.
        DataError: the file cannot be read, or its arrays do not fit together.
    """
    if text.endswith(".npz"):
        return _npz_data(Path(text).expanduser())
    if ".jsonl" in text:
        return _divided(read_lines(text), name=text)
    if text not in registry.data_names() and Path(text).is_dir():
        inputs, classes = picture_folder(Path(text))
        return _divided(inputs, name=text, classes=classes)
    if not is_factory("data", text):
        _check_known("zoo data", text, registry.data_names(), others="an .npz or .jsonl file, a folder of pictures")
        return registry.data(text)
    made = _made(text)
    if isinstance(made, ZooData):
        return made
    try:
        return _divided(as_inputs(made), name=text)  # type: ignore[arg-type]
    except DataError as error:
        raise DataError(f"{error}; it comes from {text}") from error


def _check_known(what: str, text: str, names: tuple[str, ...], *, others: str) -> None:
    if text not in names:
        raise HoplonError(f"{no_match(what, text, names)}; or give {others}, package.module:factory or file.py:factory")


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"


def _made(text: str) -> object:
    """What the factory that ``text`` names returns; its code prints to stderr and has nobody to ask."""
    with Path(os.devnull).open(encoding="utf-8") as nobody, redirect_stdout(sys.stderr):
        stdin, sys.stdin = sys.stdin, nobody
        try:
            with _importable(text) as factory:
                return factory()
        except HoplonError:
            raise
        except (Exception, SystemExit) as error:  # whatever its author's code raises
            raise UserCodeError(
                f"expected {text} to work, got {failure_of(error)}; mend it there, or run hoplon --debug for all of it"
            ) from error
        finally:
            sys.stdin = stdin


@contextmanager
def _importable(text: str) -> Iterator[Callable[[], object]]:
    """The factory that ``text`` names, in a scope in which it can import what lies beside it."""
    source, _, name = text.rpartition(":")
    if source.endswith(".py"):
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise HoplonError(f"expected a Python file before the colon, got {source}, which does not exist")
        module = module_of_file(path)
        with beside(str(path.parent)):
            yield _factory(module, name, text)
        return
    folder = str(Path.cwd())
    sys.path.append(folder)  # after what is installed, which a file there must not stand for
    try:
        yield _factory(_module_named(source, text), name, text)
    finally:
        sys.path.remove(folder)


def _module_named(source: str, text: str) -> ModuleType:
    if not all(part.isidentifier() for part in source.split(".")):
        raise HoplonError(f"expected package.module:factory or file.py:factory, got {text!r}")
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        if error.name is None or not (source == error.name or source.startswith(f"{error.name}.")):
            raise  # the module is there; something that it imports is not
        raise HoplonError(
            f"expected a module that can be imported before the colon of {text!r}, got {source!r} ({error}); "
            f"install it, run from its folder, or give file.py:factory"
        ) from None


def _factory(module: ModuleType, name: str, text: str) -> Callable[[], object]:
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    factory = getattr(module, name, None)
    if factory is None:
        raise no_match(f"factory in {text.rpartition(':')[0]}", name, functions)
    if not callable(factory):
        raise HoplonError(f"expected {text} to be a function, got {_described(factory)}")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise HoplonError(f"expected {text} to be a function that needs no arguments, got: {error}") from None
    made: Callable[[], object] = factory
    return made


_CALIBRATION, _OTHERS = "_calibration", ("classes", "time")
_OPTIONAL = (f"x{_CALIBRATION}", f"y{_CALIBRATION}", *_OTHERS)  # beside x and y


def _wanted(names: Sequence[str]) -> Sequence[str]:
    """The arrays of a file that are read: x and y and what belongs to them, or all, where inputs have keywords."""
    inputs = [name for name in names if name != "y" and name not in _OPTIONAL]
    if "x" in names or not inputs:
        return ("x", "y", *(name for name in _OPTIONAL if name in names))
    return names


def _npz_data(path: Path) -> ZooData:
    arrays = read_arrays(path, _wanted)
    classes = tuple(str(name) for name in arrays["classes"].tolist()) if "classes" in arrays else ()
    name = path.name
    whole = _inputs_of({key: array for key, array in arrays.items() if not key.endswith(_CALIBRATION)}, path, name)
    own = {key: array for key, array in arrays.items() if key.endswith(_CALIBRATION)}
    if not own:
        if "time" in arrays:
            _check_time(arrays["time"], len(whole), path)
        return _divided(whole, name=name, classes=classes, series="time" in arrays)
    calibration = _inputs_of(
        {key.removesuffix(_CALIBRATION): array for key, array in own.items()}, path, f"{name}, calibration"
    )
    if calibration.names != whole.names:
        raise DataError(f"expected a calibration part of every input in {path}, got {', '.join(own)}")
    return ZooData(name=name, calibration=calibration, held_out=whole, classes=classes)


def _inputs_of(arrays: Mapping[str, np.ndarray[Any, Any]], path: Path, name: str) -> Inputs:
    """One part of the arrays of a file: ``x``, or all others by keyword."""
    tensors = {key: _tensor(array, key, path) for key, array in arrays.items() if key not in _OTHERS}
    y = tensors.pop("y", None)
    return Inputs(tensors["x"] if [*tensors] == ["x"] else tensors, y, name=name)


def _tensor(array: np.ndarray[Any, Any], name: str, path: Path) -> Tensor:
    if array.dtype.kind not in "biuf":
        raise DataError(f"expected numbers in the array {name} of {path}, got dtype {array.dtype}")
    if name.startswith("y") and array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def _check_time(time: np.ndarray[Any, Any], count: int, path: Path) -> None:
    if time.shape != (count,) or time.dtype.kind not in "iuf" or not (time[1:] >= time[:-1]).all():
        raise DataError(
            f"expected a number that never falls for each of {count} samples in the array time of {path}, got "
            f"{time.dtype} of shape {time.shape}; save the samples in their order, or leave time out"
        )


def _divided(inputs: Inputs, *, name: str, classes: tuple[str, ...] = (), series: bool = False) -> ZooData:
    count = len(inputs)
    if count < 2:
        raise DataError(f"expected at least 2 samples in {name}, to calibrate with and to hold out, got {count}")
    border = max(1, int(count * _CALIBRATION_SHARE))
    ordered = series or count < _FEW
    order = torch.arange(count) if ordered else torch.randperm(count, generator=torch.Generator().manual_seed(0))
    share = f"{'first' if ordered else 'random'} {100 * border / count:.3g} %"
    return ZooData(
        name=name,
        calibration=replace(inputs.take(order[:border].sort().values), name=f"{name}, {share}"),
        held_out=inputs.take(order[border:].sort().values),
        classes=classes,
    )
