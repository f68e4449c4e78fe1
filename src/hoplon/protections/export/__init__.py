"""Protected models as files: graphs with bounds, and bundles with guards as well."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
