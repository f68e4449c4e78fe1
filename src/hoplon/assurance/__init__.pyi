from .baseline import Baseline as Baseline
from .failures_in_time import FailureRate as FailureRate, Use as Use, failure_rate as failure_rate
from .gate import Claim as Claim, Gate as Gate, Judgement as Judgement, record as record
from .raw_rate import RawRate as RawRate, known_rate as known_rate, known_rates as known_rates
from .stored_runs import stored_upsets as stored_upsets
from .upsets import Upsets as Upsets, guard_upsets as guard_upsets, upsets_of as upsets_of
