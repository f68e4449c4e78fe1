"""Faults in decoding loops."""
