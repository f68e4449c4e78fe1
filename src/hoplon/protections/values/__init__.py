"""Protections of values in flight."""

from __future__ import annotations
