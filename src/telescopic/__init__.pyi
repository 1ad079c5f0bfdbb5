# The whole interface, in reading order.

# What a sub-network is, and the network that contains them all
from .subnet import Subnet as Subnet, Coordinates as Coordinates, Grid as Grid
from .nested import Nested as Nested
from .nest import nest as nest
from .causal import causal_ as causal_
from .slim import slim as slim
from . import importance as importance
from . import layers as layers
from . import networks as networks

# Data
from . import data as data
from .data import DataError as DataError, Preprocess as Preprocess, Augment as Augment

# What is learned, and how it is scored
from . import tasks as tasks
from .tasks import Task as Task
from .metric import Metric as Metric

# Training every member together
from . import recipes as recipes
from .train import Recipe as Recipe, Phase as Phase, Shrink as Shrink, fit as fit, pairwise as pairwise
from .train import Objective as Objective
from .evaluate import evaluate as evaluate
from .statistics import recalibrate as recalibrate
from .readout import fit_heads as fit_heads
from .train import History as History, TrainingError as TrainingError, CheckpointError as CheckpointError

# Learning how wide each layer is
from . import shrink as shrink

# Measuring and choosing
from .catalogue import measure as measure, Catalogue as Catalogue, Member as Member, BudgetError as BudgetError
from .cost import cost as cost, Cost as Cost, latency as latency, Latency as Latency

# Taking one out
from .extract import extract as extract
from .folding import fold_bn as fold_bn
from .bundle import save as save, load as load, Bundle as Bundle, BundleError as BundleError
from .architecture import register_layer as register_layer
from .export import export as export, ExportError as ExportError
from .report import write_report as write_report

# Running it: better and better answers
from .anytime import anytime as anytime, Answer as Answer, best_path as best_path, deepening as deepening
from .anytime import confidence_for as confidence_for, step_costs as step_costs

# In production: members packed with one copy of the weights, run without torch
from .packing import pack as pack
from .engine import PackError as PackError, Engine as Engine, Prediction as Prediction, Controller as Controller

# The methods, and the laws that every network obeys
from . import papers as papers
from . import testing as testing

__version__: str
