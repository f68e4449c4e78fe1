"""Damaged and forged variants of files: bits, bytes and lengths of any, values and keys of documents and tables."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl

from hoplon.files import sealed

Mutate = Callable[[bytes, random.Random], bytes]

_NASTY: tuple[Any, ...] = (
    None, True, False, "", "x", -1, 0, 1, 10**17, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324, [], {}, [[]],
    {"": None}, "\x00", "\ud800", "a" * 5000, "../../etc/passwd", "[/red]", "{{ 7 * 7 }}", "</script>", "os:system",
    [1, "2", None], {"kind": "Popen"}, {"tensor": "x"}, {"mapping": [[1]]}, [None] * 3, -1e-9, 2**31, "nan", "1e999",
)  # fmt: skip


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    """One bit, some bytes, or the length changed."""
    found = bytearray(content)
    place = chance.randrange(len(found)) if found else 0
    match chance.randrange(8):
        case 0 | 1 | 2:
            found[place] ^= 1 << chance.randrange(8)
        case 3:
            found[place : place + 8] = chance.randbytes(8)
        case 4:
            del found[place:]
        case 5:
            del found[place : place + chance.randrange(1, 64)]
        case 6:
            found[place:place] = chance.randbytes(chance.randrange(1, 64))
        case _:
            found[place:place] = found[place : place + 256]
    return bytes(found)


def document_changed(content: bytes, chance: random.Random) -> bytes:
    """A value or key of a JSON document changed, and the document sealed again, as a forger would."""
    document = json.loads(content)
    was_sealed = document.pop("seal", None) is not None
    parent, key = chance.choice(list(_places(document)))
    match chance.randrange(6):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}x"] = parent.pop(key)
        case 1 | 2:
            parent[key] = copy.deepcopy(document)
        case _:
            parent[key] = chance.choice(_NASTY)
    if chance.randrange(20) == 0:
        return b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    if chance.randrange(20) == 0:
        text = json.dumps(document)
        return (text[:-1] + ', "format": 1, "format": 1}').encode() if text.endswith("}") else text.encode()
    return (sealed(document) if was_sealed else json.dumps(document)).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """All containers of a document with the keys in them."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def table_changed(content: bytes, chance: random.Random) -> bytes:
    """A column of a Parquet file changed in values, type or name, or rows added and dropped."""
    frame = pl.read_parquet(io.BytesIO(content))
    name = chance.choice(frame.columns)
    column = frame[name]
    match chance.randrange(8):
        case 0:
            frame = frame.drop(name)
        case 1:
            frame = frame.rename({name: f"{name}x"})
        case 2:
            frame = frame.with_columns(pl.lit(None, dtype=column.dtype).alias(name))
        case 3:
            frame = frame.with_columns(pl.lit(chance.choice(["x", "", "a.b:conv", "float31"])).alias(name))
        case 4:
            frame = frame.with_columns(pl.lit(chance.choice([-1, 10**17, 2**62, 255, 0])).alias(name))
        case 5:
            frame = frame.with_columns(pl.lit(chance.choice([float("nan"), float("inf"), -1.0, 1e300])).alias(name))
        case 6:
            frame = pl.concat([frame, frame])
        case _:
            frame = frame.head(chance.randrange(2))
    stream = io.BytesIO()
    frame.write_parquet(stream)
    return stream.getvalue()


def header_changed(content: bytes, chance: random.Random) -> bytes:
    """The header of a safetensors file changed as a document, its length set right again."""
    (length,) = struct.unpack("<Q", content[:8])
    header = document_changed(content[8 : 8 + length], chance)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def text_changed(content: bytes, chance: random.Random) -> bytes:
    """Words of a text exchanged."""
    words = content.decode().split(" ")
    place = chance.randrange(len(words))
    words[place] = chance.choice([*map(str, _NASTY[:24]), *words, "[[a]]", "=", '"', "nan", "1e400", "{x=1}"])
    return " ".join(words).encode(errors="surrogatepass")
