"""Modules from a folder of the user's, kept as that folder's own: two folders may hold files of one name."""

from __future__ import annotations

import builtins
import hashlib
import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import cloudpickle

_LOCK = RLock()
_held: dict[str, dict[str, ModuleType]] = {}  # by folder, then by name
_entered: list[str] = []


def module_of_file(path: Path) -> ModuleType:
    """Import a file, which can import what lies beside it: now, and whenever its functions run."""
    folder = str(path.parent)
    name = f"hoplon_user_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_loader(name, _Loader(name, str(path), folder))
    assert spec is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up by name
    with beside(folder):
        _Loader(name, str(path), folder).exec_module(module)
    cloudpickle.register_pickle_by_value(module)  # another process could not import it
    return module


@contextmanager
def beside(folder: str) -> Iterator[None]:
    """A scope in which imports find what lies in a folder first; what they find there leaves ``sys.modules`` with it.

    Never looked for in the folder are modules of the standard library and of hoplon, and those of installed packages
    that are loaded already. Other processes get functions and classes of the folder by value.
    """
    if _entered[-1:] == [folder]:  # also in a thread that the scope waits for
        yield
        return
    with _LOCK:
        own = _held.setdefault(folder, {})
        heads = {entry.name.partition(".")[0] for entry in Path(folder).iterdir()}
        others = _taken_out(lambda head, module: head in heads and not _is_fixed(head) and not _lies_in(module, folder))
        sys.modules.update(own)
        finder = _Finder(folder)
        sys.meta_path.insert(0, finder)
        _entered.append(folder)
        try:
            yield
        finally:
            _entered.pop()
            sys.meta_path.remove(finder)
            own.update(_taken_out(lambda head, module: head in finder.heads or module in own.values()))
            sys.modules.update(others)


def _taken_out(chosen: Callable[[str, ModuleType], bool]) -> dict[str, ModuleType]:
    """The modules that are chosen by the first part of their name and themselves, loaded no more."""
    found = {name: module for name, module in [*sys.modules.items()] if chosen(name.partition(".")[0], module)}
    for name in found:
        del sys.modules[name]
    return found


def _is_fixed(head: str) -> bool:
    if head in sys.stdlib_module_names or head in ("__main__", "hoplon", "hoplon_studies"):
        return True
    return bool({"site-packages", "dist-packages"} & {*Path(_place(sys.modules.get(head))).parts})


def _lies_in(module: ModuleType, folder: str) -> bool:
    return Path(folder) in Path(_place(module)).parents


def _place(module: ModuleType | None) -> str:
    """The file of a module, or the first folder of a package without one; empty for others."""
    return getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules in one folder, and in the packages it holds."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.heads = {name.partition(".")[0] for name in _held[folder]}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        head = name.partition(".")[0]
        if _is_fixed(head) or (path is not None and head not in self.heads):
            return None
        spec = PathFinder.find_spec(name, [self._folder] if path is None else path)
        if spec is None or (spec.loader is None and path is None and PathFinder.find_spec(name) is not None):
            return None  # a plain folder is a package only where there is no other
        self.heads.add(head)
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations = list(spec.submodule_search_locations)
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, self._folder)
        return spec


class _Loader(SourceFileLoader):
    """Loads a file whose import statements look into a folder first."""

    def __init__(self, name: str, path: str, folder: str) -> None:
        super().__init__(name, path)
        self._folder = folder

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": partial(_import, self._folder)}
        super().exec_module(module)


def _import(
    folder: str,
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    """In the place of ``__import__``, for modules of the folder."""
    if level == 0 and _is_fixed(name.partition(".")[0]):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    with beside(folder):
        return builtins.__import__(name, globals, locals, fromlist or (), level)
