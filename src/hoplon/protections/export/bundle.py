"""A hardened module as a folder: its graph with bounds, its guards and what they know, verified when it is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import torch
from annotated_types import MinLen
from pydantic import ConfigDict, StringConstraints
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, fx
from typing_extensions import TypedDict

from hoplon.errors import DataError, HoplonError, StoreError, checked, said
from hoplon.files import bring_back, json_as, read_bytes, replacing, stranger, write_json
from hoplon.formats.base import integer_view
from hoplon.formats.digest import digest_of_words
from hoplon.formats.tensor_files import write_tensors
from hoplon.program.archives.exported import MEMBERS, checked_members, graph_of
from hoplon.program.archives.members import members_of
from hoplon.protections.base import Overlay, Protection
from hoplon.protections.export.formats import export_pt2
from hoplon.protections.export.serialization import described, restored
from hoplon.protections.guards.voting import tied
from hoplon.protections.memory_guard import GuardReport, StaleGuardError
from hoplon.protections.runtime.bindings import tensors_of
from hoplon.protections.runtime.graph import hold_constants, own_memory
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.schedule import When

_FORMAT = 1
_INDEX, _MODEL, _GUARDS, _PARTS = "bundle.json", "model.pt2", "guards.safetensors", "descriptions.safetensors"
_FILES = (_MODEL, _GUARDS, _PARTS)
_CONSTANTS = "model/data/constants/tensor_"
_WEIGHTS = re.compile(r"model/data/(weights/weight|constants/tensor)_\d+")
_EARLY = re.compile(rb'"digest": "[0-9a-f]{64}"\s*}\s*\Z')
_OURS = re.compile("|".join(map(re.escape, (_INDEX, *_FILES))))


@checked
def save_bundle(module: HardenedModule, folder: str | os.PathLike[str]) -> None:
    """Write a hardened module into a folder, from which :func:`load_bundle` gives it back, guards armed.

    ``model.pt2`` is the graph with its bounds and weights, and runs without hoplon, and then without guards.
    ``guards.safetensors`` is the guards' own memory, ``descriptions.safetensors`` tensors of descriptions (scores),
    ``bundle.json`` the descriptions, digests of all files and of every tensor. Memory is checked and repaired first.
    An earlier bundle in the folder is replaced as a whole.

    Raises:
        HoplonError: what a file cannot hold: a model without a graph, a detector, duplicated operators, telemetry,
            gradients, protections that are not hoplon's own.
        UncorrectableMemory: a guard found weights that it cannot repair, which would be wrong in the file for good.
        StoreError: the folder holds something else, or cannot be written.
    """
    target = Path(folder)
    _require_storable(module)
    parts: dict[str, Tensor] = {}
    protections = [described(protection, parts) for protection in module.protections]
    when = described(module.monitor.when, parts)
    _require_replaceable(target)
    with replacing(target, ours=_OURS) as partial:
        partial.mkdir()
        export_pt2(module, partial / _MODEL, guards="drop")
        write_tensors(partial / _GUARDS, _guard_memory(module))
        write_tensors(partial / _PARTS, parts)
        files = {name: (partial / name).read_bytes() for name in _FILES}
        content = files[_MODEL]
        _require_readable(content)
        members, memory = _digests_of_members(content), module.memory()
        index = {
            "format": _FORMAT,
            "versions": {"hoplon": importlib.metadata.version("hoplon"), "torch": str(torch.__version__)},
            "label": module.overlay.label,
            "protections": protections,
            "when": when,
            "memory": {name: _words_of(tensor) for name, tensor in memory.items()},
            "bounds": {name: _words_of(tensor) for name, tensor in _more(content, members, memory).items()},
            "tied": [names for names in tied(memory) if len(names) > 1],
            "files": {name: _digest(file) for name, file in files.items()},
            "members": members,
        }
        write_json(partial / _INDEX, index)


@checked
def load_bundle(
    folder: str | os.PathLike[str], *, on_uncorrectable: Callable[[GuardReport], None] | None = None
) -> HardenedModule:
    """The hardened module of a folder, its guards armed and checked.

    Guards are armed on weights whose digests are those that were saved; where some are not, the guards are given what
    they knew then, and repair.

    Every file must be as it was saved, but for weights that the guards repair: then what they found is in ``events``
    and logged, and the weights have the digests that were saved. Digests find accidents, not forgers: who can write
    to the folder can write them as well. But nothing in the folder is run: it holds data, or is refused.

    The bounds are in the graph; ``overlay.values`` is empty, and ``protections`` is as it was.

    Args:
        on_uncorrectable: as for :func:`hoplon.harden`, from the first forward pass on.
    Raises:
        DataError: a missing or changed file, weights that are not as saved and cannot be repaired, another version's
            bundle; says which.
    """
    source = Path(folder)
    with contextlib.suppress(OSError):
        bring_back(source)  # what a killed process was about to replace
    index = _read_index(source)
    try:
        files = {name: _read(source / name) for name in _FILES if (source / name).exists()}
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"expected the files of a bundle in {source}, got {said(error)}; save it again") from error
    whole = _require_files(source, files, index)
    try:
        parts, knowledge = load(files.pop(_PARTS)), load(files.pop(_GUARDS))
    except SafetensorError as error:
        raise DataError(f"expected tensors in {source}, got {error}; save the bundle again") from error
    protections = tuple(restored(entry, parts, Protection) for entry in index["protections"])
    when = restored(index["when"], parts, When)
    runner, bounds = _read_graph(source / _MODEL, files.pop(_MODEL), index), index.get("bounds", {})
    _tie(runner, index["tied"])
    own_memory(runner)  # aligned, whatever the file's memory is, and laid out as it was
    try:
        over = Overlay(index["label"], {}, protections)
        module = HardenedModule(runner, over, when=when, on_uncorrectable=on_uncorrectable, bounds=bounds)
    except HoplonError as error:
        raise DataError(f"expected protections in {source} that fit its graph, got: {error}") from error
    held = tensors_of(module)
    _require_tensors(held, {**index["memory"], **bounds})
    if _changed(held, bounds):
        raise DataError(f"expected bounds in {source / _MODEL} as they were saved, got others; save the bundle again")
    changed = _changed(held, index["memory"])
    if whole and changed:
        raise DataError(f"expected {source / _MODEL} to hold the weights it was saved with, got others in {changed[0]}")
    if changed:
        _recall(module, knowledge, changed)
    _require_correct(module, index, source)
    return module


def _require_storable(module: HardenedModule) -> None:
    what = "telemetry" if module._counts and not module._detectors else "gradients" if module.gradients else ""
    if what:
        raise HoplonError(f"expected a module without {what}, which a graph in a file loses; lower without it")


def _require_readable(content: bytes) -> None:
    """Refuse a graph that loading would refuse."""
    try:
        checked_members(content)
    except ValueError as error:
        raise HoplonError(
            f"expected a graph of torch's own operators, plain tensors and inputs for a bundle, got {error}; "
            "export_pt2 writes the graph alone"
        ) from error


def _more(content: bytes, members: Mapping[str, str], memory: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a graph that are not the model's: ends of bounds per channel."""
    if not any(name.startswith(_CONSTANTS) for name in members):
        return {}
    graph = graph_of(content)
    hold_constants(graph)
    return {name: tensor for name, tensor in tensors_of(graph).items() if name not in memory}


