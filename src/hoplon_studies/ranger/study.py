"""The evaluation of Ranger (Chen, Li and Pattabiraman), part by part."""

from __future__ import annotations

from hoplon_studies.framework.command import command_of
from hoplon_studies.framework.study import Part, Study
from hoplon_studies.ranger.alternatives import against_tanh, artifact, coverage
from hoplon_studies.ranger.bounds import convergence, percentiles
from hoplon_studies.ranger.claims import headlines
from hoplon_studies.ranger.costs import accuracy, operations, subjects
from hoplon_studies.ranger.examples import pictures
from hoplon_studies.ranger.rates import classifiers, floating_point, sixteen_bits, steering, two_bits, users_own
from hoplon_studies.ranger.recorded import drive
from hoplon_studies.ranger.replacements import policies, weights

STUDY = Study(
    name="ranger",
    title="Ranger: the paper's evaluation beside hoplon's",
    introduction=(
        "Z. Chen, G. Li and K. Pattabiraman, *Ranger: Boosting Error Resilience of Deep Neural Networks through Range "
        "Restriction* (arXiv 2003.13874, whose figures these are; DSN 2021 as *A Low-cost Fault Corrector for Deep "
        "Neural Networks through Range Restriction*).",
        "The paper's protocol, completed by its published script where the text is silent: a fault strikes one "
        "operator as TensorFlow has them, "
        "uniformly drawn, the last fully connected layer left out, then one element of its output, then one of its 31 "
        "magnitude bits in fixed point with 21 integer and 10 fraction bits (16 bits: 14 and 2), never the sign; it "
        "meets one of 10 inputs that the network gets right. Bounds are the extremes of a random 20 % of the "
        "calibration data, which for ResNet-20 and ResNet-56 is 4 % of what they were trained on.",
        "Arms of a table meet the same faults, before the bound of their own operator: *none* without protection, "
        "*ranger* with it. Limits are Wilson's over runs, for these inputs and weights; *times fewer* joins opposite "
        "limits, the *difference* is paired, in points. The 4.49 % of Fig. 10 is derived: twice the abstract's "
        "2.49 less "
        "Comma's 0.49.",
    ),
    parts=(
        Part("networks", "Table I: networks and data", subjects),
        Part("pictures", "Fig. 4: pictures of failures", pictures),
        Part("convergence", "Fig. 5: how quickly the bounds are found", convergence),
        Part("classifiers", "RQ1, Fig. 6: classifiers", classifiers),
        Part("steering", "RQ1, Fig. 7: steering", steering),
        Part("recorded", "Beside Fig. 7: a recorded drive", drive),
        Part("script", "RQ1: Dave with faults drawn as by the published script", artifact),
        Part("tanh", "Fig. 8: hyperbolic tangents in place of ReLUs", against_tanh),
        Part("accuracy", "RQ2, Table II: accuracy without faults", accuracy),
        Part("operations", "RQ3, Table III: floating-point operations", operations),
        Part("sixteen-bits", "RQ4, Fig. 9: 16-bit fixed point", sixteen_bits),
        Part("percentiles", "Table IV and Fig. 10: tighter bounds", percentiles),
        Part("policies", "Section V-B: what a value outside of its bound becomes", policies),
        Part("weights", "Beside section V-B: the same for faults in weights", weights),
        Part("coverage", "Algorithm 1 and the last layer", coverage),
        Part("float32", "Beside the paper: float32", floating_point),
        Part("two-bits", "Beside the paper: two flipped bits", two_bits),
        Part("own", "Your own model", users_own),
    ),
    claims=headlines,
)

COMMAND = command_of(STUDY)
"""Run by ``hoplon study ranger``."""
