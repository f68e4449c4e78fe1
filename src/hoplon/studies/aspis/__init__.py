"""The evaluation of Aspis (Schmedding, Yang, Jog and Smirni), part by part."""

from __future__ import annotations

from hoplon.studies.aspis.sizes import fault_space, magnitude
from hoplon.studies.study import Part, Study

STUDY = Study(
    name="aspis",
    title="Aspis: the paper's evaluation beside hoplon's",
    introduction=(
        "A. Schmedding, L. Yang, A. Jog and E. Smirni, *Aspis: Lightweight Neural Network Protection Against Soft "
        "Errors*. Each row has what the paper gives and what was found here. The paper injects into VGG19, Inception "
        "v3 and ResNet50 with trained weights, which are not here: networks on CIFAR-10 stand in for them and are "
        "named as such. Times and memory are those of the paper's architectures, which do not depend on the weights.",
    ),
    parts=(
        Part("fault-space", "Table II: networks and their fault sites", fault_space),
        Part("magnitude", "Table IV: magnitudes of weights", magnitude),
    ),
)

__all__ = ["STUDY"]
