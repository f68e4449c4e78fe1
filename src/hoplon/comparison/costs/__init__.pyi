from .flops import Flops as Flops, count_flops as count_flops
from .latency import measure as measure
