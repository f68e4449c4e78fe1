from .base import (
    Measure as Measure,
    Population as Population,
    Sampling as Sampling,
    draw_faults as draw_faults,
    unit_generator as unit_generator,
)
from .measures import (
    Among as Among,
    BitUniform as BitUniform,
    BottomScore as BottomScore,
    ElementUniform as ElementUniform,
    LayerUniform as LayerUniform,
    OpUniform as OpUniform,
    TopScore as TopScore,
)
from .plans import (
    EachTopScore as EachTopScore,
    Exhaustive as Exhaustive,
    Explicit as Explicit,
    Stratified as Stratified,
)
