"""The axis of channels, in one sample and in a whole value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from hoplon.errors import HoplonError, checked, no_match
from hoplon.program.layout import BatchLayout, WholeLayout
from hoplon.program.program import Program
from hoplon.program.sites import ValueSite

ChannelAxis = int | Mapping[str, int]
"""The axis of channels among those of one sample, of all sites or by pattern on their names; -1 is the last."""


def channel_axis(program: Program, site: ValueSite, wanted: ChannelAxis | None = None) -> int | None:
    """The axis of a site's channels among those of one sample, counted from 0; None for a single number.

    Args:
        wanted: where they are. By default, and where no pattern fits: the first axis of three or more, the last of one
            or two. The shape alone cannot tell a picture with its channels last, whose first axis are its rows.
    Raises:
        HoplonError: no such axis, or one that the batch is folded with; names the site and the way out.
    """
    axes = len(site.shape)
    if not axes:
        return None
    chosen = wanted if isinstance(wanted, int) else _fitting(site.name, wanted or {})
    axis = (0 if axes > 2 else axes - 1) if chosen is None else chosen
    if not -axes <= axis < axes:
        raise HoplonError(
            f"expected a channel axis in [{-axes}, {axes}) for {site.name}, a sample of which has shape {site.shape}, "
            f"got {axis}; channel_axis takes a mapping from patterns on names to axes"
        )
    if axis_in_value(program, site.name, axis % axes) is None:
        raise HoplonError(
            f"expected channels of {site.name} on an axis of their own, got axis {axis % axes} of samples of shape "
            f"{site.shape}, which its operator folds with the batch; name another axis, "
            f"channel_axis={{{site.name!r}: -1}}, or leave the site out with sites="
        )
    return axis % axes


def require_known(wanted: ChannelAxis | None, sites: Iterable[ValueSite]) -> None:
    """Refuse patterns that fit no site.

    Raises:
        HoplonError: names the pattern.
    """
    names = [site.name for site in sites]
    for pattern in () if wanted is None or isinstance(wanted, int) else wanted:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise no_match("profiled site", pattern, names)


@checked
def axis_in_value(program: Program, site: str, axis: int) -> int | None:
    """The axis of a whole value that is this axis of one sample; None where it is folded with the batch or missing."""
    layout, axes = program.layouts[program.site_steps[site]], len(program.value_site(site).shape)
    if axis >= axes:
        return None
    if isinstance(layout, WholeLayout):
        return axis + (layout.dropped is not None and layout.dropped <= axis)
    assert isinstance(layout, BatchLayout), layout
    folded = (layout.outer > 1) + (layout.fold > 1)
    if axis < layout.axis:
        return axis
    return None if axis < layout.axis + folded else axis - folded + 1


def axis_in_samples(program: Program, site: str, axis: int) -> int | None:
    """The same axis where ``Layout.samples_first`` has put the samples first."""
    layout = program.layouts[program.site_steps[site]]
    found = axis_in_value(program, site, axis) if isinstance(layout, WholeLayout) else axis
    return None if found is None else found + 1


def _fitting(name: str, patterns: Mapping[str, int]) -> int | None:
    return next((axis for pattern, axis in patterns.items() if fnmatchcase(name, pattern)), None)
