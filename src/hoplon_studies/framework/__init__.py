"""What a study is made of: parts, findings, figures, pages."""

from __future__ import annotations
