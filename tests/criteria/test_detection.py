from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hoplon.criteria import Detection
from hoplon.errors import DataError, HoplonError

Sample = tuple[list[list[float]], list[float], list[int]]


def overlap(one: list[float], other: list[float]) -> float:
    """IoU of two boxes given by corners, in plain numbers."""
    wide = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    high = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = [max(0.0, b[2] - b[0]) * max(0.0, b[3] - b[1]) for b in (one, other)]
    union = sum(area) - wide * high
    return wide * high / union if union else float(one == other)


def harmed(golden: Sample, faulty: Sample, iou: float, score: float) -> bool:
    """One run: faulty detections by falling score, each takes the best free golden one of its class."""
    found = [[i for i, s in enumerate(side[1]) if s >= score] for side in (golden, faulty)]
    free = sorted(found[0], key=lambda i: -golden[1][i])
    for i in sorted(found[1], key=lambda i: -faulty[1][i]):
        partners = [j for j in free if golden[2][j] == faulty[2][i] and overlap(golden[0][j], faulty[0][i]) >= iou]
        if not partners:
            return True
        free.remove(max(partners, key=lambda j: overlap(golden[0][j], faulty[0][i])))
    return bool(free)


def scene(runs: int, seed: int, candidates: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping boxes on a coarse grid (some without area), few score levels, two classes: ties everywhere."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 3, (runs, candidates, 2), generator=generator).float()
    sizes = torch.randint(0, 4, (runs, candidates, 2), generator=generator).float()
    scores = torch.randint(0, 5, (runs, candidates), generator=generator) / 4
    classes = torch.randint(0, 2, (runs, candidates), generator=generator)
    return torch.cat([corners, corners + sizes], 2), scores, classes


def disturbed(golden: tuple[Tensor, ...], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Most runs slightly changed, some in the order of the candidates as well."""
    generator = torch.Generator().manual_seed(seed)
    boxes, scores, classes = (tensor.clone() for tensor in golden)
    moved = torch.rand(scores.shape, generator=generator) < 0.2
    boxes += moved.unsqueeze(2) * torch.randint(-1, 2, boxes.shape, generator=generator)
    scores = torch.where(torch.rand(scores.shape, generator=generator) < 0.1, scores.roll(1, dims=1), scores)
    classes = torch.where(torch.rand(scores.shape, generator=generator) < 0.05, 1 - classes, classes)
    order = torch.rand(scores.shape, generator=generator).argsort(1)
    return boxes.gather(1, order.unsqueeze(2).expand_as(boxes)), scores.gather(1, order), classes.gather(1, order)


@pytest.mark.parametrize("iou", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("score", [0.25, 0.75])
def test_detection_against_one_run_at_a_time(iou: float, score: float) -> None:
    golden = scene(600, 0)
    faulty = disturbed(golden, 1)
    found = Detection(iou, score=score).harmed(golden, faulty, None).flatten().tolist()
    runs = [[(b.tolist(), s.tolist(), c.tolist()) for b, s, c in zip(*side, strict=True)] for side in (golden, faulty)]
    assert found == [harmed(g, f, iou, score) for g, f in zip(*runs, strict=True)]
    assert 60 < sum(found) < 540


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_crowded_golden_detections_match_themselves_in_any_order(dtype: torch.dtype) -> None:
    boxes, scores, classes = scene(300, 2, candidates=12)
    golden = (boxes.to(dtype), scores.to(dtype), classes)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert not Detection(0.99, score=0.25).harmed(golden, golden, None).any()
    assert not Detection(0.99, score=0.25).harmed(golden, tuple(t[:, order] for t in golden), None).any()


BOX, FAR = [0.0, 0.0, 2.0, 2.0], [10.0, 10.0, 12.0, 12.0]


def one_run(*candidates: tuple[list[float], float, int]) -> tuple[Tensor, Tensor, Tensor]:
    boxes, scores, classes = zip(*candidates, strict=True)
    return torch.tensor([boxes]), torch.tensor([scores]), torch.tensor([classes])


@pytest.mark.parametrize(
    ("why", "faulty", "expected"),
    [
        ("the same", one_run((BOX, 0.9, 1), (FAR, 0.1, 1)), False),
        ("another score", one_run((BOX, 0.5, 1), (FAR, 0.49, 0)), False),
        ("lost", one_run((BOX, 0.49, 1), (FAR, 0.1, 1)), True),
        ("new", one_run((BOX, 0.9, 1), (FAR, 0.9, 1)), True),
        ("renamed", one_run((BOX, 0.9, 0), (FAR, 0.1, 1)), True),
        ("moved by a third", one_run(([1.0, 0.0, 3.0, 2.0], 0.9, 1), (FAR, 0.1, 1)), True),
        ("moved less", one_run(([0.5, 0.0, 2.5, 2.0], 0.9, 1), (FAR, 0.1, 1)), False),
        ("found by another candidate", one_run((FAR, 0.1, 1), (BOX, 0.9, 1)), False),
        ("twice", one_run((BOX, 0.9, 1), (BOX, 0.8, 1)), True),
    ],
)
def test_what_harm_is(why: str, faulty: tuple[Tensor, ...], expected: bool) -> None:
    golden = one_run((BOX, 0.9, 1), (FAR, 0.1, 1))
    assert Detection().harmed(golden, faulty, None).item() is expected, why


def test_without_golden_detections_a_new_one_is_harm() -> None:
    golden, faulty = one_run((BOX, 0.1, 1)), one_run((BOX, 0.9, 1))
    assert Detection().harmed(golden, golden, None).tolist() == [[False]]
    assert Detection().harmed(golden, faulty, None).tolist() == [[True]]
    assert Detection().eligible(golden, None).tolist() == [True]


def test_centres_and_class_scores_say_the_same() -> None:
    golden = scene(200, 3)
    faulty = disturbed(golden, 4)
    expected = Detection(score=0.75).harmed(golden, faulty, None)

    def centred(boxes: Tensor) -> Tensor:
        return torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], 2)

    moved = [(centred(boxes), *rest) for boxes, *rest in (golden, faulty)]
    assert torch.equal(Detection(score=0.75, boxes="cxcywh").harmed(*moved, None), expected)
    # the winner's score in the column of its class, less in the other one
    both = [
        (boxes, (torch.nn.functional.one_hot(classes, 2) * 2 - 1) * (scores.unsqueeze(2) + 1) - 1)
        for boxes, scores, classes in (golden, faulty)
    ]
    assert torch.equal(Detection(score=0.75, outputs=(0, 1)).harmed(*both, None), expected)


def test_names() -> None:
    assert Detection().names == ("detection-iou0.5-score0.5",)
    assert Detection(0.75, score=0.3, outputs=(2, 0)).names == ("detection-iou0.75-score0.3@2+0",)


@pytest.mark.parametrize(
    ("criterion", "shapes", "message"),
    [
        (
            Detection(),
            [(2, 5, 3), (2, 5), (2, 5)],
            r"\(n, q, 4\), \(n, q\), \(n, q\), got \(2, 5, 3\), \(2, 5\), \(2, 5\)",
        ),
        (Detection(), [(2, 5, 4), (2, 6), (2, 6)], r"got \(2, 5, 4\), \(2, 6\)"),
        (Detection(), [(2, 5, 4), (2, 5), (2,)], r"got \(2, 5, 4\), \(2, 5\), \(2,\); choose outputs"),
        (Detection(outputs=(0, 1)), [(2, 5, 4), (2, 5)], r"\(n, q, 4\), \(n, q, classes\), got"),
    ],
)
def test_outputs_of_other_shapes_are_refused(criterion: Detection, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        criterion.check(tuple(torch.zeros(shape) for shape in shapes), None)


def test_classes_in_the_place_of_the_scores_are_refused() -> None:
    boxes, scores, classes = torch.zeros(2, 5, 4), torch.zeros(2, 5), torch.ones(2, 5, dtype=torch.int64)
    Detection().check((boxes, scores, classes), None)
    with pytest.raises(DataError, match=r"floating-point scores as output 1, got torch.int64, such as classes"):
        Detection().check((boxes, classes, scores), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Detection(1.0), r"expected iou of Detection to be a number above 0 and below 1, got 1\.0"),
        (lambda: Detection(score=float("inf")), "expected a finite score, got inf"),
        (lambda: Detection(boxes="xywh"), "expected boxes of Detection to be 'xyxy' or 'cxcywh', got 'xywh'"),  # type: ignore[arg-type]
        (lambda: Detection(outputs=(0,)), r"expected outputs as \(boxes, scores, classes\) .* got \(0,\)"),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(HoplonError, match=message):
        call()
