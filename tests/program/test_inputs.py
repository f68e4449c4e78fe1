from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from hoplon.errors import DataError
from hoplon.program.given.samples import Annotations
from hoplon.program.inputs import Inputs, as_inputs, stream


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


IDS = torch.tensor([[5, 6, 7], [5, 7, 6], [5, 5, 5], [6, 6, 6]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]])
ENCODED = Inputs({"input_ids": IDS, "attention_mask": MASK}, Y)


class Encoding(UserDict[str, object]):
    """A mapping that is no dict, as tokenizers give it."""


def encoded(ids: object, mask: object, **others: object) -> Encoding:
    return Encoding({"input_ids": ids, "attention_mask": mask, **others})


@pytest.mark.parametrize(
    "data",
    [
        encoded(IDS, MASK, labels=Y),
        (encoded(IDS, MASK), Y),
        (dict(encoded(IDS.numpy(), MASK.tolist())), Y.tolist()),
        Samples(*(encoded(*row, label=int(y)) for *row, y in zip(IDS, MASK, Y, strict=True))),
        Samples(*(encoded(*row, labels=y) for *row, y in zip(IDS.tolist(), MASK.tolist(), Y.tolist(), strict=True))),
        Samples(*((dict(encoded(*row)), y) for *row, y in zip(IDS, MASK, Y, strict=True))),
        DataLoader(Samples(*((dict(encoded(*row)), y) for *row, y in zip(IDS, MASK, Y, strict=True))), batch_size=3),
        DataLoader(
            Samples(*(dict(encoded(*row, label=y)) for *row, y in zip(IDS, MASK, Y, strict=True))), batch_size=3
        ),
    ],
    ids=lambda data: type(data).__name__,
)
def test_mappings_are_keywords_with_labels_among_them(data: object) -> None:
    found = as_inputs(data)
    assert found.names == ("input_ids", "attention_mask")
    assert found.digest() == ENCODED.digest()
    assert [part.digest() for part in stream(data, batch=3, fixed=3)] == [part.digest() for part in ENCODED.batches(3)]


def test_a_loader_of_pairs_and_of_x_alone() -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    assert as_inputs(loader).digest() == Inputs(X, Y).digest()
    assert as_inputs(DataLoader(TensorDataset(X), batch_size=3)).digest() == Inputs(X).digest()
    assert as_inputs(iter(loader)).digest() == Inputs(X, Y).digest()


def test_keys_that_are_no_inputs_are_dropped_and_labels_have_any_name() -> None:
    batch = encoded(IDS, MASK, target=Y, text=["a", "b", "c", "d"])
    assert Inputs.from_batches([batch], label="target", drop=("text",)).digest() == ENCODED.digest()
    sample = {"input_ids": IDS[0].tolist(), "label": 3, "text": "a"}
    assert Inputs.from_dataset([sample], drop=("text",)).digest() == Inputs({"input_ids": IDS[:1]}, Y[:1]).digest()


def test_lengths_that_differ_are_filled_up_where_a_mask_says_so() -> None:
    lengths = [2, 3, 1, 3]
    rows = [
        encoded(ids[:n].tolist(), mask[:n].tolist(), labels=ids[:n].tolist())
        for ids, mask, n in zip(IDS, MASK, lengths, strict=True)
    ]
    outside = torch.arange(3) >= torch.tensor(lengths)[:, None]
    wanted = Inputs(dict(encoded(IDS.masked_fill(outside, 0), MASK)), IDS.masked_fill(outside, -100))
    assert Inputs.from_dataset(rows).digest() == wanted.digest()
    together = {key: [row[key] for row in rows] for key in rows[0]}
    assert as_inputs(together).digest() == wanted.digest()
    batches = [
        {key: torch.tensor([row[key] for row in part]) for key in part[0]} for part in ([rows[1], rows[3]], [rows[2]])
    ]
    assert Inputs.from_batches(batches).digest() == wanted.take([1, 3, 2]).digest()


def test_groups_of_one_length() -> None:
    rows = [{"input_ids": [1] * n, "label": n} for n in (2, 3, 2, 1)]
    groups = Inputs.by_length(rows)
    assert [*groups] == [1, 2, 3]
    assert (
        groups[2].digest() == Inputs({"input_ids": torch.ones(2, 2, dtype=torch.int64)}, torch.tensor([2, 2])).digest()
    )


def test_labels_of_a_regression_keep_their_numbers() -> None:
    data = Inputs(X, Y / 2)
    assert data.y is not None
    assert data[0][1] == 1.5  # type: ignore[index]
    assert Inputs.from_dataset(TensorDataset(X, Y / 2)).digest() == data.digest() != Inputs(X, Y).digest()
    assert Inputs(X, Y > 1).digest() == Inputs(X, torch.tensor([1, 0, 1, 0])).digest()


