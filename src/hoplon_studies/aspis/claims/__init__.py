"""What the paper on Aspis claims, judged by the rows of the study."""

from __future__ import annotations
