"""The command line: parse, call, print."""

from __future__ import annotations

from hoplon.cli.main import app, main

__all__ = ["app", "main"]
