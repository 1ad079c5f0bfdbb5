"""An engine behind HTTP: every request may carry its own budget or deadline, and the load may change."""

try:
    from telescopic.serve.application import application
    from telescopic.serve.run import listening, run_on
except ImportError as error:
    raise ImportError(f'{error.name} is not installed: pip install "telescopic[serve]"') from error

__all__ = ["application", "listening", "run_on"]
