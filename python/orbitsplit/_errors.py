"""Exceptions raised by orbitsplit.

    Exception
    └── OrbitsplitError
        ├── InfeasiblePlanError   (also ValueError)  no plan fits memory, links and loss budget
        ├── CorruptFrameError     (also ValueError)  bytes that are not a valid frame
        └── TransportError                           a node or a link of a running pipeline failed

Wrong arguments are plain `ValueError` or `TypeError`.
"""

from __future__ import annotations

from typing import Any


class OrbitsplitError(Exception):
    """Base class of every error that orbitsplit defines."""


class InfeasiblePlanError(OrbitsplitError, ValueError):
    """No plan satisfies the memory, link and loss limits; the message says what is missing."""


class CorruptFrameError(OrbitsplitError, ValueError):
    """The bytes are not a valid frame: damaged, truncated, or beyond the given limits."""


class TransportError(OrbitsplitError):
    """A node or a link of a running pipeline failed; the message names it.

    `kind` is "killed" (a process or its host ended), "hangs" (no heartbeat), "memory" (a stage ran out of it), "link"
    (messages do not arrive), "corruption" (they keep arriving corrupted), "failed" (an error of the stage's own),
    "request" (an error that a stage raised for this request; others are not affected), "timeout" (a limit of the
    caller), "peer" (the consequence of another failure), "host" (this machine or absent hosts let no pipeline start),
    "unusable" (the pipeline had ended before), or of `Pipeline.migrate` "busy" (another migration is under way) or
    "overtaken" (a loss ended it, the pipeline recovers). `node` is the node's name or None, `link` a pair of names or
    None.
    `tokens` are those that a call of `generate` had so far, [B, S + new] (a tensor), None elsewhere.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str = "failed",
        node: str | None = None,
        link: tuple[str, str] | None = None,
        tokens: Any = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.node = node
        self.link = link
        self.tokens = tokens
