"""Networks of the papers that only studies use."""

from __future__ import annotations
