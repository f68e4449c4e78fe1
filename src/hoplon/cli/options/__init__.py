"""What several commands ask for in the same words."""

from __future__ import annotations
