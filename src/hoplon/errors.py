"""The errors hoplon raises for input it cannot use."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_NAMES_SHOWN = 3
_LONGEST = 200  # characters of what another library says


class HoplonError(ValueError):
    """One clear message about bad input; base of all the errors below."""


class CaptureError(HoplonError):
    """A model that cannot be captured."""


class DataError(HoplonError):
    """Data that cannot be used: shape, dtype, NaN, labels, no samples, a missing or damaged file."""


class SiteError(HoplonError):
    """A pattern or a site that matches nothing."""


class StoreError(HoplonError):
    """A run directory or file that cannot be read or written, or that belongs to another campaign."""


class HoplonWarning(UserWarning):
    """Something that works, but not as one would expect; says what and what it costs."""


def said(error: BaseException) -> str:
    """What an error of another library says, on one line of at most 200 characters.

    Example:
        >>> said(OSError("no space\n\n   left"))
        'no space left'
    """
    return " ".join(str(error).split())[:_LONGEST].rstrip(".") or type(error).__name__


def no_match(what: str, pattern: str, names: Sequence[str]) -> SiteError:
    """The error for a pattern that matches none of `names`, showing the nearest ones.

    Args:
        what: the kind of thing looked for, in the singular.
        pattern: what the caller asked for.
        names: all that could have matched, may be empty.
    Example:
        >>> print(no_match("site", "conv9", ["conv1", "conv2", "fc"]))
        no site matches 'conv9'; near names: conv2, conv1 (3 in all)
    """
    if not names:
        return SiteError(f"no {what} matches {pattern!r}; there is no {what} at all")
    near = difflib.get_close_matches(pattern, names, n=_NAMES_SHOWN) or list(names[:_NAMES_SHOWN])
    return SiteError(f"no {what} matches {pattern!r}; near names: {', '.join(near)} ({len(names)} in all)")
