from .flops import Flops as Flops, count_flops as count_flops
from .latency import measure as measure
from .live_time import live_shares as live_shares, measured_step_seconds as measured_step_seconds
