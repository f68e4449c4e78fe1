"""Guards that are there to be compared with."""

from __future__ import annotations
