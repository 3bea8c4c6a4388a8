"""Exceptions raised by orbitsplit.

    Exception
    └── OrbitsplitError
        ├── InfeasiblePlanError   (also ValueError)  no plan fits memory, links and loss budget
        ├── CorruptFrameError     (also ValueError)  bytes that are not a valid frame
        └── TransportError                           a node or a link of a running pipeline failed

Wrong arguments are plain `ValueError` or `TypeError`.
"""

from __future__ import annotations


class OrbitsplitError(Exception):
    """Base class of every error that orbitsplit defines."""


class InfeasiblePlanError(OrbitsplitError, ValueError):
    """No plan satisfies the memory, link and loss limits; the message says what is missing."""


class CorruptFrameError(OrbitsplitError, ValueError):
    """The bytes are not a valid frame: damaged, truncated, or beyond the given limits."""


class TransportError(OrbitsplitError):
    """A node or a link of a running pipeline failed; the message names it."""
