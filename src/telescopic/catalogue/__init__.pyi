from .choosing import BudgetError as BudgetError
from .choosing import Choice as Choice
from .choosing import Member as Member
from .measuring import measure as measure
from .measuring import measure_latency as measure_latency
from .table import Catalogue as Catalogue
from .table import CatalogueError as CatalogueError
from .table import CostName as CostName
