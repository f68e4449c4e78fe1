"""Harm to a classifier: the class is no longer among the first k."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from hoplon.criteria.base import Criterion, Labels, integer_labels
from hoplon.errors import Count, DataError, checked
from hoplon.registry import register


@register("criterion", "top-k")
@final
@checked
@dataclass(frozen=True)
class TopK(Criterion):
    """Classification: harm when the reference class is not among the k largest faulty outputs.

    Of equal outputs the one with the lower index ranks higher, in golden and faulty runs alike.

    Args:
        k: how many classes the answer may name.
        reference: "golden", the first class of the golden output; "label", the label of the input.
        outputs: the output that holds the logits, shape ``(runs, classes)``.
    Raises:
        HoplonError: k below 1, another reference, or several outputs.
    Example:
        >>> golden, faulty = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[3.0, 4.0, 1.0]])
        >>> TopK(1).harmed(golden, faulty, None), TopK(2).harmed(golden, faulty, None)
        (tensor([[True]]), tensor([[False]]))
    """

    k: Count = 1
    reference: Literal["golden", "label"] = field(default="golden", kw_only=True)

    masks = True

    def __post_init__(self) -> None:
        self._need_one_output()

    @classmethod
    def named(cls, name: str) -> TopK | None:
        """Return the criterion of a name such as "top-5" or "top-1-label"; None for any other name.

        Example:
            >>> TopK.named("top-5"), TopK.named("steering")
            (TopK(outputs=None, k=5, reference='golden'), None)
        """
        match = re.fullmatch(r"top-([1-9]\d*)(-label)?", name)
        return None if match is None else cls(int(match[1]), reference="label" if match[2] else "golden")

    @property
    def names(self) -> tuple[str, ...]:
        """("top-1",), or ("top-1-label",) against the labels."""
        return (f"top-{self.k}" + ("-label" if self.reference == "label" else "") + self._at,)

    @property
    def measure_names(self) -> tuple[str, ...]:
        """ "confidence_change" and "gap_change"."""
        return ("confidence_change" + self._at, "gap_change" + self._at)

    def harmed(self, golden: Tensor, faulty: Tensor, labels: Tensor | None) -> Tensor:
        """Return True where the reference class is lost: bool, shape ``(runs, 1)``; outputs ``(runs, classes)``."""
        wanted = golden.argmax(1) if self.reference == "golden" else self._needed(labels)
        wanted = wanted.to(faulty.device).unsqueeze(1)
        own = faulty.gather(1, wanted)
        earlier = torch.arange(faulty.shape[1], device=faulty.device) < wanted
        ahead = (faulty > own) | ((faulty == own) & earlier)
        return ahead.sum(1, keepdim=True) >= self.k

    def measures(self, golden: Tensor, faulty: Tensor) -> dict[str, Tensor]:
        """Measure the loss of the golden class, faulty minus golden: its softmax probability, and its lead in logits.

        The lead (gap) is the logit of the golden class minus the largest of the others; the outputs are taken as
        logits.
        """
        wanted = golden.argmax(1, keepdim=True)
        (confidence, gap), (new_confidence, new_gap) = (_standing(x.double(), wanted) for x in (golden, faulty))
        return dict(zip(self.measure_names, (new_confidence - confidence, new_gap - gap), strict=True))

    def check(self, golden: Tensor, labels: Labels) -> None:
        """Refuse what cannot be judged.

        Raises:
            DataError: outputs that are not ``(inputs, classes)`` with more than k classes, or not finite;
                labels missing, of another shape, or not a class.
        """
        if golden.ndim != 2 or golden.shape[1] <= self.k:
            raise DataError(
                f"expected outputs of shape (inputs, classes) with more than k={self.k} classes, "
                f"got {tuple(golden.shape)}; for other outputs use another criterion, such as Deviation"
            )
        super().check(golden, labels)
        labels = integer_labels(labels, self.names[0])
        if self.reference == "label":
            self._needed(labels)
        if labels is None:
            return
        if labels.ndim != 1:
            raise DataError(f"expected {len(golden)} labels, one class per input, got shape {tuple(labels.shape)}")
        outside = (labels < 0) | (labels >= golden.shape[1])
        if outside.any():
            first = int(outside.nonzero()[0])
            raise DataError(
                f"expected labels in [0, {golden.shape[1]}), the classes of the model, "
                f"got {int(labels[first])} for input {first}"
            )

    def correct(self, golden: Tensor, labels: Tensor | None) -> Tensor | None:
        """With labels, the inputs whose first golden class is the label."""
        return None if labels is None else golden.argmax(1) == labels.to(golden.device)

    def _needed(self, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise DataError("expected labels for reference='label', got None; give y or use reference='golden'")
        return labels


def _standing(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax probability of the wanted class, and its logit minus the largest of the others: ``(runs,)`` each."""
    confidence = logits.softmax(1).gather(1, wanted)
    others = logits.scatter(1, wanted, -torch.inf).amax(1, keepdim=True)
    return confidence.squeeze(1), (logits.gather(1, wanted) - others).squeeze(1)