def _require_replaceable(target: Path) -> None:
    """Refuse a target that is neither free nor a bundle, and nothing but that."""
    try:
        bring_back(target, _OURS)
        if os.path.lexists(target):
            if (other := stranger(target, _OURS)) is not None:
                raise ValueError(f"{other}, which hoplon did not write")
            if any(target.iterdir()):
                _index_in(read_bytes(target / _INDEX))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"expected a new folder or a bundle to replace, got {target} with something else in it ({error}); choose "
            "another"
        ) from error


def _guard_memory(module: HardenedModule) -> dict[str, Tensor]:
    return {
        f"{number}/{name}": tensor.detach().cpu().contiguous().clone()
        for number, guard in enumerate(module.monitor.guards)
        for name, tensor in guard.copies.items()
    }


def _words_of(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        "digest": digest_of_words(tensor),
    }


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _digests_of_members(content: bytes) -> dict[str, str]:
    """Digests of the members of a ``.pt2`` file, read whatever the sums in the archive say."""
    return {f"model/{name}": _digest(member) for name, member in members_of(content, MEMBERS).items()}


_Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""A text that messages can hold."""


class _Memory(TypedDict):
    """What is kept of a tensor."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    dtype: _Line
    shape: list[int]
    stride: list[int]
    digest: str


