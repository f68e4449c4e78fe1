"""hoplon: what soft errors do to a trained network, where it is vulnerable, and what hardens it at which price."""

from __future__ import annotations

from hoplon import importance
from hoplon.campaign.bit_search import BitBoundary, bit_boundary
from hoplon.campaign.campaign import Campaign
from hoplon.campaign.forecasting import Forecast, forecast
from hoplon.campaign.rates import Rate
from hoplon.campaign.results import Results, load_results
from hoplon.campaign.stratified.strata import (
    ByBit,
    ByDeviation,
    ByFirstOrder,
    ByFunction,
    ByLayer,
    BySensitivity,
    Strata,
)
from hoplon.comparison.assessment import Assessment, Plan, assess
from hoplon.comparison.comparison import Comparison, compare
from hoplon.comparison.costs.flops import Flops, count_flops
from hoplon.comparison.rerunning import Rerun, replay_run
from hoplon.criteria.base import Criterion
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import Several
from hoplon.criteria.custom import Custom
from hoplon.criteria.detection import Detection
from hoplon.criteria.embedding import EmbeddingDistance
from hoplon.criteria.outcome import OUTCOME_NAMES, Outcome
from hoplon.criteria.regression import Deviation
from hoplon.criteria.tokens import PerplexityChange, TokenMatch
from hoplon.errors import CaptureError, DataError, HoplonError, SiteError, StoreError
from hoplon.faults.function import Function
from hoplon.faults.model import FaultModel
from hoplon.faults.multi_word import BitRate, Burst, Elements, Mixture
from hoplon.faults.sampling.base import Sampling
from hoplon.faults.sampling.measures import (
    Among,
    BitUniform,
    BottomScore,
    ElementUniform,
    LayerUniform,
    OpUniform,
    TopScore,
)
from hoplon.faults.sampling.plans import Exhaustive, Explicit, Stratified
from hoplon.faults.single_word import AdjacentBits, BitFlip, RandomValue, StuckAt, Zero
from hoplon.faults.table import FaultTable
from hoplon.formats.base import NumberFormat
from hoplon.formats.fixed import FixedPoint
from hoplon.formats.native import Native
from hoplon.formats.quantized import Quantized
from hoplon.importance.scores import Scores
from hoplon.program.capturing import capture
from hoplon.program.inputs import Inputs
from hoplon.program.inspection import FaultSpace, Inspection, inspect
from hoplon.program.program import Program
from hoplon.program.sites import GuardMemory, Memory, MemorySite, Values, ValueSite
from hoplon.protections.base import Protection
from hoplon.protections.export.bundle import load_bundle, save_bundle
from hoplon.protections.export.formats import export_aoti, export_onnx, export_pt2
from hoplon.protections.guards.aspis import Aspis
from hoplon.protections.guards.baselines.checksum import Checksum
from hoplon.protections.guards.baselines.secded import SecDedMemory
from hoplon.protections.guards.baselines.tmr_sparse import TMRSparse
from hoplon.protections.guards.baselines.zero_space import zero_space_decode, zero_space_encode
from hoplon.protections.guards.block_aspis import BlockAspis
from hoplon.protections.guards.known_bits.known_bits import KnownBits
from hoplon.protections.guards.parity.parity import Parity
from hoplon.protections.guards.tmr import TMR
from hoplon.protections.memory_guard import Guard, GuardReport, StaleGuardError
from hoplon.protections.ranges.bound import Bound
from hoplon.protections.ranges.inherent import inherent_ranges
from hoplon.protections.ranges.profile import Profile
from hoplon.protections.ranges.profiling import profile_activations, profile_ranges
from hoplon.protections.ranges.ranges import Ranges
from hoplon.protections.runtime.guarded_model import Guarded, guard
from hoplon.protections.runtime.hardened_module import HardenedModule
from hoplon.protections.runtime.lowering import harden, lower
from hoplon.protections.runtime.monitor import GuardEvent, UncorrectableMemory
from hoplon.protections.runtime.schedule import EveryForward, OnDemand, Rotating
from hoplon.protections.values.duplicate import Duplicate
from hoplon.protections.values.exceedance import Exceedances, exceedances
from hoplon.protections.values.policy import Clamp, Detect, Policy, RandomInRange, ToZero
from hoplon.protections.values.ranger import Ranger

__all__ = [
    "OUTCOME_NAMES",
    "AdjacentBits",
    "Among",
    "Aspis",
    "Assessment",
    "BitBoundary",
    "BitFlip",
    "BitRate",
    "BitUniform",
    "BlockAspis",
    "BottomScore",
    "Bound",
    "Burst",
    "ByBit",
    "ByDeviation",
    "ByFirstOrder",
    "ByFunction",
    "ByLayer",
    "BySensitivity",
    "Campaign",
    "CaptureError",
    "Checksum",
    "Clamp",
    "Comparison",
    "Criterion",
    "Custom",
    "DataError",
    "Detect",
    "Detection",
    "Deviation",
    "Duplicate",
    "ElementUniform",
    "EmbeddingDistance",
    "Elements",
    "EveryForward",
    "Exceedances",
    "Exhaustive",
    "Explicit",
    "FaultModel",
    "FaultSpace",
    "FaultTable",
    "FixedPoint",
    "Flops",
    "Forecast",
    "Function",
    "Guard",
    "GuardMemory",
    "GuardEvent",
    "GuardReport",
    "Guarded",
    "HardenedModule",
    "HoplonError",
    "Inputs",
    "Inspection",
    "KnownBits",
    "LayerUniform",
    "Memory",
    "MemorySite",
    "Mixture",
    "Native",
    "NumberFormat",
    "OnDemand",
    "OpUniform",
    "Outcome",
    "Parity",
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
    "Rotating",
    "Results",
    "Sampling",
    "SecDedMemory",
    "Several",
    "Scores",
    "SiteError",
    "StaleGuardError",
    "StoreError",
    "Strata",
    "Stratified",
    "StuckAt",
    "TMR",
    "TMRSparse",
    "ToZero",
    "TokenMatch",
    "TopK",
    "TopScore",
    "UncorrectableMemory",
    "ValueSite",
    "Values",
    "Zero",
    "assess",
    "bit_boundary",
    "capture",
    "compare",
    "forecast",
    "count_flops",
    "exceedances",
    "export_aoti",
    "export_onnx",
    "export_pt2",
    "guard",
    "harden",
    "importance",
    "inherent_ranges",
    "inspect",
    "load_bundle",
    "load_results",
    "lower",
    "profile_activations",
    "profile_ranges",
    "replay_run",
    "save_bundle",
    "zero_space_decode",
    "zero_space_encode",
]
