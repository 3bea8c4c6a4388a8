"""What the server needs of a pipeline; `orbitsplit.Pipeline` has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Submitted(Protocol):
    """A sequence that an engine generates, or will."""

    def cancel(self) -> None:
        """End it soon; `on_end` is still called. Twice, or after the end, is fine."""


class Engine(Protocol):
    """Generates sequences, as many at once as it can, first come first served."""

    def submit(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int,
        eos_token_id: Sequence[int] | int | None = None,
        do_sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        on_tokens: Callable[[Tensor], None],
        on_end: Callable[[BaseException | None], None],
    ) -> Submitted:
        """Queue one sequence; may be called from any thread.

        `input_ids` is int64 [1, S]. `on_tokens` is called with the new token [1] of each step, `on_end` once after the
        last of them, with the error if it failed; both from a thread of the engine, and return at once.

        Raises:
            ValueError: An argument is wrong.
            TransportError: The pipeline cannot be used.
        """
