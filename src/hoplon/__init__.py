"""hoplon: what soft errors do to a trained network, where it is vulnerable, and what hardens it at which price."""

from __future__ import annotations

from hoplon import importance
from hoplon.assessment import Assessment, Plan, assess
from hoplon.campaign import Campaign
from hoplon.capture import capture
from hoplon.compare import Comparison, compare
from hoplon.criteria import (
    OUTCOME_NAMES,
    Criterion,
    Custom,
    Detection,
    Deviation,
    EmbeddingDistance,
    Outcome,
    PerplexityChange,
    Several,
    TokenMatch,
    TopK,
)
from hoplon.data import Inputs
from hoplon.errors import CaptureError, DataError, HoplonError, SiteError, StoreError
from hoplon.faults import (
    AdjacentBits,
    BitFlip,
    BitRate,
    Burst,
    Elements,
    FaultModel,
    FaultTable,
    Function,
    Mixture,
    RandomValue,
    StuckAt,
    Zero,
)
from hoplon.flops import Flops, count_flops
from hoplon.forecast import Forecast, forecast
from hoplon.formats import FixedPoint, Native, NumberFormat, Quantized
from hoplon.harden import (
    TMR,
    Aspis,
    Clamp,
    HardenedModule,
    Policy,
    RandomInRange,
    Ranger,
    ToZero,
    UncorrectableMemory,
    harden,
    lower,
)
from hoplon.importance import Scores
from hoplon.inspection import FaultSpace, Inspection, inspect
from hoplon.overlay import GuardReport, Protection
from hoplon.program import Program
from hoplon.ranges import Bound, Profile, Ranges, inherent_ranges, profile_activations, profile_ranges
from hoplon.rerun import Rerun, replay_run
from hoplon.results import Rate, Results, load_results
from hoplon.sampling import (
    Among,
    BottomScore,
    ElementUniform,
    Exhaustive,
    Explicit,
    LayerUniform,
    OpUniform,
    Sampling,
    Stratified,
    TopScore,
)
from hoplon.sites import Memory, MemorySite, Values, ValueSite

__all__ = [
    "OUTCOME_NAMES",
    "AdjacentBits",
    "Among",
    "Aspis",
    "Assessment",
    "BitFlip",
    "BitRate",
    "BottomScore",
    "Bound",
    "Burst",
    "Campaign",
    "CaptureError",
    "Clamp",
    "Comparison",
    "Criterion",
    "Custom",
    "DataError",
    "Detection",
    "Deviation",
    "ElementUniform",
    "EmbeddingDistance",
    "Elements",
    "Exhaustive",
    "Explicit",
    "FaultModel",
    "FaultSpace",
    "FaultTable",
    "FixedPoint",
    "Flops",
    "Forecast",
    "Function",
    "GuardReport",
    "HardenedModule",
    "HoplonError",
    "Inputs",
    "Inspection",
    "LayerUniform",
    "Memory",
    "MemorySite",
    "Mixture",
    "Native",
    "NumberFormat",
    "OpUniform",
    "Outcome",
    "PerplexityChange",
    "Plan",
    "Policy",
    "Profile",
    "Program",
    "Protection",
    "Quantized",
    "RandomInRange",
    "RandomValue",
    "Ranger",
    "Ranges",
    "Rate",
    "Rerun",
    "Results",
    "Sampling",
    "Several",
    "Scores",
    "SiteError",
    "StoreError",
    "Stratified",
    "StuckAt",
    "TMR",
    "ToZero",
    "TokenMatch",
    "TopK",
    "TopScore",
    "UncorrectableMemory",
    "ValueSite",
    "Values",
    "Zero",
    "assess",
    "capture",
    "compare",
    "forecast",
    "count_flops",
    "harden",
    "importance",
    "inherent_ranges",
    "inspect",
    "load_results",
    "lower",
    "profile_activations",
    "profile_ranges",
    "replay_run",
]
