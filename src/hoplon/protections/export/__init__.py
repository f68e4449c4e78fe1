"""Protected models as files."""

from __future__ import annotations
