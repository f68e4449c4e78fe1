from . import export as export, guards as guards, ranges as ranges, runtime as runtime, values as values
from .base import Overlay as Overlay, Protection as Protection, ValueProtection as ValueProtection, overlay as overlay
from .memory_guard import Guard as Guard, GuardReport as GuardReport, StaleGuardError as StaleGuardError
