"""From what a user writes on the command line to a model or data."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hoplon.errors import DataError, HoplonError, Seed, UserCodeError, checked, failure_of, no_match
from hoplon.program.inputs import Inputs
from hoplon.zoo import registry
from hoplon.zoo.entries import ZooData, ZooModel
from hoplon.zoo.files import read_arrays
from hoplon.zoo.seeding import Progress, seeded
from hoplon.zoo.torchvision_ops import import_torchvision
from hoplon.zoo.user_modules import beside, module_of_file

_TORCHVISION = "torchvision:"
_PIXELS = {"inception_v3": 299}
_CALIBRATION_SHARE = 0.2  # as in section IV of the Ranger paper
_FEW = 20  # below so many samples, stored runs are of what the first ones leave


def is_factory(what: Literal["model", "data"], text: str) -> bool:
    """Return True if a text names code, which is imported to be used."""
    return ":" in text and not (text.startswith(_TORCHVISION) if what == "model" else text.endswith(".npz"))


@checked
def resolve_model(text: str, *, seed: Seed = 0, progress: Progress | None = None) -> ZooModel:
    """The model that ``text`` names.

    Args:
        text: a name of the zoo; ``torchvision:NAME`` (random weights drawn from ``seed``); or
            ``package.module:factory`` or ``file.py:factory``, a function without arguments that returns the
            module, in eval mode, and an example batch of at least two samples.
        seed: of the weights, where they are trained or drawn here.
        progress: told after every epoch, where a network is trained first.
    Raises:
        HoplonError: ``text`` is none of these, or the factory returns something else.
        UserCodeError: its file cannot be executed, or the factory raises; says what and where.
    """
    if text.startswith(_TORCHVISION):
        return _torchvision_model(text, seed=seed)
    if not is_factory("model", text):
        _check_known("zoo model", text, registry.model_names(), others="torchvision:NAME")
        return registry.model(text, seed=seed, progress=progress)
    made = _made(text)
    module, example = made if isinstance(made, tuple) and len(made) == 2 else (None, None)
    if not isinstance(module, nn.Module) or not isinstance(example, Tensor):
        raise HoplonError(f"expected {text} to return (module, example batch), got {_described(made)}")
    if module.training:
        raise HoplonError(f"expected the module of {text} in eval mode, got train mode; call .eval() in the factory")
    if example.ndim == 0 or len(example) < 2:
        raise HoplonError(
            f"expected an example batch of at least 2 samples from {text}, got shape {tuple(example.shape)}; "
            f"the first axis is the batch"
        )
    return ZooModel(name=text, module=module, example=example)


@checked
def resolve_data(text: str) -> ZooData:
    """The data that ``text`` names.

    Args:
        text: a name of the zoo; an ``.npz`` file with arrays ``x``, in the dtype that the model takes, and
            ``y``, integer labels, and optionally ``x_calibration``, ``y_calibration``, ``classes`` and ``time``, a
            number for each sample that says that they are a series in time; or ``package.module:factory`` or
            ``file.py:factory``, a function without arguments that returns ``ZooData`` or ``Inputs``.

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
    if not is_factory("data", text):
        _check_known("zoo data", text, registry.data_names(), others="an .npz file")
        return registry.data(text)
    made = _made(text)
    if isinstance(made, ZooData):
        return made
    if isinstance(made, Inputs):
        return _divided(made, name=text)
    raise HoplonError(f"expected {text} to return ZooData or Inputs, got {_described(made)}")


def _check_known(what: str, text: str, names: tuple[str, ...], *, others: str) -> None:
    if text not in names:
        raise HoplonError(f"{no_match(what, text, names)}; or give {others}, package.module:factory or file.py:factory")


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return f"a value of type {type(value).__name__}"


def _torchvision_model(text: str, *, seed: int) -> ZooModel:
    name = text.removeprefix(_TORCHVISION)
    models = import_torchvision().models
    names = models.list_models(module=models)  # classification; detection and the like live in submodules
    if name not in names:
        raise no_match("torchvision classification model", name, names)
    # These two warn unless told that the slow initialisation of their papers is meant.
    options = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
    with seeded(seed):
        module: nn.Module = models.get_model(name, weights=None, **options)
    pixels = _PIXELS.get(name, 224)
    example = torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(seed))
    return ZooModel(name=text, module=module.eval(), example=example)


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


def _npz_data(path: Path) -> ZooData:
    arrays = read_arrays(path, ("x", "y"), optional=("x_calibration", "y_calibration", "classes", "time"))
    classes = tuple(str(name) for name in arrays["classes"].tolist()) if "classes" in arrays else ()
    name = path.name
    whole = Inputs(_tensor(arrays["x"], "x", path), _tensor(arrays["y"], "y", path), name=name)
    if "x_calibration" not in arrays:
        if "time" in arrays:
            _check_time(arrays["time"], len(whole), path)
        return _divided(whole, name=name, classes=classes, series="time" in arrays)
    labels = _tensor(arrays["y_calibration"], "y_calibration", path) if "y_calibration" in arrays else None
    calibration = Inputs(_tensor(arrays["x_calibration"], "x_calibration", path), labels, name=f"{name}, calibration")
    return ZooData(name=name, calibration=calibration, held_out=whole, classes=classes)


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
