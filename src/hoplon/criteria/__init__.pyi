from .base import Criterion as Criterion, Judged as Judged
from .classification import TopK as TopK
from .combined import Several as Several, as_criterion as as_criterion
from .custom import Custom as Custom
from .detection import Detection as Detection
from .embedding import EmbeddingDistance as EmbeddingDistance
from .generation import Generation as Generation, generation_kinds as generation_kinds
from .outcome import (
    CAUSES as CAUSES,
    OUTCOME_NAMES as OUTCOME_NAMES,
    Outcome as Outcome,
    classify as classify,
    measure as measure,
)
from .regression import Deviation as Deviation
from .tokens import PerplexityChange as PerplexityChange, TokenMatch as TokenMatch
