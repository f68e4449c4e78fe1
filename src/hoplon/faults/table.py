"""The fault table: which words a campaign strikes, and how; saved, hashed and replayed anywhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, final

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hoplon.errors import DataError, checked, said
from hoplon.files import replacing
from hoplon.formats.named import format_named

Target = Literal["values", "memory"]

_NAMES = ("site", "format")
_OBSERVED = ("before", "after")
_WEIGHT = "weight"
MOST_ROWS = 20_000_000  # of one file; few bytes can hold many
_DIGEST = "hoplon.digest"  # in a file's metadata
_DTYPES: dict[str, type[pl.DataType]] = {
    "fault": pl.Int64,
    "site": pl.Enum,
    "element": pl.Int64,
    "input": pl.Int64,
    "format": pl.Enum,
    "keep": pl.UInt64,
    "flip": pl.UInt64,
    "before": pl.UInt64,
    "after": pl.UInt64,
    "probability": pl.Float64,
}
_OPTIONAL: dict[str, type[pl.DataType]] = {_WEIGHT: pl.Float64, "candidates": pl.Int64, "pooled": pl.Float64}


@checked
def words_to_series(words: Tensor) -> pl.Series:
    """Words as a UInt64 column.

    Args:
        words: int64, shape ``(n,)``, 64-bit words as two's complement.
    Example:
        >>> words_to_series(torch.tensor([-1])).to_list() == [2**64 - 1]
        True
    """
    return pl.Series(words.to(torch.int64).cpu().numpy().view(np.uint64))


@checked
def series_to_words(series: pl.Series) -> Tensor:
    """A UInt64 column without nulls as words: int64, shape ``(n,)``; undoes `words_to_series`."""
    return torch.from_numpy(series.cast(pl.UInt64).to_numpy().view(np.int64).copy())


@final
@checked
@dataclass(frozen=True, eq=False)
class FaultTable:
    """The faults of a campaign, one row per struck word; two tables are equal when their digests are.

    Args:
        target: what is struck; in "values" one fault meets one input, in "memory" all of them.
        frame: the rows. Sorted by `fault` here; `before` and `after` may be left out until observed.

    Columns: `fault` (Int64, not negative; several rows make one fault of several words) · `site` (Enum) ·
    `element` (Int64, row-major index without the batch axis) · `input` (Int64, value faults only) · `format`
    (Enum) · `keep`, `flip` (UInt64, ``after = (before & keep) ^ flip``) · `before`, `after` (UInt64, null
    until observed) · `probability` (Float64, of drawing this fault, the same in all its rows; NaN where it was chosen,
    not drawn, or where it has a density). The first row of a fault is its anchor, the place that was drawn. A table of
    faults that do not count alike has one more: `weight` (Float64, at least 0, the same in all rows of a fault), the
    share of the population that the fault stands for; it travels with the faults into every estimate made of them.
    Where weights were counted from faults that were drawn and not all run, `candidates` (Int64, the same in all rows of
    a fault) says from how many draws of the whole population. `pooled` (Float64): the weights for limits, where some
    faults narrow these and have the weight 0 (see `hoplon.campaign.design.Design.weighted`).

    Raises:
        DataError: a column is missing, unknown, of another dtype, null or out of range; or one fault strikes
            a word twice, or several inputs.
    """

    target: Target
    frame: pl.DataFrame

    def __post_init__(self) -> None:
        optional = [name for name in _OPTIONAL if name in self.frame.columns]
        frame = _typed(self.frame, [*columns_of(self.target), *optional])
        _check_rows(frame)
        object.__setattr__(self, "frame", frame.sort("fault", maintain_order=True))

    def __len__(self) -> int:
        """The number of faults; the number of words is ``frame.height``."""
        return self.frame["fault"].n_unique()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FaultTable) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    @classmethod
    def empty(cls, target: Target) -> Self:
        """A table of no faults."""
        return cls(target, pl.DataFrame({name: [] for name in columns_of(target)}))

    @classmethod
    def concat(cls, tables: Sequence[FaultTable]) -> Self:
        """The faults of all tables, in order, numbered from 0.

        Raises:
            DataError: no table, tables of two targets, or only some with weights.
        """
        targets = {table.target for table in tables}
        if len(targets) != 1:
            raise DataError(f"expected tables of one target, got {sorted(targets) or 'no table'}")
        if len({table.weighted for table in tables}) != 1:
            raise DataError("expected tables that all have weights or all have none, got both")
        frames, first = [], 0
        for table in tables:
            number = table.frame["fault"].rank("dense").cast(pl.Int64) - 1 + first
            frames.append(table.frame.with_columns(number.alias("fault"), pl.col(_NAMES).cast(pl.String)))
            first += len(table)
        return cls(tables[0].target, pl.concat(frames))

    @property
    def weighted(self) -> bool:
        """True if the faults do not count alike: there is a column `weight`."""
        return _WEIGHT in self.frame.columns

    @property
    def bits(self) -> pl.Series:
        """Column `bit` (Int64): the position of the one bit that the change can touch, 0 = least significant, per row.

        Null for every other change: several bits, or none.
        """
        touched = ((self.frame["keep"] ^ self._all_ones) | self.frame["flip"]).alias("touched")
        position = pl.col("touched").bitwise_trailing_zeros().cast(pl.Int64)
        single = pl.col("touched").bitwise_count_ones() == 1
        return touched.to_frame().select(pl.when(single).then(position).alias("bit"))["bit"]

    @property
    def _all_ones(self) -> pl.Series:
        """The `keep` that keeps every bit, per row."""
        names = self.frame["format"].cast(pl.String)
        ones = {name: 2 ** format_named(name).bits - 1 for name in names.unique()}
        return names.replace_strict(ones, return_dtype=pl.UInt64) if ones else pl.Series([], dtype=pl.UInt64)

    def observed(self, *, before: Tensor, after: Tensor) -> FaultTable:
        """The table with the words found at run time: int64, one per row, in the order of the rows."""
        if len(before) != self.frame.height or len(after) != self.frame.height:
            found = f"{len(before)} before and {len(after)} after"
            raise DataError(f"expected one word for each of {self.frame.height} rows, got {found}")
        columns = [words_to_series(before).alias("before"), words_to_series(after).alias("after")]
        return FaultTable(self.target, self.frame.with_columns(columns))

    def only(self, faults: pl.Series) -> FaultTable:
        """The rows of these faults."""
        return FaultTable(self.target, self.frame.filter(pl.col("fault").is_in(faults.implode())))

    def unchanged(self) -> FaultTable:
        """The same places, with masks that change no bit."""
        keep, flip = self._all_ones.alias("keep"), pl.lit(0, dtype=pl.UInt64).alias("flip")
        return FaultTable(self.target, self.frame.with_columns(keep, flip))

    def plan(self) -> FaultTable:
        """The table as drawn, with nothing observed; its digest does not depend on the model's values."""
        nothing = [pl.lit(None, dtype=pl.UInt64).alias(name) for name in _OBSERVED]
        return FaultTable(self.target, self.frame.with_columns(nothing))

    def digest(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits; the same on every machine and after a save."""
        digest = hashlib.sha256(f"{self.target} {self.frame.height}".encode())
        for name in self.frame.columns:
            digest.update(f"\n{name}\n".encode())
            column = self.frame[name]
            if name in _NAMES:
                used = sorted(column.cast(pl.String).unique())
                digest.update(repr(used).encode())
                column = column.cast(pl.String).cast(pl.Enum(used)).to_physical().cast(pl.Int64)
            if name in _OBSERVED:
                digest.update(column.is_null().to_numpy().tobytes())
                column = column.fill_null(0)
            array = column.to_numpy()
            digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the table as Parquet: the file is there in full, or as it was before.

        Raises:
            StoreError: the file cannot be written (no permission, full disk).
        """
        with replacing(path) as new:
            self.frame.write_parquet(new, metadata={_DIGEST: self.digest()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a table written by `save`.

        Raises:
            DataError: the file is missing, damaged, or not a fault table.
        """
        try:
            frame = read_frame(path)
        except (OSError, ValueError) as error:
            raise DataError(f"expected a fault table (Parquet) at {path}, got {said(error)}") from error
        with Path(path).open("rb") as file:
            digest = pl.read_parquet_metadata(file).get(_DIGEST)
        table = cls("values" if "input" in frame.columns else "memory", frame)
        if digest not in (None, table.digest()):
            raise DataError(f"expected {path} as it was saved, got other faults: its digest is another")
        return table


def read_frame(path: str | os.PathLike[str]) -> pl.DataFrame:
    """Return the table in a Parquet file.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: no Parquet, or a damaged file.
    """
    try:
        rows = pl.scan_parquet(Path(path), glob=False, hive_partitioning=False).select(pl.len()).collect().item()
        if rows > MOST_ROWS:
            raise ValueError(f"{rows:,} rows, more than hoplon writes")
        return pl.read_parquet(Path(path), glob=False, hive_partitioning=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(said(error)) from error


@checked
def columns_of(target: Target) -> list[str]:
    """The columns of a table, in order; memory faults meet every input, so they name none."""
    return list(dtypes_of(target))


def dtypes_of(target: Target) -> dict[str, type[pl.DataType]]:
    """The columns of a table with their dtypes, in order."""
    return {name: dtype for name, dtype in _DTYPES.items() if name != "input" or target == "values"}


def _typed(frame: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """The frame with exactly `columns`, in this order and with their dtypes."""
    missing = [name for name in columns if name not in frame.columns and name not in _OBSERVED]
    unknown = [name for name in frame.columns if name not in columns]
    if missing or unknown:
        found = f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        raise DataError(f"expected the columns {', '.join(columns)}, got {found}")
    nothing = [pl.lit(None, dtype=pl.UInt64).alias(n) for n in _OBSERVED if n not in frame.columns]
    typed = []
    for column in frame.with_columns(nothing).select(columns):
        name = column.name
        dtype = (_DTYPES | _OPTIONAL)[name]
        wanted = dtype.__name__
        if name not in _OBSERVED and column.null_count():
            raise DataError(f"expected a value in every row of {name!r}, got {column.null_count()} nulls")
        try:
            typed.append(_as_enum(column) if name in _NAMES else _as_number(column, dtype()))
        except pl.exceptions.PolarsError as error:
            raise DataError(f"expected column {name!r} as {wanted}, got {column.dtype}: {said(error)}") from error
    return pl.DataFrame(typed)


def _as_enum(column: pl.Series) -> pl.Series:
    """Names as Enum; one that is Enum already keeps its categories."""
    if isinstance(column.dtype, pl.Enum):
        return column
    text = column.cast(pl.String)
    return text.cast(pl.Enum(text.unique(maintain_order=True)))


def _as_number(column: pl.Series, wanted: pl.DataType) -> pl.Series:
    """Numbers as `wanted`, where that loses nothing."""
    if wanted.is_integer() and column.dtype.is_float():
        raise pl.exceptions.InvalidOperationError("a float may lose its fraction")
    return column.cast(wanted)


def _check_rows(frame: pl.DataFrame) -> None:
    """Refuse rows out of range, words struck twice by one fault, and faults with several inputs."""
    for name in ("fault", "element", "input"):
        lowest = frame[name].min() if name in frame.columns else None
        if isinstance(lowest, int) and lowest < 0:
            raise DataError(f"expected {name!r} of at least 0, got {lowest}")
    impossible = frame.filter(~pl.col("probability").is_nan() & ~pl.col("probability").is_between(0, 1))
    if impossible.height:
        raise DataError(f"expected 'probability' in [0, 1] or NaN, got {impossible['probability'][0]}")
    _check_weights(frame)
    for name in frame["format"].cast(pl.String).unique():
        bits = format_named(name).bits
        rows = frame.filter(pl.col("format") == name)
        for mask in ("keep", "flip"):
            largest = rows[mask].max()
            if isinstance(largest, int) and largest >= 2**bits:
                raise DataError(f"expected {mask!r} in [0, 2**{bits}) for {name}, got {largest}")
    place = [name for name in ("fault", "site", "element", "input") if name in frame.columns]
    twice = frame.filter(frame.select(place).is_duplicated())
    if twice.height:
        where = f"fault {twice['fault'][0]} at element {twice['element'][0]} of {twice['site'][0]}"
        raise DataError(f"expected one row per word of a fault, got several for {where}")
    if "input" in frame.columns:
        several = frame.select("fault", "input").unique().filter(pl.col("fault").is_duplicated())
        if several.height:
            first = several["fault"].sort()[0]
            raise DataError(f"expected one input per value fault, got several for fault {first}")


def _check_weights(frame: pl.DataFrame) -> None:
    """Refuse weights and numbers of candidates out of range."""
    for name in {_WEIGHT, "pooled"} & set(frame.columns):
        bad = frame.filter(~pl.col(name).is_finite() | (pl.col(name) < 0))
        if bad.height:
            raise DataError(f"expected {name!r} of at least 0 and finite, got {bad[name][0]}")
    if "candidates" in frame.columns and (frame["candidates"] < 1).any():
        raise DataError(f"expected 'candidates' of at least 1, got {frame['candidates'].min()!r}")
