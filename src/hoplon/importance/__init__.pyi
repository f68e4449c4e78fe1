from ._fisher import fisher as fisher
from ._gradient import gradient as gradient
from ._layerwise import layerwise as layerwise
from ._magnitude import magnitude as magnitude
from ._nisp import nisp as nisp
from ._random import random as random
from ._taylor import taylor as taylor
from .analysis import by_layer as by_layer, heat_map as heat_map, magnitudes as magnitudes, overlap as overlap
from .damage.score import expected_damage as expected_damage
from .scores import Scores as Scores
