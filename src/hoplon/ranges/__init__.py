"""The range of every activation: known from the function, or observed on calibration data."""

from __future__ import annotations

from hoplon.ranges.bound import Bound, ChannelBounds
from hoplon.ranges.channels import ChannelAxis, axis_in_value
from hoplon.ranges.histogram import Histogram
from hoplon.ranges.inherent import ACTIVATION_KINDS, INHERENT, inherent_range, inherent_ranges
from hoplon.ranges.profile import Profile, QuantileOf, SiteProfile
from hoplon.ranges.ranges import Ranges
from hoplon.ranges.streaming import profile_activations, profile_ranges

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
