from .allocation import allocate as allocate
from .bootstrap import block_bootstrap as block_bootstrap
from .intervals import (
    Interval as Interval,
    Ratio as Ratio,
    clopper_pearson as clopper_pearson,
    clustered as clustered,
    mcnemar as mcnemar,
    paired_clustered as paired_clustered,
    paired_difference as paired_difference,
    paired_ratio as paired_ratio,
    sample_size as sample_size,
    weighted as weighted,
    wilson as wilson,
)
from .lifetimes import AnyFailure as AnyFailure, any_failure as any_failure
from .sequential import Looks as Looks, increase_at_look as increase_at_look, probability_at_look as probability_at_look
from .strata_estimates import limits as limits, paired_weighted as paired_weighted, stratified as stratified
from .two_stage import TwoStagePlan as TwoStagePlan, VarianceComponents as VarianceComponents, cheapest as cheapest
