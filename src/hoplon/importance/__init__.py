"""How much each weight matters: one file per score."""

from __future__ import annotations

from hoplon.importance.scores import Scores
from hoplon.importance.taylor import taylor

__all__ = ["Scores", "taylor"]
