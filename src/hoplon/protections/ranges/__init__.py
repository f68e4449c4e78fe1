"""The range of every activation: known from the function, or observed on calibration data."""

from __future__ import annotations

from hoplon.protections.ranges.bound import Bound, ChannelBounds
from hoplon.protections.ranges.channels import ChannelAxis, axis_in_value
from hoplon.protections.ranges.histogram import Histogram
from hoplon.protections.ranges.inherent import ACTIVATION_KINDS, INHERENT, inherent_range, inherent_ranges
from hoplon.protections.ranges.profile import Profile, QuantileOf, SiteProfile
from hoplon.protections.ranges.profiling import profile_activations, profile_ranges
from hoplon.protections.ranges.ranges import Ranges

__all__ = [
    "ACTIVATION_KINDS",
    "Bound",
    "ChannelAxis",
    "ChannelBounds",
    "Histogram",
    "Profile",
    "QuantileOf",
    "Ranges",
    "SiteProfile",
    "axis_in_value",
    "INHERENT",
    "inherent_range",
    "inherent_ranges",
    "profile_activations",
    "profile_ranges",
]
