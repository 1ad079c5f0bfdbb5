"""The methods: one paper, one page."""

from telescopic.papers import nsn as nsn
