from .duplicate import Duplicate as Duplicate
from .exceedance import Exceedances as Exceedances, exceedances as exceedances
from .policy import (
    Clamp as Clamp,
    Detect as Detect,
    Policy as Policy,
    RandomInRange as RandomInRange,
    ToMedian as ToMedian,
    ToZero as ToZero,
)
from .ranger import Coverage as Coverage, Ranger as Ranger
