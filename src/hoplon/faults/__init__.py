"""Fault models, and the table of the faults drawn from them."""

from __future__ import annotations

from hoplon.faults.model import BitFlip, FaultModel
from hoplon.faults.table import FaultTable, Target, columns_of, series_to_words, words_to_series

__all__ = [
    "BitFlip",
    "FaultModel",
    "FaultTable",
    "Target",
    "columns_of",
    "series_to_words",
    "words_to_series",
]
