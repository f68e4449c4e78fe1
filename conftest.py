"""What every test and doctest starts from: one thread, the same examples in every run, no kept captures."""

from __future__ import annotations

import os

import hypothesis
import torch

torch.set_num_threads(1)
os.environ["HOPLON_CAPTURES"] = "off"  # of other code than that under test, and in the user's folder

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.load_profile("fixed")
