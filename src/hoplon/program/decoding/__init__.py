"""Decoding loops of language models as programs."""
