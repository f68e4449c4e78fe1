from .capturing import capture as capture
from .decoding.capture import capture_decoder as capture_decoder
from .decoding.choosing import Draws as Draws
from .decoding.program import DecodingProgram as DecodingProgram
from .eager import EagerProgram as EagerProgram
from .given.example import Example as Example
from .given.samples import Annotations as Annotations
from .inputs import Inputs as Inputs
from .inspection import FaultSpace as FaultSpace, Inspection as Inspection, inspect as inspect
from .program import Program as Program, Ref as Ref, Step as Step
from .sites import (
    GuardMemory as GuardMemory,
    Memory as Memory,
    MemorySite as MemorySite,
    Site as Site,
    Values as Values,
    ValueSite as ValueSite,
)
