"""Train one network; deploy every size of it.

What there is stands on one screen in `__init__.pyi`; each name is imported when it is first used, so that the command
line answers at once and parts that need no torch do not load it.
"""

import importlib.metadata

import lazy_loader

__version__ = importlib.metadata.version("telescopic")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
