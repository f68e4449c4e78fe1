"""Training of the studies' networks, and the files of their weights."""

from __future__ import annotations
