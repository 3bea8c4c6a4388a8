"""Calibrated codecs of one model as one file, and what their loss costs in accuracy."""
