from __future__ import annotations

from tests.cli.conftest import small_files

__all__ = ["small_files"]
