"""The fault table: columns, digests, files, and rows that make no sense."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given, strategies as st

from hoplon.errors import DataError, HoplonError, StoreError
from hoplon.faults import FaultTable, columns_of, series_to_words, words_to_series


def frame(**columns: object) -> pl.DataFrame:
    """Three value faults, the second of two words; `columns` replace those given here, None drops one."""
    rows: dict[str, object] = {
        "fault": [0, 1, 1, 2],
        "site": ["conv1:conv", "conv1:conv", "fc:linear", "fc:linear"],
        "element": [5, 0, 0, 7],
        "input": [0, 3, 3, 1],
        "format": ["float32", "float64", "float64", "float16"],
        "keep": pl.Series([2**32 - 1, 2**64 - 1, 2**64 - 1, 2**16 - 1], dtype=pl.UInt64),
        "flip": pl.Series([1 << 30, 1 << 63, 5, 1], dtype=pl.UInt64),
        "probability": [0.5, 0.25, 0.25, math.nan],
    } | columns
    return pl.DataFrame({name: values for name, values in rows.items() if values is not None})


def memory_frame() -> pl.DataFrame:
    return frame(input=None)


TABLES = {
    "values": FaultTable("values", frame()),
    "memory": FaultTable("memory", memory_frame()),
    "none": FaultTable.empty("values"),
    "observed": FaultTable("values", frame()).observed(
        before=torch.tensor([0x7FC00001, -1, 3, 4]), after=torch.tensor([1, 2**62, -1, 0])
    ),
}
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)


def test_columns_and_their_types() -> None:
    table = TABLES["values"]
    types = {name: dtype for name, dtype in table.frame.schema.items() if name not in ("site", "format")}
    assert types == {
        "fault": pl.Int64,
        "element": pl.Int64,
        "input": pl.Int64,
        "keep": pl.UInt64,
        "flip": pl.UInt64,
        "before": pl.UInt64,
        "after": pl.UInt64,
        "probability": pl.Float64,
    }
    assert table.frame.columns == columns_of("values")
    assert "input" not in columns_of("memory")
    assert isinstance(table.frame.schema["site"], pl.Enum)
    assert table.frame["before"].null_count() == 4


def test_length_counts_faults_not_words() -> None:
    assert (len(TABLES["values"]), TABLES["values"].frame.height) == (3, 4)
    assert len(TABLES["none"]) == 0


@each_table
def test_save_and_load_give_the_table_back(table: FaultTable, tmp_path: Path) -> None:
    path = tmp_path / "faults.parquet"
    table.save(path)
    loaded = FaultTable.load(path)
    assert loaded.frame.equals(table.frame)
    assert (loaded.target, loaded.digest()) == (table.target, table.digest())
    assert loaded == table
    assert hash(loaded) == hash(table)
    assert list(tmp_path.iterdir()) == [path]


def test_tables_differ_when_any_column_does() -> None:
    replaced = {
        "fault": [0, 1, 1, 3],
        "site": ["conv1:conv", "conv1:conv", "fc:linear", "conv1:conv"],
        "element": [5, 0, 0, 8],
        "input": [1, 3, 3, 1],
        "format": ["float32", "float64", "float64", "bfloat16"],
        "keep": pl.Series([2**32 - 1, 2**64 - 1, 2**64 - 1, 0], dtype=pl.UInt64),
        "flip": pl.Series([1 << 30, 1 << 63, 5, 2], dtype=pl.UInt64),
        "probability": [0.5, 0.25, 0.25, 0.5],
    }
    tables = [FaultTable("values", frame(**{name: values})) for name, values in replaced.items()]
    assert len({table.digest() for table in [*tables, *TABLES.values()]}) == len(replaced) + len(TABLES)
    assert TABLES["values"] != FaultTable.empty("values")
    assert FaultTable.empty("memory") != FaultTable.empty("values")
    assert TABLES["values"] != "values"


def test_the_digest_does_not_depend_on_categories_or_row_order_of_faults() -> None:
    wide = pl.Enum(["zzz", "fc:linear", "conv1:conv"])
    other = frame().with_columns(pl.col("site").cast(wide)).select(pl.all().gather([3, 0, 1, 2]))
    assert FaultTable("values", other).digest() == TABLES["values"].digest()
    assert FaultTable("values", other).frame["fault"].to_list() == [0, 1, 1, 2]


def test_the_digest_is_the_same_everywhere() -> None:
    # Written down once: a change here makes saved campaigns unrecognisable.
    assert TABLES["observed"].digest()[:16] == "eeae7baf022dcc3f"


def test_the_plan_is_free_of_what_was_observed() -> None:
    assert TABLES["observed"] != TABLES["values"]
    assert TABLES["observed"].plan() == TABLES["values"]
    assert series_to_words(TABLES["observed"].frame["before"]).tolist() == [0x7FC00001, -1, 3, 4]


def test_bits_are_those_that_a_change_can_touch() -> None:
    keep = pl.Series([2**32 - 1, 2**64 - 1, 2**32 - 1, 2**16 - 2], dtype=pl.UInt64)
    bits = FaultTable("values", frame(keep=keep)).bits
    assert (bits.name, bits.dtype) == ("bit", pl.Int64)
    assert bits.to_list() == [30, 63, None, 0]
    assert TABLES["values"].bits.to_list() == [30, 63, None, 0]
    assert TABLES["none"].bits.to_list() == []


def test_concat_numbers_the_faults_anew() -> None:
    gaps = FaultTable("values", frame(fault=[4, 9, 9, 11], site=["a", "b", "c", "d"]))
    table = FaultTable.concat([TABLES["values"], FaultTable.empty("values"), gaps])
    assert table.frame["fault"].to_list() == [0, 1, 1, 2, 3, 4, 4, 5]
    assert table.frame["site"].to_list() == [*TABLES["values"].frame["site"], "a", "b", "c", "d"]
    assert len(table) == 6
    assert FaultTable.concat([TABLES["observed"]]) == TABLES["observed"]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_words_survive_the_table(words: list[int]) -> None:
    tensor = torch.tensor(words, dtype=torch.int64)
    series = words_to_series(tensor)
    assert series.dtype == pl.UInt64
    assert series.to_list() == [word % 2**64 for word in words]
    assert torch.equal(series_to_words(series), tensor)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "faults.parquet"
    TABLES["values"].save(path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(StoreError, match="No space left on device"):
        TABLES["memory"].save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert FaultTable.load(path) == TABLES["values"]


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "nowhere").write_text("a file")
    with pytest.raises(StoreError, match=r"expected to write .*nowhere/faults.parquet, got Not a directory"):
        TABLES["values"].save(tmp_path / "nowhere" / "faults.parquet")
    with pytest.raises(DataError, match=r"fault table \(Parquet\) at .*faults.parquet"):
        FaultTable.load(tmp_path / "faults.parquet")


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    damaged, foreign = tmp_path / "damaged.parquet", tmp_path / "foreign.parquet"
    TABLES["values"].save(damaged)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    pl.DataFrame({"a": [1]}).write_parquet(foreign)
    with pytest.raises(DataError, match=r"fault table \(Parquet\) at .*damaged.parquet"):
        FaultTable.load(damaged)
    with pytest.raises(DataError, match=r"missing: fault, site.*; unknown: a"):
        FaultTable.load(foreign)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"element": None}, "missing: element; unknown: none"),
        ({"elment": [0, 0, 0, 0]}, "missing: none; unknown: elment"),
        ({"input": [0, None, 3, 1]}, "expected a value in every row of 'input', got 1 nulls"),
        ({"site": [None, "a", "b", "c"]}, "expected a value in every row of 'site', got 1 nulls"),
        ({"element": [0.5, 1.0, 2.0, 3.0]}, "expected column 'element' as Int64, got Float64"),
        ({"keep": [-1, 0, 0, 0]}, "expected column 'keep' as UInt64, got Int64"),
        ({"element": [-1, 0, 0, 0]}, "expected 'element' of at least 0, got -1"),
        ({"fault": [-1, 0, 0, 0]}, "expected 'fault' of at least 0, got -1"),
        ({"probability": [1.5, 0.0, 0.0, 0.0]}, r"expected 'probability' in \[0, 1\] or NaN, got 1.5"),
        ({"flip": [2**32, 0, 0, 0]}, r"expected 'flip' in \[0, 2\*\*32\) for float32, got 4294967296"),
        ({"keep": [0, 0, 0, 2**16]}, r"expected 'keep' in \[0, 2\*\*16\) for float16, got 65536"),
        ({"format": ["float31"] * 4}, "expected the name of a number format .* got 'float31'"),
        ({"input": [0, 3, 4, 1]}, "expected one input per value fault, got several for fault 1"),
        ({"site": ["a"] * 4}, "one row per word of a fault, got several for fault 1 at element 0 of a"),
    ],
)
def test_rows_that_make_no_sense_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        FaultTable("values", frame(**columns))


def test_targets_are_kept_apart() -> None:
    with pytest.raises(DataError, match="missing: input"):
        FaultTable("values", memory_frame())
    with pytest.raises(DataError, match="unknown: input"):
        FaultTable("memory", frame())
    with pytest.raises(HoplonError, match="expected target of FaultTable to be 'values' or 'memory', got 'weights'"):
        FaultTable("weights", frame())  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"tables of one target, got \['memory', 'values'\]"):
        FaultTable.concat([TABLES["values"], TABLES["memory"]])
    with pytest.raises(DataError, match="tables of one target, got no table"):
        FaultTable.concat([])


def test_observed_words_need_one_per_row() -> None:
    with pytest.raises(DataError, match="one word for each of 4 rows, got 4 before and 3 after"):
        TABLES["values"].observed(before=torch.zeros(4).long(), after=torch.zeros(3).long())
