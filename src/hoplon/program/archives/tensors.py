"""Tensors from a file of ``torch.save``, which is a zip archive with a pickle inside: only the form without code."""

from __future__ import annotations

import pickle
import re
from typing import Any

import torch

from hoplon.program.archives.members import archive_of, members_of

_KNOWN = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/(version|serialization_id)"
)


def plain_tensors(content: bytes) -> Any:
    """What ``torch.save`` wrote of tensors, numbers, texts, and lists, tuples and dictionaries of them; on the CPU.

    Raises:
        ValueError: another file (an old form, a script, a pickle), or one that holds anything else; says what is
            wrong, without its path.
    """
    members = members_of(content, _KNOWN)
    try:
        return torch.load(archive_of(members, folder="archive"), map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"a pickle of other things than tensors: {reason}") from error
