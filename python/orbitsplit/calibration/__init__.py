"""Fit codecs to the activations of a model, and measure what plans cost. Imports torch and transformers."""

from ._calibrate import CODECS, LEVELS, calibrate, random_plans
from ._measure import AnyCodec, Measured, Reference, Transmitted
from ._verify import Trial, Verification, held_out, verify

__all__ = [
    "CODECS",
    "LEVELS",
    "AnyCodec",
    "Measured",
    "Reference",
    "Transmitted",
    "Trial",
    "Verification",
    "calibrate",
    "held_out",
    "random_plans",
    "verify",
]
