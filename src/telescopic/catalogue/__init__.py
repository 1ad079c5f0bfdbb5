"""All members of a nested network in one table: measured, saved, and chosen from."""

from telescopic.catalogue.choosing import BudgetError, Choice, Member
from telescopic.catalogue.measuring import measure, measure_latency
from telescopic.catalogue.table import Catalogue, CatalogueError, CostName

__all__ = [
    "BudgetError",
    "Catalogue",
    "CatalogueError",
    "Choice",
    "CostName",
    "Member",
    "measure",
    "measure_latency",
]
