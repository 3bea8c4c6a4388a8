"""The workload that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from orbitsplit._io.validation import check_count


@dataclass(frozen=True, slots=True)
class Workload:
    """The prompts of a batch, and the tokens to generate.

    Attributes:
        micro_batches: Number of micro-batches, which enter the chain back to back; all are in flight during generation.
        prompt_tokens: Tokens of each prompt.
        new_tokens: Tokens to generate per sequence; 0: prefill only.
        batch_size: Sequences of a micro-batch.

    Raises:
        ValueError: A count is below its minimum.
        TypeError: A count is not an integer.
    """

    micro_batches: int = 1
    prompt_tokens: int = 512
    new_tokens: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name, minimum in (
            ("micro_batches", 1),
            ("prompt_tokens", 1),
            ("new_tokens", 0),
            ("batch_size", 1),
        ):
            check_count(f"Workload.{name}", getattr(self, name), minimum)

    @property
    def sequences(self) -> int:
        """Number of sequences of all micro-batches."""
        return self.micro_batches * self.batch_size
