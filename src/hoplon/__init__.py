"""hoplon: what soft errors do to a trained network, where it is vulnerable, and what hardens it at which price."""

from __future__ import annotations

from hoplon.campaign import Campaign
from hoplon.capture import capture
from hoplon.criteria import OUTCOME_NAMES, Criterion, Deviation, Outcome, TopK
from hoplon.data import Inputs
from hoplon.errors import CaptureError, DataError, HoplonError, SiteError, StoreError
from hoplon.faults import BitFlip, FaultModel, FaultTable
from hoplon.overlay import GuardReport, Protection
from hoplon.program import Program
from hoplon.results import Rate, Results, load_results
from hoplon.sampling import ElementUniform, Sampling
from hoplon.sites import Memory, MemorySite, Values, ValueSite

__all__ = [
    "OUTCOME_NAMES",
    "BitFlip",
    "Campaign",
    "CaptureError",
    "Criterion",
    "DataError",
    "Deviation",
    "ElementUniform",
    "FaultModel",
    "FaultTable",
    "GuardReport",
    "HoplonError",
    "Inputs",
    "Memory",
    "MemorySite",
    "Outcome",
    "Program",
    "Protection",
    "Rate",
    "Results",
    "Sampling",
    "SiteError",
    "StoreError",
    "TopK",
    "ValueSite",
    "Values",
    "capture",
    "load_results",
]
