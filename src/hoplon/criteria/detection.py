"""Harm to an object detector: a detection is lost, moved, renamed or invented."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion
from hoplon.errors import DataError, HoplonError, Share, checked
from hoplon.registry import register


@register("criterion", "detection")
@final
@checked
@dataclass(frozen=True)
class Detection(Criterion):
    """Object detection: harm when the faulty detections do not match the golden ones one to one.

    The model gives q candidates per sample; those with a score of at least ``score`` are its detections. Going through
    the faulty detections by falling score, each takes, of the golden detections of its class that are still free and
    overlap it with an IoU of at least ``iou``, the one with the largest IoU. (Of equals, the higher score first, then
    the lower index.) A golden detection that stays free was lost; a faulty one that finds none is new; one that moved
    too far, or changed its class, is both. Scores as such are not compared. Candidates are taken as the model's final
    answer: suppress duplicates inside of the model, or each of them counts.

    Two boxes of no area have an IoU of 1 where they are equal, else 0.

    Args:
        iou: in (0, 1).
        score: least score of a detection.
        boxes: "xyxy", two corners; "cxcywh", centre, width and height.
        outputs: positions of the boxes ``(runs, q, 4)``, scores ``(runs, q)`` and classes ``(runs, q)``; or of the
            boxes and the scores of every class ``(runs, q, classes)``, of which the largest counts. Faster R-CNN of
            torchvision gives boxes, classes, scores: (0, 2, 1).
    Raises:
        HoplonError: an option out of range, or another number of outputs.
    Source:
        Greedy matching by score as in the evaluation of Pascal VOC (Everingham et al., IJCV 88 (2010), section 4.4)
        and COCO, with the golden run in the place of the annotation.
    Example:
        >>> boxes, scores = torch.tensor([[[0.0, 0.0, 2.0, 2.0]]]), torch.tensor([[0.9]])
        >>> golden, faulty = (boxes, scores, torch.tensor([[7]])), (boxes + 1, scores, torch.tensor([[7]]))
        >>> Detection(iou=0.5).harmed(golden, faulty, None), Detection(iou=0.1).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    iou: Share = 0.5
    score: float = field(default=0.5, kw_only=True)
    boxes: Literal["xyxy", "cxcywh"] = field(default="xyxy", kw_only=True)
    outputs: tuple[int, ...] = field(default=(0, 1, 2), kw_only=True)

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise HoplonError(f"expected a finite score, got {self.score}")
        if len(self.outputs) not in (2, 3):
            raise HoplonError(
                f"expected outputs as (boxes, scores, classes) or (boxes, class scores), got {self.outputs!r}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """One, e.g. "detection-iou0.5-score0.5"."""
        at = "" if self.outputs == (0, 1, 2) else "@" + "+".join(map(str, self.outputs))
        return (f"detection-iou{self.iou:g}-score{self.score:g}" + at,)

    def harmed(self, golden: tuple[Tensor, ...], faulty: tuple[Tensor, ...], labels: Tensor | None) -> Tensor:
        """Return True for runs that lost or invented a detection: bool, shape ``(runs, 1)``."""
        count = (self._scores(golden)[0] >= self.score).sum(1)
        harmed = count != (self._scores(faulty)[0] >= self.score).sum(1)
        open_runs = (~harmed & (count > 0)).nonzero().flatten()
        if len(open_runs):
            depth = int(count[open_runs].max())
            wanted, present = (self._best(tuple(t[open_runs] for t in side), depth) for side in (golden, faulty))
            there = torch.arange(depth, device=count.device) < count[open_runs].unsqueeze(1)
            harmed[open_runs] = ~_all_matched(wanted, present, there, self.iou)
        return harmed.unsqueeze(1)

    def check(self, golden: tuple[Tensor, ...], labels: Tensor | None) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs of other shapes, scores that are integers, or outputs not finite.
        """
        boxes, scores = golden[0], golden[1]
        fits = boxes.ndim == 3 and boxes.shape[2] == 4 and scores.shape[:2] == boxes.shape[:2]
        if len(golden) == 3:
            fits = fits and scores.ndim == 2 and golden[2].shape == scores.shape
        else:
            fits = fits and scores.ndim == 3 and scores.shape[2] > 0
        if not fits:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in golden)
            wanted = "(n, q), (n, q)" if len(golden) == 3 else "(n, q, classes)"
            raise DataError(f"expected boxes and scores of shapes (n, q, 4), {wanted}, got {shapes}; choose outputs")
        if not scores.is_floating_point():
            raise DataError(
                f"expected floating-point scores as output {self.outputs[1]}, got {scores.dtype}, such as classes; "
                "choose outputs"
            )
        super().check(golden, labels)

    def _scores(self, judged: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Score and class of every candidate: ``(runs, q)`` each."""
        if len(judged) == 3:
            return judged[1], judged[2]
        best = judged[1].argmax(2)
        return judged[1].gather(2, best.unsqueeze(2)).squeeze(2), best

    def _best(self, judged: tuple[Tensor, ...], depth: int) -> tuple[Tensor, Tensor]:
        """Corners ``(runs, depth, 4)``, float64, and classes ``(runs, depth)`` of the first candidates by score."""
        scores, classes = self._scores(judged)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, :depth]
        boxes = judged[0].gather(1, order.unsqueeze(2).expand(-1, -1, 4)).double()
        if self.boxes == "cxcywh":
            half = boxes[..., 2:] / 2
            boxes = torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], 2)
        return boxes, classes.gather(1, order)


def _all_matched(wanted: tuple[Tensor, Tensor], present: tuple[Tensor, Tensor], there: Tensor, least: float) -> Tensor:
    """Return True where each detection finds a partner, in runs with equally many: bool, shape ``(runs,)``."""
    overlap = _iou(present[0], wanted[0])
    allowed = (overlap >= least) & (present[1].unsqueeze(2) == wanted[1].unsqueeze(1))
    overlap = overlap.where(allowed, -1.0)
    free = there.clone()
    matched = torch.ones(len(there), dtype=torch.bool, device=there.device)
    for rank in range(there.shape[1]):
        best, partner = overlap[:, rank].where(free, -1.0).max(1)
        found = best >= 0
        matched &= found | ~there[:, rank]
        free.scatter_(1, partner.unsqueeze(1), free.gather(1, partner.unsqueeze(1)) & ~found.unsqueeze(1))
    return matched


def _iou(left: Tensor, right: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes: ``(runs, q, 4)`` and ``(runs, p, 4)`` to ``(runs, q, p)``."""
    one, other = left.unsqueeze(2), right.unsqueeze(1)
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    inner = shared.prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (one, other)]
    union = areas[0] + areas[1] - inner
    return torch.where(union > 0, inner / union, (one == other).all(-1).double())