def test_boxes_are_annotations_of_any_number() -> None:
    boxes = [
        {"boxes": torch.arange(4.0 * n).view(n, 4), "labels": torch.ones(n, dtype=torch.int64)} for n in (2, 0, 1, 3)
    ]
    pictures = torch.zeros(4, 3, 2, 2)
    data = Inputs.from_dataset(Samples(*zip(pictures, boxes, strict=True)))
    assert isinstance(data.y, Annotations)
    part = data.take([3, 1])
    assert part.y is not None
    assert [len(row["boxes"]) for row in part.y.rows] == [3, 0]
    assert data[2][1]["boxes"].tolist() == [[0, 1, 2, 3]]  # type: ignore[index]
    listed = [(tuple(pictures[:3]), tuple(boxes[:3])), (tuple(pictures[3:]), tuple(boxes[3:]))]  # a detector's loader
    assert Inputs.from_batches(listed).digest() == data.digest()
    others = [dict(row) for row in boxes]
    others[3]["boxes"] = boxes[3]["boxes"] + 1
    assert Inputs(pictures, Annotations(tuple(others))).digest() != data.digest()


def test_labels_that_differ_in_shape_and_texts_are_annotations() -> None:
    data = Inputs.from_dataset(Samples((X[0], Y), (X[1], Y[:3])))
    assert isinstance(data.y, Annotations)
    assert [row.tolist() for row in data.y.rows] == [[3, 1, 2, 0], [3, 1, 2]]
    texts = Inputs.from_batches([(X[:2], ["a", "b c"])])
    assert isinstance(texts.y, Annotations)
    assert texts.y.rows == ("a", "b c")
    assert texts.digest() != Inputs.from_batches([(X[:2], ["a", "b d"])]).digest()


def test_a_mask_that_is_added_may_hold_minus_infinity() -> None:
    added = torch.zeros(4, 3).masked_fill(MASK == 0, -torch.inf)
    assert Inputs((X, added)).tensors[1][0].tolist() == [0, 0, -torch.inf]


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
        (lambda: Inputs(X, Y / 0), r"expected finite y, got NaN or infinity in sample 0 \(4 of 4 samples\)"),
        (lambda: Inputs(X, Y.to(torch.complex64)), "y to hold real numbers, got torch.complex64"),
        (lambda: Inputs(X, Annotations(("a", "b"))), "expected 4 annotations, one per sample, got 2"),
        (lambda: Inputs(X, [0, 1, 2, 3]), r"y of Inputs to be a Tensor or Annotations or None, got \[0, 1, 2, 3\]"),
        (lambda: Inputs((X, -X / 0)), r"expected finite x, got NaN or infinity in sample 0 \(4 of 4 samples\)"),
        (lambda: Inputs(torch.full((2, 2), -torch.inf)), "expected finite x, got NaN or infinity in sample 0"),
        (lambda: Inputs(X).take([4]), r"expected samples in \[0, 4\), got 4"),
        (lambda: Inputs(X).take([-1]), r"expected samples in \[0, 4\), got -1"),
        (lambda: Inputs(X).take([]), "expected at least one sample, got 0"),
        (lambda: Inputs.from_dataset(Samples()), "expected at least one sample, got 0"),
        (lambda: Inputs.from_dataset(Stream()), "map-style data set with a length, got Stream"),
        (lambda: Inputs.from_dataset(Samples(X[0], (X[1], 2))), r"form x, got another, \(x, y\), in sample 1"),
        (lambda: Inputs.from_dataset(Samples((X[0], 0, 0))), r"x, \(x, y\) or a mapping in sample 0, got 3 parts"),
        (lambda: Inputs.from_dataset(Samples((X[0], 0), (X[1, :2], 0))), r"got \(2,\) torch.float32 in sample 1"),
        (lambda: Inputs.from_dataset(Samples(("cat", 0))), "numbers in sample 0, got the text 'cat'; tokenize it"),
        (lambda: Inputs.from_dataset(Samples((object(), 0))), "array in sample 0, got object; give the data set a"),
        (lambda: Inputs.from_dataset(Samples((X[0], object()))), "the label of sample 0, got object"),
        (lambda: Inputs.from_batches([(["a", "b"], Y[:2])]), "numbers in batch 0, got the text 'a'; tokenize it"),
        (lambda: Inputs.from_batches([{"ids": X, "text": ["a"] * 4}]), r"text of batch 0, .*drop=\(\"text\",\)"),
        (lambda: Inputs.from_batches([{"x": X}], label="target"), "expected target, the key of the labels, .* got x"),
        (lambda: Inputs.from_batches([{"x": X}], drop=["id"]), "expected id in batch 0, to drop it, got x"),
        (lambda: Inputs.from_batches([(X, Y), (X, Y[:2].tolist())]), "expected 4 labels in batch 1, .* got 2"),
        (lambda: Inputs.from_batches([{"x": X}, {"z": X}]), r"of the form \(x\), got another, \(z\), in batch 1"),
        (lambda: Inputs.from_batches([torch.tensor(1)]), "expected batch 0 with a batch axis first"),
        (lambda: Inputs.from_batches([]), "expected at least one batch, got 0"),
        (
            lambda: Inputs.from_dataset([{"ids": [1, 2]}, {"ids": [1]}]),
            r"\(1,\) torch.int64 in sample 1; pad them, with",
        ),
        (lambda: as_inputs("x.npz"), r"a mapping of tensors or a pair \(x, y\), got str"),
        (lambda: as_inputs((X, Y, Y)), "batch 1"),
        (lambda: as_inputs({"train": Samples(X), "test": Samples(X)}), r"got train, test; choose one: data\['train'\]"),
        (lambda: as_inputs(Stream()), "got Stream"),
    ],
)
def test_bad_data_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_an_index_past_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match=r"expected a sample in \[0, 4\), got 4"):
        Inputs(X)[4]
