"""The bounds chosen for the sites of a program, and where they come from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar, final

from pydantic import ConfigDict, with_config

from hoplon import files
from hoplon.errors import DataError, HoplonError, checked, no_match
from hoplon.program.program import Program
from hoplon.protections.ranges.bound import Bound, ChannelBounds
from hoplon.registry import register

T = TypeVar("T")
LAST_BITS = 2.0**-16  # sums in another order, at other batch sizes and numbers of threads, differ by less of the result


@register("part", "ranges")
@with_config(ConfigDict(extra="forbid"))
@final
@checked
@dataclass(frozen=True)
class Ranges:
    """A bound for each profiled site.

    ``bounds`` by site name in execution order; ``channels`` has bounds per channel where those were asked for.
    ``fingerprint`` is that of the profiled program (empty: bounds of no particular weights), ``n_samples`` how many
    samples were seen, ``choice`` how the bounds were chosen, ``versions`` what computed them. ``slack`` is the share of
    its larger end by which :class:`hoplon.Ranger` widens each bound, for the last bits of other kernels.
    """

    bounds: Mapping[str, Bound]
    channels: Mapping[str, ChannelBounds] = field(default_factory=dict)
    program: str = ""
    fingerprint: str = ""
    data: str = ""
    n_samples: int = 0
    choice: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    slack: float = field(default=0.0, compare=False)

    def __getitem__(self, site: str) -> Bound:
        if site not in self.bounds:
            raise no_match("profiled site", site, list(self.bounds))
        return self.bounds[site]

    def __contains__(self, site: object) -> bool:
        return site in self.bounds

    def __len__(self) -> int:
        return len(self.bounds)

    def check(self, program: Program) -> None:
        """Refuse a program that lacks a bounded site.

        Raises:
            HoplonError: names the site and the profiled model.
        """
        outputs = {site.name for site in program.value_sites}
        foreign = [name for name in self.bounds if name not in outputs]
        if foreign:
            raise HoplonError(
                f"expected ranges of operator outputs of {program.name}, got site {foreign[0]!r} profiled on "
                f"{self.program or 'another model'}; profile this model"
            )

    def for_any_weights(self) -> Self:
        """The same bounds for every model that has these sites: a copy in half precision, a model trained further."""
        return replace(self, fingerprint="")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; floats come back exactly. The file appears whole or not at all."""
        write_json(path, self)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote: the file, or a folder with ``ranges.json`` in it, as ``hoplon profile`` makes.

        Raises:
            DataError: no such file, or not a file of ranges.
        """
        if Path(path).is_dir():
            path = Path(path) / "ranges.json"

        return read_json(path, "a file of ranges", cls)


def write_json(path: str | os.PathLike[str], content: object) -> None:
    """Write a JSON file that appears whole or not at all; a dataclass in it by its fields, or its ``to_plain()``.

    Raises:
        StoreError: the folder is not writable, or the disk is full.
    """

    def plain(value: Any) -> Any:
        return value.to_plain() if hasattr(value, "to_plain") else vars(value)

    files.write_json(path, json.loads(json.dumps(content, allow_nan=False, default=plain)))


def read_json(path: str | os.PathLike[str], what: str, schema: type[T]) -> T:
    """Return the dataclass ``schema`` that a JSON document describes.

    Raises:
        DataError: no such file, or another document.
    """
    try:
        found: T = files.read_json(path, schema)
        return found
    except OSError as error:
        raise DataError(f"expected {what}, got {error}; save() writes one") from error
    except (ValueError, OverflowError) as error:
        raise DataError(f"expected {what} in {path}, got content it cannot hold: {error}") from error
