from .golden_run import GoldenRun as GoldenRun
from .golden_run import accuracy as accuracy
from .golden_run import golden_outputs as golden_outputs
from .injector import Injector as Injector
from .memory_budget import Budget as Budget
