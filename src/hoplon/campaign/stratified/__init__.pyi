from . import strata as strata
from .strata import (
    ByAnswer as ByAnswer,
    ByBit as ByBit,
    ByDeviation as ByDeviation,
    ByFirstOrder as ByFirstOrder,
    ByFunction as ByFunction,
    ByLayer as ByLayer,
    BySensitivity as BySensitivity,
    Strata as Strata,
)
