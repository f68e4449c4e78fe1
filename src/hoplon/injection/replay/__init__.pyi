from .eager import EagerReplay as EagerReplay
from .golden import (
    Golden as Golden,
    GoldenStack as GoldenStack,
    InjectedWords as InjectedWords,
    Injections as Injections,
    Placement as Placement,
    ReplayStatistics as ReplayStatistics,
)
from .regions import RegionReplay as RegionReplay, fits as fits
from .replay import Replay as Replay
