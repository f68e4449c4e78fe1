"""Guards of stored words."""

from __future__ import annotations
