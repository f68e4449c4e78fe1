"""Places of the important weights: by layer, by magnitude, between data sets and scores, and as a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import scipy
import torch
from torch import Tensor

from hoplon.errors import Count, Fraction, HoplonError, checked
from hoplon.importance.scores import Scores
from hoplon.program.program import Program

_QUANTILES = {"min": 0.0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1.0}


@checked
def by_layer(scores: Scores, fraction: Fraction = 0.01) -> pl.DataFrame:
    """Count the most and the least important weights in each storage.

    The first row's ``top_of_layer`` is the critical share of the first layer.

    Args:
        fraction: of all scored weights, in (0, 1], at either end.
    Returns:
        One row per storage in the order of the scores: ``layer``, ``weights``, ``top`` and ``bottom`` (counts),
        ``top_of_layer`` and ``bottom_of_layer`` (shares of the storage's weights; null for one without), ``top_share``
        and ``bottom_share`` (shares of all such weights), ``score`` (the mean).
    Raises:
        HoplonError: a fraction out of range.
    Source:
        Aspis, figures 8, 10 and 12.
    Example:
        >>> by_layer(Scores({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0, 0.0])}), 0.25)["top"].to_list()
        [1, 0]
    """
    ends = {"top": scores.top(fraction), "bottom": _bottom(scores, fraction)}
    count = scores.count(fraction)
    rows = []
    for name, score in scores.values.items():
        row: dict[str, Any] = {"layer": name, "weights": score.numel()}
        for end, chosen in ends.items():
            inside = len(chosen[name])
            row |= {end: inside, f"{end}_of_layer": inside / score.numel() if score.numel() else None}
            row[f"{end}_share"] = inside / count
        rows.append(row | {"score": float(score.double().mean()) if score.numel() else None})
    return pl.DataFrame(rows, infer_schema_length=None)


@checked
def magnitudes(program: Program, scores: Scores, *, fraction: Fraction = 0.01, count: Count = 100) -> pl.DataFrame:
    """Quantiles of the magnitude of all scored weights, of the most and of the least important ones.

    Args:
        program: the one that was scored.
        fraction: that makes the most and the least important.
        count: how many largest and smallest weights the cutoffs part from the rest.
    Returns:
        Rows "all", "top", "bottom" in ``weights``: ``n``, ``min``, ``q25``, ``median``, ``q75``, ``max``; and
        ``low_cutoff``, ``high_cutoff``: the ``count``-th smallest and the ``count``-th largest magnitude (null for
        fewer weights).
    Raises:
        HoplonError: scores of another program; a count below 1.
    Source:
        Aspis, Table IV.
    """
    memory = program.memory()
    scores.require_shapes(memory)
    sizes = {name: memory[name].detach().reshape(-1).double().abs().cpu() for name in scores.values}
    everything = {name: torch.arange(len(part)) for name, part in sizes.items()}
    chosen = {"all": everything, "top": scores.top(fraction), "bottom": _bottom(scores, fraction)}
    rows = []
    for which, indices in chosen.items():
        found = torch.cat([sizes[name][part.cpu()] for name, part in indices.items()]).sort().values
        row: dict[str, Any] = {"weights": which, "n": len(found)}
        row |= {name: float(np.quantile(found.numpy(), q)) for name, q in _QUANTILES.items()}
        enough = len(found) >= count
        row["low_cutoff"] = float(found[count - 1]) if enough else None
        row["high_cutoff"] = float(found[-count]) if enough else None
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


@checked
def overlap(scores: Mapping[str, Scores], fraction: Fraction = 0.01) -> pl.DataFrame:
    """Compare the important weights of several scores, or of several data sets.

    Args:
        scores: by name; all of the same storages.
        fraction: that makes a weight important.
    Returns:
        One row per pair: ``first``, ``second``, ``important`` (weights on each side), ``common``, ``share`` (of the
        important ones that are common), ``jaccard``, ``chance`` (the share that chance gives), ``correlation``
        (Spearman's, over all weights; null where a score is the same everywhere).
    Raises:
        HoplonError: fewer than two scores, or scores of different storages.
    Source:
        Aspis, section IV-A.
    """
    if len(scores) < 2:
        raise HoplonError(f"expected at least two scores to compare, got {len(scores)}")
    shapes = {name: {site: tuple(s.shape) for site, s in found.values.items()} for name, found in scores.items()}
    rows = []
    for first, second in combinations(scores, 2):
        if shapes[first] != shapes[second]:
            raise HoplonError(f"expected scores of the same storages, got others in {second!r} than in {first!r}")
        one, other = _mask(scores[first], fraction), _mask(scores[second], fraction)
        common, important = int((one & other).sum()), int(one.sum())
        flat = [_flat(scores[name], list(shapes[first])).numpy() for name in (first, second)]
        constant = any(part.min() == part.max() for part in flat)
        row: dict[str, Any] = {"first": first, "second": second, "important": important, "common": common}
        row |= {"share": common / important, "jaccard": common / (2 * important - common)}
        row |= {"chance": important / len(one)}
        rows.append(row | {"correlation": None if constant else float(scipy.stats.spearmanr(*flat).statistic)})
    return pl.DataFrame(rows, infer_schema_length=None)


@checked
def heat_map(scores: Scores, *, cells: Count = 64) -> pl.DataFrame:
    """The scores of every storage in equal stretches of row-major indices, for a map of layer x weight.

    Args:
        cells: per storage; a smaller one has one per weight.
    Returns:
        One row per cell: ``layer``, ``cell``, ``start`` (first weight), ``weights``, ``mean`` and ``max`` of the
        scores, and ``rank``: the share of all scored weights that score no higher than the maximum, in (0, 1].
    Raises:
        HoplonError: fewer than one cell.
    Source:
        Aspis, figures 7, 9 and 11.
    """
    ordered = _flat(scores, list(scores.values)).sort().values
    rows = []
    for name, score in scores.values.items():
        flat = score.reshape(-1).double().cpu()
        number, start = min(cells, len(flat)), 0
        for cell, part in enumerate(flat.tensor_split(number) if number else ()):
            rank = int(torch.searchsorted(ordered, part.max(), right=True)) / len(ordered)
            row: dict[str, Any] = {"layer": name, "cell": cell, "start": start, "weights": len(part)}
            rows.append(row | {"mean": float(part.mean()), "max": float(part.max()), "rank": rank})
            start += len(part)
    return pl.DataFrame(rows, infer_schema_length=None)


def _bottom(scores: Scores, fraction: float) -> dict[str, Tensor]:
    return Scores({name: -score for name, score in scores.values.items()}).top(fraction)


def _flat(scores: Scores, names: list[str]) -> Tensor:
    return torch.cat([scores[name].reshape(-1).double().cpu() for name in names])


def _mask(scores: Scores, fraction: float) -> Tensor:
    """Return a mask of the important weights, storages in the order of their names: bool, shape ``(weights,)``."""
    parts = {name: torch.zeros(score.numel(), dtype=torch.bool) for name, score in sorted(scores.values.items())}
    for name, indices in scores.top(fraction).items():
        parts[name][indices.cpu()] = True
    return torch.cat(list(parts.values()))
