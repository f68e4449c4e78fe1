"""A model captured once: its steps, sites, inputs and what is proven of it."""

from __future__ import annotations
