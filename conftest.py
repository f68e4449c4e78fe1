"""What every test and doctest starts from: one thread, and the same examples in every run."""

from __future__ import annotations

import hypothesis
import torch

torch.set_num_threads(1)

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
