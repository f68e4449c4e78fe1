from .golden_run import GoldenRun as GoldenRun, accuracy as accuracy, golden_outputs as golden_outputs
from .injector import Injector as Injector
from .memory_budget import Budget as Budget
