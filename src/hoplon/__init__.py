"""hoplon: what soft errors do to a trained network, where it is vulnerable, and what hardens it at which price."""

from __future__ import annotations

from hoplon import importance
from hoplon.assessment import Assessment, Plan, assess
from hoplon.campaign import Campaign
from hoplon.capture import capture
from hoplon.compare import Comparison, compare
from hoplon.criteria import OUTCOME_NAMES, Criterion, Deviation, Outcome, TopK
from hoplon.data import Inputs
from hoplon.errors import CaptureError, DataError, HoplonError, SiteError, StoreError
from hoplon.faults import BitFlip, FaultModel, FaultTable
from hoplon.harden import TMR, Aspis, HardenedModule, Ranger, UncorrectableMemory, harden, lower
from hoplon.importance import Scores
from hoplon.overlay import GuardReport, Protection
from hoplon.program import Program
from hoplon.ranges import Ranges, profile_ranges
from hoplon.results import Rate, Results, load_results
from hoplon.sampling import ElementUniform, Sampling
from hoplon.sites import Memory, MemorySite, Values, ValueSite

__all__ = [
    "OUTCOME_NAMES",
    "Aspis",
    "Assessment",
    "BitFlip",
    "Campaign",
    "CaptureError",
    "Comparison",
    "Criterion",
    "DataError",
    "Deviation",
    "ElementUniform",
    "FaultModel",
    "FaultTable",
    "GuardReport",
    "HardenedModule",
    "HoplonError",
    "Inputs",
    "Memory",
    "MemorySite",
    "Outcome",
    "Plan",
    "Program",
    "Protection",
    "Ranger",
    "Ranges",
    "Rate",
    "Results",
    "Sampling",
    "Scores",
    "SiteError",
    "StoreError",
    "TMR",
    "TopK",
    "UncorrectableMemory",
    "ValueSite",
    "Values",
    "assess",
    "capture",
    "compare",
    "harden",
    "importance",
    "load_results",
    "lower",
    "profile_ranges",
]
