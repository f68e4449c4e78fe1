"""The papers' evaluations as commands: each table and figure beside what is found here."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
