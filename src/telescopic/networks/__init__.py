"""Builder functions that return a `Nested`."""

from telescopic.networks.mlp import mlp as mlp
