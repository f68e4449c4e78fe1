from . import export as export, guards as guards, ranges as ranges, runtime as runtime, values as values
from .base import Overlay as Overlay, Protection as Protection, ValueProtection as ValueProtection, overlay as overlay
from .guards.voting import distinct as distinct
from .memory_guard import (
    Change as Change,
    Guard as Guard,
    GuardReport as GuardReport,
    StaleGuardError as StaleGuardError,
    StorageGuard as StorageGuard,
    change as change,
    of_turn as of_turn,
)
