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
    except pickle.UnpicklingError as error:  # whose text says how the code could be run
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = repr(named[1][:80]) if named else "something else"
        raise ValueError(f"a pickle of {what}, where only tensors were expected") from error
    except Exception as error:  # whatever a pickle that does not fit together raises in torch
        reason = "".join(filter(str.isprintable, str(error).strip().partition("\n")[0][:200]))
        raise ValueError(f"tensors that do not fit together: {reason}") from error
