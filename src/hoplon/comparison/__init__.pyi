from . import costs as costs
from .assessment import Assessment as Assessment
from .assessment import Plan as Plan
from .assessment import assess as assess
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .rerunning import Rerun as Rerun
from .rerunning import rerun as rerun
