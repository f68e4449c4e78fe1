"""The evaluation of Aspis (Schmedding, Yang, Jog and Smirni), part by part."""

from __future__ import annotations

from hoplon_studies.aspis.claims.of_the_paper import headlines
from hoplon_studies.aspis.coverage import covered
from hoplon_studies.aspis.critical import critical_weights
from hoplon_studies.aspis.drift import under_drift
from hoplon_studies.aspis.layers import protection_by_layer
from hoplon_studies.aspis.maps import important_weights
from hoplon_studies.aspis.overheads import time_and_memory
from hoplon_studies.aspis.protection import same_faults
from hoplon_studies.aspis.sizes import fault_space, magnitude
from hoplon_studies.aspis.whole import whole_data
from hoplon_studies.framework.command import command_of
from hoplon_studies.framework.study import Part, Study

STUDY = Study(
    name="aspis",
    title="Aspis: the paper's evaluation beside hoplon's",
    introduction=(
        "A. Schmedding, L. Yang, A. Jog and E. Smirni, *Aspis: Lightweight Neural Network Protection Against Soft "
        "Errors*. The paper strikes VGG19, Inception v3 and ResNet50 with trained weights on ImageNet and CIFAR-10; "
        "here networks on CIFAR-10, the paper's second data set, stand in for those on ImageNet, as far as they are "
        "here. That CIFAR-10 gives qualitatively the same results, the paper says of Fig. 13.",
        "Faults flip two or three different random bits of one float32 convolution weight, as in the paper, or bit 30 "
        "and one more, or two bits but never bit 30; they meet all images of a "
        "held-out sample that the network gets right. Scores are from calibration images, where the paper takes its "
        "test set. Times and memory are of the paper's architectures, whose weights do not matter for them.",
    ),
    parts=(
        Part("fault-space", "Tables I to III: networks, their fault sites, and images", fault_space),
        Part("magnitude", "Table IV: magnitudes of weights", magnitude),
        Part("critical", "Figs. 6 and 13: which weights are critical", critical_weights),
        Part("important", "Figs. 7 to 12: where the important weights are", important_weights),
        Part("same-faults", "Figs. 15 and 16: Aspis against Ranger on the same faults", same_faults),
        Part("layers", "Section IV-A: protection by layer", protection_by_layer),
        Part("drift", "Section IV-A: Aspis under drift", under_drift),
        Part("overheads", "Figs. 4, 5 and 17 to 19, Table V: time and memory", time_and_memory),
        Part("coverage", "Table V: what each guard covers", covered),
        Part("whole-data", "Figs. 4 and 17: run time over whole data sets", whole_data),
    ),
    claims=headlines,
)

COMMAND = command_of(STUDY)
"""Run by ``hoplon study aspis``."""
