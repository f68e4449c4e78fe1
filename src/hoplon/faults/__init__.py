"""Fault models, and the table of the faults drawn from them."""

from __future__ import annotations

from hoplon.faults.function import Function
from hoplon.faults.model import FaultModel, Observe, Place, Places, Strikes, WordModel
from hoplon.faults.multi_word import BitRate, Burst, Elements, Mixture
from hoplon.faults.single_word import AdjacentBits, BitFlip, RandomValue, StuckAt, Zero
from hoplon.faults.table import FaultTable, Target, columns_of, series_to_words, words_to_series

__all__ = [
    "AdjacentBits",
    "BitFlip",
    "BitRate",
    "Burst",
    "Elements",
    "FaultModel",
    "FaultTable",
    "Function",
    "Mixture",
    "Observe",
    "Place",
    "Places",
    "RandomValue",
    "Strikes",
    "StuckAt",
    "Target",
    "WordModel",
    "Zero",
    "columns_of",
    "series_to_words",
    "words_to_series",
]
