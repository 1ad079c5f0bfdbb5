"""How a nested network is trained."""

from telescopic.evaluate import evaluate as evaluate
from telescopic.statistics import recalibrate as recalibrate
from telescopic.train.checkpoint import CheckpointError as CheckpointError
from telescopic.train.fitting import fit as fit
from telescopic.train.history import Epoch as Epoch
from telescopic.train.history import History as History
from telescopic.train.loop import TrainingError as TrainingError
from telescopic.train.objective import Objective as Objective
from telescopic.train.objective import pairwise as pairwise
from telescopic.train.recipe import Phase as Phase
from telescopic.train.recipe import Recipe as Recipe
from telescopic.train.recipe import Shrink as Shrink
