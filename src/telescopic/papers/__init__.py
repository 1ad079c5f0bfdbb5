"""The methods: one paper, one page."""

from telescopic.papers import cnsn as cnsn
from telescopic.papers import doubly_nested as doubly_nested
from telescopic.papers import nsn as nsn
from telescopic.papers import shrinknets as shrinknets
