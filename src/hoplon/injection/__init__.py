"""From a fault table to one outcome per run."""

from __future__ import annotations
