from .guarded_model import GuardedModel as GuardedModel, guard as guard
from .hardened_module import HardenedModule as HardenedModule
from .lowering import harden as harden, lower as lower
from .monitor import GuardEvent as GuardEvent, GuardMonitor as GuardMonitor, UncorrectableMemory as UncorrectableMemory
from .schedule import EveryForward as EveryForward, OnDemand as OnDemand, Rotating as Rotating, When as When
