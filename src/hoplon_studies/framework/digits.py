"""Values as cells of a page, with as many digits as are known."""

from __future__ import annotations

import math

from hoplon_studies.framework.rows import Row, Value

_WHOLE, _MEASURED = 6, 4
_PART = 5  # the last digit shown is at most a fifth of the wider half of the interval


def cell(value: Value) -> str:
    """A value as a cell of a Markdown table: in full up to six digits, which exact and published values keep within.

    Example:
        >>> cell(20018880), cell(24.723), cell(0.000123456789), cell("a|b"), cell(None)
        ('20,018,880', '24.723', '0.0001235', 'a\\\\|b', '')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    digits = repr(value).partition("e")[0].replace(".", "").lstrip("-0")
    if len(digits) <= _WHOLE:
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10**_MEASURED else f"{value:,.{_MEASURED}g}"


def roughly(value: float) -> str:
    """A positive value to two digits.

    Example:
        >>> roughly(334.7), roughly(13.46), roughly(1.96)
        ('330', '13', '2')
    """
    places = 1 - math.floor(math.log10(value))
    return cell(round(value, places))


def here(row: Row, *, absent: str = "–", unit: bool = True) -> str:
    """The value found with its limits, which say how many digits are known; ``absent`` where there is none.

    Example:
        >>> here(Row("Fig. 6", "a", "b", "share", "%", here=26.6412, low=25.43, high=27.88))
        '26.6 [25.4, 27.9] %'
    """
    if row.here is None:
        return absent
    words = row.unit if unit else ""
    if row.low is None or row.high is None or not isinstance(row.here, int | float):
        return f"{cell(row.here)} {words}".rstrip()
    width = max(row.high - row.here, row.here - row.low)
    value, low, high = (rounded(one, width) for one in (row.here, row.low, row.high))
    return f"{value} [{low}, {high}] {words}".rstrip()


def rounded(value: float, width: float) -> str:
    """A value to the digits that an interval of this half-width leaves known.

    Example:
        >>> rounded(0.0, 0.08), rounded(59.1, 7.2), rounded(99.99871, 0.004), rounded(-0.1, 5.5)
        ('0', '59', '99.9987', '0')
    """
    if not value or not width:
        return cell(value)
    decimals = max(0, -math.floor(math.log10(width / _PART)))
    return f"{value:z,.{decimals}f}"
