"""The workload: what a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass

from orbitsplit._io.validation import check_count


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked of the model.

    `micro_batches` micro-batches of `batch_size` sequences each enter the chain one after the other, every
    sequence with `prompt_tokens` tokens; then `new_tokens` tokens are generated per sequence (0: prefill only).
    While generating, all micro-batches are in flight.

    Raises:
        ValueError: A count is not a whole number or below its minimum.
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
        """Return the number of sequences of the whole batch."""
        return self.micro_batches * self.batch_size
