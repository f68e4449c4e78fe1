# A model, its sites and its data
from .program.capturing import capture as capture
from .program.given.example import Example as Example
from .program.inputs import Inputs as Inputs
from .program.inspection import inspect as inspect
from .program.program import Program as Program
from .program.sites import GuardMemory as GuardMemory, Memory as Memory, Values as Values

# How a word changes
from .faults.single_word import BitFlip as BitFlip, RandomValue as RandomValue, StuckAt as StuckAt, Zero as Zero
from .faults.table import FaultTable as FaultTable

# What counts as harm
from .criteria.classification import TopK as TopK
from .criteria.custom import Custom as Custom
from .criteria.detection import Detection as Detection
from .criteria.outcome import Outcome as Outcome
from .criteria.regression import Deviation as Deviation
from .criteria.tokens import TokenMatch as TokenMatch

# How bad is it
from .campaign.campaign import Campaign as Campaign
from .campaign.forecasting import forecast as forecast
from .campaign.results import Results as Results, load_results as load_results

# Where it is
from .importance.scores import Scores as Scores

# What fixes it
from .protections.ranges.profiling import profile_activations as profile_activations, profile_ranges as profile_ranges
from .protections.ranges.ranges import Ranges as Ranges
from .protections.values.ranger import Ranger as Ranger
from .protections.guards.aspis import Aspis as Aspis
from .protections.guards.known_bits.known_bits import KnownBits as KnownBits
from .protections.guards.parity.parity import Parity as Parity
from .protections.guards.tmr import TMR as TMR
from .protections.runtime.guarded_model import guard as guard
from .protections.runtime.lowering import harden as harden
from .protections.export.bundle import load_bundle as load_bundle, save_bundle as save_bundle
from .protections.export.formats import export_onnx as export_onnx, export_pt2 as export_pt2

# What it bought, at what price
from .comparison.assessment import assess as assess
from .comparison.comparison import Comparison as Comparison, compare as compare
from .comparison.rerunning import rerun as rerun

# From a probability to a decision
from .assurance.failures_in_time import failure_rate as failure_rate
from .assurance.gate import Gate as Gate
from .assurance.raw_rate import RawRate as RawRate

# What is raised
from .errors import HoplonError as HoplonError

# Rooms
from . import (
    assurance as assurance,
    campaign as campaign,
    comparison as comparison,
    criteria as criteria,
    errors as errors,
    faults as faults,
    formats as formats,
    importance as importance,
    injection as injection,
    program as program,
    protections as protections,
    registry as registry,
    report as report,
    stats as stats,
    zoo as zoo,
)
from .campaign.stratified import strata as strata
from .comparison import costs as costs
from .faults import sampling as sampling
from .protections import export as export, guards as guards, ranges as ranges, runtime as runtime, values as values
