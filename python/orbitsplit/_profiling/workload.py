"""The workload that a plan is made for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from orbitsplit._io.validation import check_count, check_number


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of a batch, or of requests that arrive at a rate, and the tokens to generate.

    With `arrivals_per_s`, requests of one sequence arrive independently of each other (a Poisson process). At most
    `sequences` of them are in flight, and a further one waits; their token steps share up to `micro_batches` forwards
    of up to `batch_size` rows each.

    Attributes:
        micro_batches: Number of micro-batches, which enter the chain back to back; all are in flight during generation.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens to generate per sequence; 0: prefill only.
        batch_size: Sequences of a micro-batch.
        acceptance: The probability that a guessed token is right if those before it were, 0 to 1; 0: no guesses.
        arrivals_per_s: Mean number of requests that arrive in a second; None: all prompts are there at once.

    Raises:
        ValueError: A count is below its minimum, or the acceptance or the rate out of range.
        TypeError: A count is not an integer, or the acceptance or the rate not a number.
    """

    micro_batches: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 0
    batch_size: int = 1
    acceptance: float = 0.0
    arrivals_per_s: float | None = None

    def __post_init__(self) -> None:
        for name, minimum in (
            ("micro_batches", 1),
            ("prompt_tokens", 1),
            ("new_tokens", 0),
            ("batch_size", 1),
        ):
            check_count(f"Workload.{name}", getattr(self, name), minimum)
        check_number("Workload.acceptance", self.acceptance)
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"Workload.acceptance is {self.acceptance:g}, must be 0 to 1")
        if self.arrivals_per_s is not None:
            check_number("Workload.arrivals_per_s", self.arrivals_per_s)
            if not 0 < self.arrivals_per_s < math.inf:
                raise ValueError(f"Workload.arrivals_per_s is {self.arrivals_per_s:g}, must be finite and above 0")

    @property
    def sequences(self) -> int:
        """Number of sequences of all micro-batches; with a rate the most that are in flight."""
        return self.micro_batches * self.batch_size
