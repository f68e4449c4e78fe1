"""Memory as guards see it: words, and one arena for all."""

from __future__ import annotations
