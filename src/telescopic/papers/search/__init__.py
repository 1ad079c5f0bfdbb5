"""Random search over models (ShrinkNets' Figure 2), kept by Optuna."""

from telescopic.papers.search.figure_2 import figure_2 as figure_2
from telescopic.papers.search.parallel import search_in_processes as search_in_processes
from telescopic.papers.search.results import Model as Model
from telescopic.papers.search.results import models as models
from telescopic.papers.search.results import plots as plots
from telescopic.papers.search.results import read_csv as read_csv
from telescopic.papers.search.results import results as results
from telescopic.papers.search.results import write_csv as write_csv
from telescopic.papers.search.study import known_study as known_study
from telescopic.papers.search.study import open_study as open_study
from telescopic.papers.search.study import search as search
from telescopic.papers.search.study import study_name as study_name
