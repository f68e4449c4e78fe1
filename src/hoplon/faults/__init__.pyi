from .function import Function as Function
from .model import (
    FaultModel as FaultModel,
    Observe as Observe,
    Places as Places,
    SampledFaults as SampledFaults,
    WordModel as WordModel,
)
from .multi_word import BitRate as BitRate, Burst as Burst, Elements as Elements, Mixture as Mixture
from .single_word import (
    AdjacentBits as AdjacentBits,
    BitFlip as BitFlip,
    RandomValue as RandomValue,
    StuckAt as StuckAt,
    Zero as Zero,
)
from .table import (
    FaultTable as FaultTable,
    Target as Target,
    columns_of as columns_of,
    series_to_words as series_to_words,
    words_to_series as words_to_series,
)
