from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from hoplon.errors import DataError
from hoplon.program.inputs import Inputs, as_inputs


class Samples(Dataset[object]):
    """A map-style data set of whatever it is given."""

    def __init__(self, *samples: object) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> object:
        return self.samples[index]


class Stream(IterableDataset[object]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[object]:
        return iter(())


X = torch.arange(12.0).view(4, 3)
Y = torch.tensor([3, 1, 2, 0])


def test_samples_labels_and_length() -> None:
    data = Inputs(X, Y.to(torch.uint8), name="toy")
    x, y = data[-1]
    assert len(data) == 4
    assert torch.equal(x, X[3])
    assert y == 0
    assert data.y is not None
    assert data.y.dtype == torch.int64
    assert torch.equal(Inputs(X)[1], X[1])
    assert repr(data) == "Inputs(toy: (4, 3) torch.float32, with labels)"


def test_several_arguments_stay_together() -> None:
    data = Inputs((X, Y), torch.zeros(4, dtype=torch.int64))
    (first, second), _ = data[2]
    assert torch.equal(first, X[2])
    assert second == 2
    part = data.take([3, 0])
    assert isinstance(part.x, tuple)
    assert [t.tolist() for t in part.tensors] == [X[[3, 0]].tolist(), [0, 3]]


def test_take_keeps_the_order_and_repeats() -> None:
    part = Inputs(X, Y, name="toy").take(torch.tensor([2, 2, 0]))
    assert torch.equal(part.tensors[0], X[[2, 2, 0]])
    assert part.y is not None
    assert part.y.tolist() == [2, 2, 3]
    assert part.name == "toy"


@pytest.mark.parametrize(("size", "lengths"), [(1, [1, 1, 1, 1]), (3, [3, 1]), (4, [4]), (9, [4])])
def test_batches_hold_every_sample_once_in_order(size: int, lengths: list[int]) -> None:
    batches = list(Inputs(X, Y).batches(size))
    assert [len(batch) for batch in batches] == lengths
    assert torch.equal(torch.cat([batch.tensors[0] for batch in batches]), X)
    assert torch.equal(torch.cat([batch.y for batch in batches if batch.y is not None]), Y)
    assert batches[0].tensors[0].data_ptr() == X.data_ptr()


def test_iteration_ends() -> None:
    assert len(list(Inputs(X))) == 4  # type: ignore[call-overload]


def test_the_digest_is_of_the_content() -> None:
    data = Inputs(X, Y)
    assert data.digest() == Inputs(X.clone(), Y.to(torch.int32), name="other").digest()
    assert data.digest() == Inputs(X.t().contiguous().t(), Y).digest()
    changed = X.clone()
    changed[0, 0] = -0.0  # equal as a number, not in its bits
    others = [
        Inputs(X),
        Inputs(changed, Y),
        Inputs(X.double(), Y),
        Inputs(X.view(4, 3, 1), Y),
        Inputs(X, Y.flip(0)),
        Inputs((X, X), Y),
    ]
    assert len({data.digest(), *(other.digest() for other in others)}) == 7


def test_gradients_are_left_outside() -> None:
    assert not Inputs(X.clone().requires_grad_()).tensors[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_any_dtype_has_a_digest(dtype: torch.dtype) -> None:
    data = Inputs(X.to(dtype))
    assert data.digest() == Inputs(X.to(dtype)).digest() != Inputs(X + 1).digest()


def test_from_dataset_reads_every_sample() -> None:
    data = Inputs.from_dataset(TensorDataset(X, Y), name="set")
    assert data.digest() == Inputs(X, Y).digest()
    assert data.name == "set"


def test_from_dataset_takes_the_usual_forms() -> None:
    arrays = Samples(*((x.numpy(), np.int64(y)) for x, y in zip(X, Y.tolist(), strict=True)))
    plain = Samples(*((x, y) for x, y in zip(X, Y.tolist(), strict=True)))
    several = Samples(*(((x, x + 1), y) for x, y in zip(X, Y, strict=True)))
    assert Inputs.from_dataset(arrays).digest() == Inputs(X, Y).digest()
    assert Inputs.from_dataset(plain).digest() == Inputs(X, Y).digest()
    assert Inputs.from_dataset(several).digest() == Inputs((X, X + 1), Y).digest()
    assert Inputs.from_dataset(Samples(*X)).digest() == Inputs(X).digest()


def test_labels_may_be_token_ids() -> None:
    ids = torch.arange(8).view(4, 2)
    data = Inputs(X, ids)
    assert Inputs.from_dataset(TensorDataset(X, ids)).digest() == data.digest() != Inputs(X, ids.view(4, 1, 2)).digest()
    part = data.take([2])
    assert part.y is not None
    assert part.y.tolist() == [[4, 5]]


def test_as_inputs_takes_what_people_have() -> None:
    data = Inputs(X, Y)
    assert as_inputs(data) is data
    assert as_inputs((X, Y)).digest() == data.digest()
    assert as_inputs(X).digest() == Inputs(X).digest()
    assert as_inputs(TensorDataset(X, Y)).digest() == data.digest()


def with_nan(*samples: int) -> torch.Tensor:
    x = X.clone()
    x[list(samples), 1] = float("nan")
    return x


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inputs(torch.zeros(0, 3)), r"expected at least one sample, got 0 \(x of shape \(0, 3\)\)"),
        (lambda: Inputs(with_nan(2, 3)), r"got NaN or infinity in sample 2 \(2 of 4 samples\)"),
        (lambda: Inputs((X, X / 0)), r"expected finite x, got NaN or infinity in sample 0 \(4 of 4 samples\)"),
        (lambda: Inputs(torch.tensor(1.0)), "with a batch axis first, got a single number"),
        (lambda: Inputs((X, X[:2])), "expected 4 samples in every tensor of x, got 2"),
        (lambda: Inputs(()), "got an empty tuple"),
        (
            lambda: Inputs(X.numpy()),
            r"expected x of Inputs to be .*, got a value of type ndarray",
        ),
        (lambda: Inputs(X, Y[:2]), r"expected y of shape \(4, ...\), one label per sample, got \(2,\)"),
        (lambda: Inputs(X, Y.float()), r"integer labels, got torch.float32; y.long\(\) makes them"),
        (lambda: Inputs(X, Y > 1), "integer labels, got torch.bool"),
        (lambda: Inputs(X, [0, 1, 2, 3]), r"expected y of Inputs to be a Tensor or None, got \[0, 1, 2, 3\]"),
        (lambda: Inputs(X).take([4]), r"expected samples in \[0, 4\), got 4"),
        (lambda: Inputs(X).take([-1]), r"expected samples in \[0, 4\), got -1"),
        (lambda: Inputs(X).take([]), "expected at least one sample, got 0"),
        (lambda: Inputs.from_dataset(Samples()), "expected at least one sample, got 0 from Samples"),
        (lambda: Inputs.from_dataset(Stream()), "map-style data set with a length, got Stream"),
        (lambda: Inputs.from_dataset(Samples(X[0], (X[1], 2))), "form x, got another in sample 1"),
        (lambda: Inputs.from_dataset(Samples((X[0], 0, 0))), r"form \(x, y\), got another in sample 0"),
        (lambda: Inputs.from_dataset(Samples((X[0], 0), (X[1, :2], 0))), r"got \(2,\) torch.float32 in sample 1"),
        (lambda: Inputs.from_dataset(Samples(("cat", 0))), "array in sample 0, got str; give the data set a"),
        (lambda: Inputs.from_dataset(Samples((X[0], 0.5))), "integer label in sample 0, got 0.5"),
        (lambda: Inputs.from_dataset(Samples((X[0], "cat"))), "integer label in sample 0, got 'cat'"),
        (lambda: Inputs.from_dataset(Samples((X[0], Y), (X[1], Y[:3]))), r"sample 0, \(4,\), got \(3,\) in sample 1"),
        (lambda: as_inputs("x.npz"), r"a tensor or a pair \(x, y\), got str"),
        (lambda: as_inputs((X, Y, Y)), r"a pair \(x, y\), got tuple"),
        (lambda: as_inputs({"x": X}), "got dict"),
        (lambda: as_inputs(Stream()), "got Stream"),
    ],
)
def test_bad_data_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_an_index_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match=r"expected a sample in \[0, 4\), got 4"):
        Inputs(X)[4]
