"""Slow references that share no code with the library."""

from __future__ import annotations
