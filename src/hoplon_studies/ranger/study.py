"""The evaluation of Ranger (Chen, Li and Pattabiraman), part by part."""

from __future__ import annotations

from hoplon_studies.framework.command import command_of
from hoplon_studies.framework.study import Part, Study
from hoplon_studies.ranger.alternatives import against_tanh, artifact, coverage, policies
from hoplon_studies.ranger.bounds import convergence, percentiles
from hoplon_studies.ranger.costs import accuracy, operations, subjects
from hoplon_studies.ranger.examples import pictures
from hoplon_studies.ranger.rates import classifiers, floating_point, sixteen_bits, steering, users_own

STUDY = Study(
    name="ranger",
    title="Ranger: the paper's evaluation beside hoplon's",
    introduction=(
        "Z. Chen, G. Li and K. Pattabiraman, *A Low-cost Fault Corrector for Deep Neural Networks through Range "
        'Restriction* (DSN 2021; "Ranger: Boosting Error Resilience of Deep Neural Networks through Range '
        'Restriction"). Each row has what the paper gives and what was found here.',
        "The paper's protocol, unless a row says otherwise: the operators of the network are drawn as TensorFlow has "
        "them, convolution and bias apart; a fault strikes one operator, uniformly drawn, the last fully connected "
        "layer left out, then one element of its output, then one of its 31 magnitude bits in fixed point with 21 "
        "integer and 10 fraction bits (16 bits: 14 and 2); the sign is never struck. It meets one of 10 inputs that "
        "the network gets right. Bounds are the extremes of a random 20 % of the training data. Without and with "
        "Ranger the same faults strike, before the bound of their own operator. Limits are Wilson's, over runs, for "
        "these inputs and weights.",
        "Neither GTSRB nor ImageNet nor weights for them are here. Their rows say so; the next row has the same "
        "architecture trained on CIFAR-10, and is no measurement of the paper's network.",
    ),
    parts=(
        Part("networks", "Table I: networks and data", subjects),
        Part("pictures", "Fig. 4: pictures of failures", pictures),
        Part("convergence", "Fig. 5: how quickly the bounds are found", convergence),
        Part("classifiers", "RQ1, Fig. 6: classifiers", classifiers),
        Part("steering", "RQ1, Fig. 7: steering", steering),
        Part("script", "RQ1: Dave with faults drawn as by the published script", artifact),
        Part("tanh", "Fig. 8: hyperbolic tangents in place of ReLUs", against_tanh),
        Part("accuracy", "RQ2, Table II: accuracy without faults", accuracy),
        Part("operations", "RQ3, Table III: floating-point operations", operations),
        Part("sixteen-bits", "RQ4, Fig. 9: 16-bit fixed point", sixteen_bits),
        Part("percentiles", "Table IV and Fig. 10: tighter bounds", percentiles),
        Part("policies", "Section V-B: what a value outside of its bound becomes", policies),
        Part("coverage", "Algorithm 1 and the last layer", coverage),
        Part("float32", "Beside the paper: float32", floating_point),
        Part("own", "Your own model", users_own),
    ),
)

COMMAND = command_of(STUDY)
"""Run by ``hoplon study ranger``."""
