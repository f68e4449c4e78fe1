"""Raw rates: units, ranges, factors, and a table in which every row can be checked."""

from __future__ import annotations

import pytest

from hoplon.assurance.raw_rate import RawRate, known_rate, known_rates
from hoplon.errors import HoplonError


def test_units_are_converted_both_ways() -> None:
    """1 FIT/Mbit = 1 / (10^9 h x 10^6 bits)."""
    assert RawRate.of(1.0, unit="FIT/Mbit").per_bit_hour == pytest.approx(1e-15, rel=1e-12)
    assert RawRate.of(1e-12, unit="1/bit/h").fit_per_mbit == pytest.approx(1000.0, rel=1e-12)
    rate = RawRate.of(2e-12, unit="1/bit/h", low=1e-12, high=3e-12)
    assert rate.range_fit_per_mbit == pytest.approx((1000.0, 3000.0))
    assert rate.upsets_fit(bits=500_000) == pytest.approx(1000.0)
    assert rate.upsets_per_hour(bits=500_000) == pytest.approx(1e-6)


def test_resnet20_by_hand() -> None:
    """0.27 M float32 weights at 700 to 1,200 FIT/Mbit: 6,048 to 10,368 upsets in 10^9 hours."""
    rate = known_rate("iec-61508-2")
    bits = 270_000 * 32
    low, high = rate.range_fit_per_mbit
    assert (low * bits / 1e6, high * bits / 1e6) == pytest.approx((6048.0, 10368.0))
    assert rate.upsets_fit(bits) == pytest.approx(8208.0)


def test_factors_multiply_rate_and_range_and_are_kept() -> None:
    rate = RawRate.of(10, unit="FIT/Mbit", low=8, high=20).times("altitude", 5).times("thermal neutrons", 2)
    assert rate.fit_per_mbit == 100
    assert rate.range_fit_per_mbit == (80, 200)
    assert rate.factors == (("altitude", 5), ("thermal neutrons", 2))
    assert str(rate) == ("100 FIT/Mbit [80, 200] (given; the user's own), = 10 x 5 (altitude) x 2 (thermal neutrons)")


def test_behind_a_code_only_what_it_does_not_see_is_left() -> None:
    rate = RawRate.of(1000, unit="FIT/Mbit", shares=(0.9, 0.07, 0.03))
    behind = rate.behind_ecc()
    assert behind.fit_per_mbit == pytest.approx(30.0)
    assert behind.shares == (0.0, 0.0, 1.0)
    parity = rate.behind_ecc(corrects=0, detects=1)
    assert parity.fit_per_mbit == pytest.approx(100.0)
    assert parity.shares == pytest.approx((0.0, 0.7, 0.3))
    assert RawRate.of(1000, unit="FIT/Mbit").behind_ecc().fit_per_mbit == 0
    with pytest.raises(HoplonError, match="detects what it corrects"):
        rate.behind_ecc(corrects=2, detects=1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"low_fit_per_mbit": 2.0}, "within its range"),
        ({"high_fit_per_mbit": 0.5}, "within its range"),
        ({"shares": (0.5, 0.4, 0.0)}, "sum to 1"),
        ({"shares": (1.0,)}, "sum to 1"),
        ({"fit_per_mbit": -1.0}, "fit_per_mbit"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(HoplonError, match=said):
        RawRate(**{"fit_per_mbit": 1.0, **fields})  # type: ignore[arg-type]


def test_every_row_of_the_table_has_a_source_and_says_when_it_is_secondary() -> None:
    assert set(known_rates()) == {
        "iec-61508-2",
        "li-sc17-16nm",
        "spartan-6-block-memory",
        "spartan-6-configuration-memory",
    }
    for name, row in known_rates().items():
        assert row["low_fit_per_mbit"] <= row["fit_per_mbit"] <= row["high_fit_per_mbit"]
        said = str(known_rate(name))
        assert row["source"] in said
        assert ("secondary source" in said) == row["secondary"]
    with pytest.raises(HoplonError, match="iec-61508-2"):
        known_rate("sram")
