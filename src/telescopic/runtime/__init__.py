"""How a network runs: answers at any time."""

from telescopic.runtime.anytime import Answer as Answer
from telescopic.runtime.anytime import anytime as anytime
from telescopic.runtime.anytime import confidence_for as confidence_for
from telescopic.runtime.anytime import deepening as deepening
from telescopic.runtime.anytime import step_costs as step_costs
from telescopic.runtime.paths import best_path as best_path
from telescopic.runtime.trial import Trial as Trial
from telescopic.runtime.trial import try_deadlines as try_deadlines
