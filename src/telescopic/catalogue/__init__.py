"""All members of a nested network in one table: measured, saved, and chosen from.

Names are imported when they are first used: a table is read and chosen from without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
