from .header import BundleError as BundleError
from .store import Bundle as Bundle
from .store import load as load
from .store import save as save
