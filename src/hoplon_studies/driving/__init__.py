"""The case study of Aspis with the loop closed: a student drives, faults strike its weights, and then?"""

from __future__ import annotations

from hoplon_studies.driving.parts import STUDY

__all__ = ["STUDY"]
