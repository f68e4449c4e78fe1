"""The same faults in every arm."""

from __future__ import annotations
