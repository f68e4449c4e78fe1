"""KnownBits: bits that are equal in every word of a tensor."""

from __future__ import annotations
