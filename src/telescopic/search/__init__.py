"""Random search over models (ShrinkNets' Figure 2), kept by Optuna."""

from telescopic.search.parallel import search_in_processes as search_in_processes
from telescopic.search.results import Model as Model
from telescopic.search.results import models as models
from telescopic.search.results import plots as plots
from telescopic.search.results import read_csv as read_csv
from telescopic.search.results import results as results
from telescopic.search.results import write_csv as write_csv
from telescopic.search.study import known_study as known_study
from telescopic.search.study import open_study as open_study
from telescopic.search.study import search as search
from telescopic.search.study import study_name as study_name
