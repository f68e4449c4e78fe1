"""One thread and no leftover settings: what every test and doctest starts from."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
