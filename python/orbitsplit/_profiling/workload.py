"""The workload that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from orbitsplit._io.validation import check_count, check_number


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of a batch, and the tokens to generate.

    Attributes:
        micro_batches: Number of micro-batches, which enter the chain back to back; all are in flight during generation.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens to generate per sequence; 0: prefill only.
        batch_size: Sequences of a micro-batch.
        acceptance: The probability that a guessed token is right if those before it were, 0 to 1; 0: no guesses.

    Raises:
        ValueError: A count is below its minimum, or the acceptance out of range.
        TypeError: A count is not an integer, or the acceptance not a number.
    """

    micro_batches: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 0
    batch_size: int = 1
    acceptance: float = 0.0

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

    @property
    def sequences(self) -> int:
        """Number of sequences of all micro-batches."""
        return self.micro_batches * self.batch_size
