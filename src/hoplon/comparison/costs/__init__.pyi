from .flops import Flops as Flops
from .flops import count_flops as count_flops
from .latency import measure as measure
