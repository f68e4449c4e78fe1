"""Studies as such: parts, findings, figures, pages."""

from __future__ import annotations
