from __future__ import annotations

import dataclasses

import pytest
import torch

from hoplon.formats.digest import LATER, content_digest, digest_of, digest_of_words
from hoplon.program.inputs import Inputs
from hoplon.protections.ranges import Bound

# Digests are stored in run directories, in bundles and beside trained weights: other values would make all of those
# "of another campaign". Taken from the first version.


@pytest.mark.parametrize(
    ("described", "digest"),
    [
        ([Bound(0, 1), Bound(-1.5, 2)], "879fd41ef8c0da913f4bc2087b1a4a5a3ee3c56537575daf845312e2269a996a"),
        (
            {"a": torch.tensor([1.0, -2.0]), "b": (None, True, 3, "x", b"y", torch.float16, 1j)},
            "ccb70fcc1c19fad6a270726573766dee62c97539654cafeefb7ca617a8722db3",
        ),
        (
            [torch.zeros(0, 3, dtype=torch.int8), torch.arange(6).reshape(2, 3).T],
            "5d8a9ef4f3b70e24cea83d59675e51253072e86bb00926ce80c184bc9bac6add",
        ),
        (object(), "9898110d580443055a6b7b7537d3818329c41335ee77abf09cb1aac55cbcc8f8"),
    ],
    ids=["dataclasses", "plain values", "tensors", "another class"],
)
def test_the_digest_of_a_description_stays(described: object, digest: str) -> None:
    assert content_digest(described) == digest


def test_the_digests_of_tensors_stay() -> None:
    memory = {"b": torch.tensor([True, False]), "a": torch.zeros(0)}
    assert digest_of(memory) == "6584ce74b3f8b38d9614f545cbdfe725236ad8ff70c95f45e82195de1d8cf512"
    transposed = torch.arange(6).reshape(2, 3).T
    assert digest_of_words(transposed) == "cd23c9642e24d85ba6a2ae80f9b7d70e4883a1728a15d7904983aee9ceae46dc"


def test_the_digest_of_inputs_stays() -> None:
    x, y = (torch.arange(6.0).reshape(2, 3), torch.tensor([1, 2])), torch.tensor([0, 1])
    assert Inputs(x, y).digest() == "9dd5c85e179bc3121767385e2577e40b1efbc608c484fd8d395c6f408dab138f"
    assert Inputs(x[0]).digest() == "b0cf0ce99d2cca7bc672dc5c62963a3f99cb732ce156976145ca804f2668434f"


def test_a_field_that_came_later_counts_only_where_it_is_not_its_default() -> None:
    def thing(*fields: tuple[str, dataclasses.Field[int]], **values: int) -> object:
        names = [("first", int), *((name, int, field) for name, field in fields)]
        return dataclasses.make_dataclass("Thing", names)(1, **values)  # type: ignore[arg-type]

    later = [(name, dataclasses.field(default=0, metadata=LATER)) for name in ("second", "third")]
    before = content_digest(thing())
    assert content_digest(thing(*later)) == before
    second, third = content_digest(thing(*later, second=2)), content_digest(thing(*later, third=2))
    assert len({before, second, third}) == 3
