"""Scores of weights, and the weights with the highest ones."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self, final

from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import TypedDict

from hoplon.errors import DataError, Fraction, HoplonError, checked, no_match
from hoplon.faults.sampling.measures import highest
from hoplon.files import json_as
from hoplon.formats.tensor_files import load_tensors, save_tensors
from hoplon.registry import register

NOTE = "hoplon.scores"  # names the note of a file


@register("part", "scores")
@final
@checked
@dataclass(frozen=True, eq=False)
class Scores:
    """A score for every weight of some memory sites, and where it comes from.

    ``values`` maps the name of a memory site to a floating-point tensor of the shape of its storage; higher means more
    important. The rest is provenance: the score, the data it was computed on, its loss, the program's fingerprint, and
    the digest of the scored weights.

    Raises:
        HoplonError: no site, or a score that is not a finite number; names the site.
    """

    values: Mapping[str, Tensor]
    score: str = ""
    data: str = ""
    n_samples: int = 0
    batch: int = 0
    loss: str = ""
    fingerprint: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        if not self.total:
            raise HoplonError("expected scores of at least one weight, got none")
        for name, score in self.values.items():
            if not score.is_floating_point() or not bool(score.isfinite().all()):
                raise HoplonError(f"expected finite floating-point scores, got others in {name} ({score.dtype})")

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.values:
            raise no_match("scored site", site, list(self.values))
        return self.values[site]

    @cached_property
    def total(self) -> int:
        """Number of scored weights."""
        return sum(score.numel() for score in self.values.values())

    def count(self, fraction: Fraction) -> int:
        """Return the number of weights in the top ``fraction``: ``round(fraction * total)``, at least one.

        Raises:
            HoplonError: a fraction outside (0, 1].
        """
        return max(1, round(fraction * self.total))

    def top(self, fraction: Fraction) -> dict[str, Tensor]:
        """The weights with the highest scores of all sites together.

        Args:
            fraction: of the scored weights, in (0, 1].
        Returns:
            For every site the row-major indices of its chosen weights, int64, ascending; :meth:`count` in all. Equal
            scores go by the order of the sites, then by index.
        Example:
            >>> import torch
            >>> Scores({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([[3.0], [2.0]])}).top(0.5)
            {'a': tensor([0]), 'b': tensor([0])}
        """
        return highest(self.values, self.count(fraction))

    def require_shapes(self, memory: Mapping[str, Tensor]) -> None:
        """Refuse memory that lacks a scored storage, or has it in another shape.

        Raises:
            HoplonError: names the storage.
        """
        for name, score in self.values.items():
            shape = tuple(memory[name].shape) if name in memory else None
            if shape != tuple(score.shape):
                raise HoplonError(
                    f"expected a storage {name!r} of shape {tuple(score.shape)}, as scored, got {shape or 'none'}; "
                    "score this model"
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write safetensors, provenance in the header. The file appears whole or not at all.

        Raises:
            StoreError: the folder is not writable, or the disk is full.
        """
        about = {"sites": list(self.values)} | {part.name: getattr(self, part.name) for part in fields(self)[1:]}
        save_tensors(path, self.values, {NOTE: json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: no such file, or not a file of scores.
        """
        try:
            tensors, notes = load_tensors(path)
            if NOTE not in notes:
                raise ValueError("tensors that are no scores")
            about = json_as(_About, notes[NOTE])
            values = {name: tensors[name] for name in about.pop("sites")}
            return cls(values, **about)
        except LookupError as error:
            raise DataError(f"expected a file of scores in {path}, got none of {error}; save them again") from error
        except (OSError, ValueError) as error:
            raise DataError(f"expected a file of scores in {path}, got {error}; Scores.save writes one") from error


class _About(TypedDict):
    """The note of a file: sites in their order, and where the scores come from."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]

    sites: list[str]
    score: str
    data: str
    n_samples: int
    batch: int
    loss: str
    fingerprint: str
    weights: str
