"""The laws of nested networks: `check_nested` checks that a network keeps them, yours and ours alike."""

from telescopic.testing.check import check_nested as check_nested
