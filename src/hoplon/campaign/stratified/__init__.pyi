from . import strata as strata
from .strata import ByBit as ByBit
from .strata import ByDeviation as ByDeviation
from .strata import ByFirstOrder as ByFirstOrder
from .strata import ByFunction as ByFunction
from .strata import ByLayer as ByLayer
from .strata import BySensitivity as BySensitivity
from .strata import Strata as Strata
