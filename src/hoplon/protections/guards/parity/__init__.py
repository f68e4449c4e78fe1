"""Parity: block checksums find, sums across blocks rebuild."""

from __future__ import annotations
