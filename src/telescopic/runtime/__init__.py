"""How a network runs: answers at any time; and in production the members of a pack, chosen as time allows.

Names are imported when they are first used, so that the engine, which needs no torch, does not load it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
