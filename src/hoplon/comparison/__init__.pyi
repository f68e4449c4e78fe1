from . import costs as costs
from .assessment import Assessment as Assessment, AssessmentPlan as AssessmentPlan, assess as assess
from .comparison import Comparison as Comparison, compare as compare
from .rerunning import Rerun as Rerun, rerun as rerun
