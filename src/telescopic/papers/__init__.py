"""The methods: one paper, one page."""

from telescopic.papers import cnsn as cnsn
from telescopic.papers import cnsn_runs, doubly_nested_runs, shrinknets_runs
from telescopic.papers import doubly_nested as doubly_nested
from telescopic.papers import nsn as nsn
from telescopic.papers import shrinknets as shrinknets
from telescopic.papers.paper import Paper as Paper

PAPERS: tuple[Paper, ...] = (nsn.PAPER, cnsn_runs.PAPER, doubly_nested_runs.PAPER, shrinknets_runs.PAPER)
"""What there are commands, runs and tables of."""
