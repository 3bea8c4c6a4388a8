"""What the server needs of a pipeline. `orbitsplit.Pipeline` provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor


class Submitted(Protocol):
    """A sequence that an engine generates or has queued."""

    def cancel(self) -> None:
        """End it soon; `on_end` is still called. No effect after the end or a second time."""


class Engine(Protocol):
    """Generates sequences concurrently, first come, first served.

    An engine may also have `recoveries`, a sequence of losses that it survived, which the server logs, and `plan`, an
    `orbitsplit.Plan`, which `serve_model` reads for the tokens per request that it reserves memory for. `failure` says
    why the engine has ended, None while it works: the server ends with it. `is_ready` is False while work would wait
    for a recovery, `status` returns an `orbitsplit.runtime.PipelineStatus` for the metrics, and `forward` runs an
    encoder for embeddings.

    `submit` gets further keywords for what a request asks for, named as the fields of `orbitsplit.GenerationOptions`:
    penalties, `min_p`, `sequence_bias`, `min_new_tokens`, `logits_processor`; `logprobs` and `prompt_logprobs` with
    `on_logprobs` and `on_prompt_logprobs`; `num_assistant_tokens` where `ServerOptions` have them.
    """

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
        last step, with the error if the sequence failed; both by a thread of the engine, and both return at once.

        Raises:
            ValueError: An argument is wrong. The client receives the first line of the message.
            TransportError: The pipeline cannot be used.
        """
