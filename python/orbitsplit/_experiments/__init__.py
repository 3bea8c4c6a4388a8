"""Experiments that reproduce published results."""
