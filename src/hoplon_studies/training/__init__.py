"""How the networks of the studies are trained, and where their weights are kept."""

from __future__ import annotations
