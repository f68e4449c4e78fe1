"""Campaigns: a plan, how it is run, kept and counted."""

from __future__ import annotations
