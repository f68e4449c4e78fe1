"""Expected damage: what a fault makes of a weight, times what that does to the outputs."""

from __future__ import annotations
