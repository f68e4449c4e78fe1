"""The command line: parse, call, print."""

from __future__ import annotations

from hoplon.cli.app import main

__all__ = ["main"]
