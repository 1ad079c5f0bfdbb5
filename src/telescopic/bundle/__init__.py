"""How a trained network is kept: one safetensors file with every tensor once, and all that is known about it.

Names are imported when they are first used: what a file says about itself is read without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
