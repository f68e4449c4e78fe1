"""Models and data by name: embedded digits, files, the papers' networks, torchvision, the user's own factories."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
