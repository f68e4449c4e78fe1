from __future__ import annotations

import pytest

from hoplon import errors
from hoplon.errors import CaptureError, DataError, HoplonError, SiteError, StoreError, no_match


@pytest.mark.parametrize("error", [CaptureError, DataError, SiteError, StoreError])
def test_every_error_is_a_hoplon_error_and_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, HoplonError)
    assert issubclass(error, ValueError)


def test_no_match_shows_the_nearest_names_and_their_count() -> None:
    names = [f"layer{i}.conv" for i in range(30)] + ["fc.weight"]
    error = no_match("parameter", "fc.wieght", names)
    assert isinstance(error, SiteError)
    assert str(error) == "no parameter matches 'fc.wieght'; near names: fc.weight (31 in all)"


def test_no_match_falls_back_to_the_first_names() -> None:
    error = no_match("site", "zzz", ["conv1", "conv2", "fc", "head"])
    assert str(error) == "no site matches 'zzz'; near names: conv1, conv2, fc (4 in all)"


def test_no_match_among_nothing_says_so() -> None:
    assert str(no_match("site", "conv", [])) == "no site matches 'conv'; there is no site at all"


def test_public_errors_are_documented() -> None:
    assert all(getattr(errors, name).__doc__ for name in vars(errors) if name.endswith("Error"))
