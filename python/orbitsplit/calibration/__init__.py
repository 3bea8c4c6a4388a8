"""Fit codecs to the activations of a model, and measure what plans cost. Imports torch and transformers."""

from ._activation_hooks import ActivationHooks
from ._calibrate import calibrate, random_plans
from ._measure import AnyCodec, Measured, Reference, Transmitted
from ._options import CODECS, LEVELS, CalibrationOptions
from ._task import Batch, Task
from ._verify import Trial, Verification, held_out, verify

__all__ = [
    "CODECS",
    "LEVELS",
    "ActivationHooks",
    "AnyCodec",
    "Batch",
    "CalibrationOptions",
    "Measured",
    "Reference",
    "Task",
    "Transmitted",
    "Trial",
    "Verification",
    "calibrate",
    "held_out",
    "random_plans",
    "verify",
]