class _Index(TypedDict):
    """``bundle.json``."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    format: Literal[1]
    versions: dict[str, _Line]
    label: _Line
    protections: list[Any]
    when: Any
    memory: dict[_Line, _Memory]
    bounds: NotRequired[dict[_Line, _Memory]]
    tied: list[Annotated[list[_Line], MinLen(2)]]
    files: dict[str, str]
    members: dict[str, str]
    digest: NotRequired[str]  # in the place of the seal, in early versions


def _index_in(content: bytes) -> _Index:
    """Return the index of a bundle.

    Raises:
        ValueError: something else, or an index that is not as it was written.
    """
    early = _EARLY.search(content) is not None
    index: _Index = json_as(_Index, content, must_be_sealed=not early)
    digest = index.pop("digest", None)
    if early and digest != hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest():
        raise ValueError("content that is not as it was written: its digest is another")
    return index


def _read_index(source: Path) -> _Index:
    path = source / _INDEX
    try:
        index = _index_in(read_bytes(path))
    except OSError as error:
        raise DataError(f"expected a bundle in {source}, got {error}; hoplon.save_bundle writes one") from error
    except ValueError as error:
        raise DataError(
            f"expected {path} as format {_FORMAT} has it, got {error}; save the bundle again, with this hoplon"
        ) from error
    return index


def _read(file: Path) -> bytes:
    if file.is_symlink():
        raise ValueError(f"a link as {file.name}")
    return read_bytes(file, limit=sys.maxsize)


def _require_files(source: Path, files: Mapping[str, bytes], index: _Index) -> bool:
    """Refuse missing and changed files, all of them; False where nothing but weights changed."""
    missing = [name for name in _FILES if name not in files]
    changed = [name for name, content in files.items() if _digest(content) != index["files"].get(name)]
    if missing or (changed and (changed != [_MODEL] or not _only_weights(files[_MODEL], index["members"]))):
        raise DataError(
            "; ".join(
                [f"expected {name} in {source}, got no such file" for name in missing]
                + [f"expected {source / name} as it was saved, got changed content" for name in changed]
            )
            + "; save the bundle again"
        )
    return not changed


def _only_weights(content: bytes, saved: Mapping[str, str]) -> bool:
    """Return True if what changed in a ``.pt2`` file are raw weights alone."""
    try:
        now = _digests_of_members(content)
    except ValueError:
        return False
    changed = [name for name, digest in saved.items() if now.get(name) != digest]
    return now.keys() == saved.keys() and bool(changed) and all(_WEIGHTS.fullmatch(name) for name in changed)


def _read_graph(path: Path, content: bytes, index: _Index) -> fx.GraphModule:
    try:
        runner = graph_of(content)
    except ValueError as error:
        raise DataError(
            f"expected {path} to hold a graph and its tensors and nothing else, got {error}; it was written by torch "
            f"{index['versions'].get('torch', 'unknown')}: save the bundle again"
        ) from error
    hold_constants(runner)
    return runner


def _tie(runner: fx.GraphModule, groups: list[list[str]]) -> None:
    """Let names that shared a tensor share one again."""
    held = dict(runner.named_parameters(remove_duplicate=False)) | dict(runner.named_buffers(remove_duplicate=False))
    if unknown := {name for group in groups for name in group} - held.keys():
        raise DataError(f"expected tied tensors of the graph, got {min(unknown)!r}; save the bundle again")
    for first, *others in groups:
        for name in others:
            place, key = _place(runner, name)
            place[key] = _place(runner, first)[0][_place(runner, first)[1]]


def _place(runner: fx.GraphModule, name: str) -> tuple[dict[str, Any], str]:
    path, _, key = name.rpartition(".")
    owner = runner.get_submodule(path)
    return (owner._parameters if key in owner._parameters else owner._buffers), key


def _require_tensors(held: Mapping[str, Tensor], saved: Mapping[str, _Memory]) -> None:
    for name, wanted in saved.items():
        found = _words_of(held[name]) if name in held else {}
        for what in ("dtype", "shape", "stride"):
            if found.get(what) != wanted[what]:
                raise DataError(f"expected {name} with {what} {wanted[what]}, as saved, got {found.get(what, 'none')}")
    if more := [name for name in held if name not in saved]:
        raise DataError(f"expected the tensors that were saved, got {more[0]} as well; save the bundle again")


def _changed(held: Mapping[str, Tensor], saved: Mapping[str, _Memory]) -> list[str]:
    return [name for name, wanted in saved.items() if digest_of_words(held[name]) != wanted["digest"]]


def _recall(module: HardenedModule, knowledge: Mapping[str, Tensor], changed: list[str]) -> None:
    """Let the guards know what they knew when the bundle was saved, in the place of what they see now."""
    for number, (label, guard) in enumerate(module.monitor.armed):
        prefix = f"{number}/"
        saved = {name.removeprefix(prefix): tensor for name, tensor in knowledge.items() if name.startswith(prefix)}
        copies = guard.copies
        if copies.keys() != saved.keys() or any(
            copies[name].shape != tensor.shape or copies[name].dtype != tensor.dtype for name, tensor in saved.items()
        ):
            raise DataError(
                f"expected weights as they were saved, got others in {changed[0]}, and {label} cannot take up what it "
                "knew; save the bundle again"
            )
        with torch.inference_mode():
            for name, tensor in saved.items():
                integer_view(copies[name]).copy_(integer_view(tensor))


def _require_correct(module: HardenedModule, index: _Index, source: Path) -> None:
    """Check, which repairs; then the weights must be those that were saved."""
    try:
        report = module.check()
    except StaleGuardError as error:
        raise DataError(f"expected weights in {source} as they were saved, got others: {error}") from error
    left = _changed(module.memory(), index["memory"])
    if left or report.uncorrectable:
        raise DataError(
            f"expected weights in {source} as they were saved, got others in {', '.join(left or report.where)} that "
            f"{module.overlay.label} cannot repair; save the bundle again"
        )
