"""An engine behind HTTP: every request may carry its own budget or deadline, and the load may change."""

from telescopic.extras import needs

with needs("serve"):
    from telescopic.serve.application import application
    from telescopic.serve.run import listening, run_on

__all__ = ["application", "listening", "run_on"]
