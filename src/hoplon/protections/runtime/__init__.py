"""Modules that carry protections, and when guards check."""

from __future__ import annotations
