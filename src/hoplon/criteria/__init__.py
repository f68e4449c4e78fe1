"""Criteria: what counts as harm, one file per kind of model, and the outcome of every run."""

from __future__ import annotations

from hoplon.criteria.base import Criterion, Judged
from hoplon.criteria.classification import TopK
from hoplon.criteria.combined import Several, as_criterion
from hoplon.criteria.custom import Custom
from hoplon.criteria.detection import Detection
from hoplon.criteria.embedding import EmbeddingDistance
from hoplon.criteria.outcome import OUTCOME_NAMES, Outcome, classify, measure
from hoplon.criteria.regression import Deviation
from hoplon.criteria.tokens import PerplexityChange, TokenMatch

__all__ = [
    "OUTCOME_NAMES",
    "Criterion",
    "Custom",
    "Detection",
    "Deviation",
    "EmbeddingDistance",
    "Judged",
    "Outcome",
    "PerplexityChange",
    "Several",
    "TokenMatch",
    "TopK",
    "as_criterion",
    "classify",
    "measure",
]
