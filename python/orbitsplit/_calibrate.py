"""What each codec saves and what it loses at each cut of a model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from ._compress import Codec, compress, decompress
from ._layer_time import machine_name
from ._layers import Passthrough, find_layers, find_layout
from ._levels import LevelTable
from ._model import load_tokenizer, open_model, read_config
from ._problem import Level
from ._stage import StageModel

# Next-token distributions compared per cut and codec. The head over a large vocabulary costs more than all layers
# behind a cut, and the loss varies more from text to text than with more positions of one text.
_POSITIONS = 32


def measure_levels(
    model: str | Path,
    data: Tensor | Sequence[str],
    *,
    codecs: Sequence[str] = ("raw", "bf16", "int8", "int4", "topk"),
    prompt_tokens: int = 256,
    dtype: torch.dtype = torch.float32,
    progress: Callable[[str, float], None] | None = None,
) -> LevelTable:
    """Measure what each codec saves and loses at each cut of a causal language model.

    `data` is token ids [B, S] without padding, or texts, of each of which the first `prompt_tokens` tokens count. Each
    cut is measured alone, with the whole model in memory; losses of several cuts add up to good accuracy.

    Raises:
        ValueError: No text has `prompt_tokens` tokens, the ids are not [B, S], a codec is unknown or given twice, the
            architecture cannot be split, or outputs are not finite (float16 overflows on some models).
    """
    _check_codecs(codecs)
    report = progress or (lambda _step, _fraction: None)
    source = open_model(model, progress=progress)
    input_ids = data if isinstance(data, Tensor) else _tokens(source, data, prompt_tokens)
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"token ids have shape {tuple(input_ids.shape)}, expected a non-empty [B, S]")
    report("loading the model", 0.0)
    layout = find_layout(read_config(source))
    stage = StageModel.load(source, 0, layout.layer_count + 2, dtype=dtype)
    tails = _Tails(stage, layout.tuple_length, input_ids)
    timings: dict[str, list[_Timing]] = {codec: [] for codec in codecs}
    loss = []
    for cut, hidden in tails.walk():
        report(f"cut after {cut} of {layout.layer_count} layers", cut / (layout.layer_count + 1))
        received = []
        for codec in codecs:
            array, timing = _transmit(hidden, codec)
            received.append(array)
            timings[codec].append(timing)
        loss.append(tails.losses(received))
        for codec, nats in zip(codecs, loss[-1], strict=True):
            if not math.isfinite(nats):
                raise ValueError(f"outputs are not finite with codec {codec} at the cut after {cut} layers")
    report("levels measured", 1.0)
    return LevelTable(
        levels=tuple(_level(codec, timings[codec]) for codec in codecs),
        loss=tuple(loss),
        provenance={"model": str(model), **_provenance(stage, tails)},
    )


def _check_codecs(codecs: Sequence[str]) -> None:
    names = [str(Codec.parse(codec)) for codec in codecs]
    if not names:
        raise ValueError("no codec to measure")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"codec {name} is given {names.count(name)} times")


def _provenance(stage: StageModel, tails: _Tails) -> dict[str, Any]:
    rows, tokens = tails.input_ids.shape
    return {
        "dtype": str(stage.model.dtype).removeprefix("torch."),
        "rows": rows,
        "tokens_per_row": tokens,
        "positions": rows * tails.positions.numel(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": machine_name(),
    }


def _tokens(model: str | Path, texts: Sequence[str], count: int) -> Tensor:
    tokenizer = load_tokenizer(model)
    rows = [tokenizer(text, truncation=True, max_length=count).input_ids for text in texts]
    long_enough = [row for row in rows if len(row) == count]
    if not long_enough:
        longest = max((len(row) for row in rows), default=0)
        raise ValueError(f"none of the {len(rows)} texts has {count} tokens, the longest has {longest}")
    return torch.tensor(long_enough)


@dataclass(frozen=True)
class _Timing:
    original_bytes: int
    frame_bytes: int
    encode_s: float
    decode_s: float


def _transmit(hidden: Tensor, codec: str) -> tuple[Tensor, _Timing]:
    start = time.thread_time()
    frame = compress(hidden, codec=codec)
    encoded = time.thread_time()
    received: Tensor = decompress(frame, framework="torch", max_bytes=hidden.nbytes)
    decoded = time.thread_time()
    return received, _Timing(hidden.nbytes, len(frame), encoded - start, decoded - encoded)


def _level(codec: str, timings: Sequence[_Timing]) -> Level:
    frames = sum(timing.frame_bytes for timing in timings)
    return Level(
        name=codec,
        # A raw frame is longer than the activation by its header; the planner wants ratios of at least 1.
        ratio=max(1.0, sum(timing.original_bytes for timing in timings) / frames),
        encode_s_per_byte=statistics.median(timing.encode_s / timing.original_bytes for timing in timings),
        decode_s_per_byte=statistics.median(timing.decode_s / timing.original_bytes for timing in timings),
    )


class _Tails:
    """The model behind each cut in turn: what is before the cut is computed once, for all cuts."""

    def __init__(self, stage: StageModel, tuple_length: int | None, input_ids: Tensor) -> None:
        self._model = stage.model
        self._tuple_length = tuple_length
        self.input_ids = input_ids
        self._injected: Tensor | None = None
        rows, tokens = input_ids.shape
        count = min(tokens, max(1, _POSITIONS // rows))
        # Evenly spaced up to the last one; early tokens, with little context, are part of every prompt too.
        self.positions = torch.arange(1, count + 1) * tokens // count - 1
        _, self._layers = find_layers(stage.model)
        with self._recording() as self._hidden:
            (self._reference,) = self._log_probabilities(1)
        if not bool(self._reference.isfinite().all()):
            raise ValueError(f"the model's own outputs are not finite in {stage.model.dtype}")
        self._sent = self._hidden[0]
        self._layers[0].register_forward_pre_hook(self._inject, with_kwargs=True)

    def walk(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each cut with the activation that crosses it; until the next one, `losses` are of that cut."""
        for cut, hidden in enumerate(self._hidden):
            if cut > 0:
                passed = Passthrough(cut - 1, self._layers[cut - 1], self._tuple_length)
                passed.register_forward_pre_hook(self._inject, with_kwargs=True)
                self._layers[cut - 1] = passed
            self._sent = hidden
            yield cut, hidden

    @torch.inference_mode()
    def losses(self, received: Sequence[Tensor]) -> tuple[float, ...]:
        """Return the mean KL divergence, in nats per token, when the layers behind the cut get these activations.

        They run as one batch, because the head's weights, often most of the model, are then read once for all.
        """
        # What comes back as it was needs no forward to know that nothing is lost.
        changed = [index for index, array in enumerate(received) if not torch.equal(array, self._sent)]
        losses = [0.0] * len(received)
        if changed:
            self._injected = torch.cat([received[index] for index in changed])
            for index, log_p in zip(changed, self._log_probabilities(len(changed)), strict=True):
                divergence = nn.functional.kl_div(log_p, self._reference, log_target=True, reduction="sum")
                mean = float(divergence) / (log_p.shape[0] * log_p.shape[1])
                losses[index] = 0.0 if mean < 0 else mean  # rounding may go below 0; NaN stays NaN
        return tuple(losses)

    @torch.inference_mode()
    def _log_probabilities(self, copies: int) -> tuple[Tensor, ...]:
        ids = self.input_ids.repeat(copies, 1)
        logits: Tensor = self._model(input_ids=ids, use_cache=False, logits_to_keep=self.positions).logits
        return tuple(part.float().log_softmax(-1) for part in logits.chunk(copies))

    def _inject(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (self._injected, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._injected}

    @contextmanager
    def _recording(self) -> Iterator[list[Tensor]]:
        recorded: list[Tensor] = []

        def before(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recorded.append(args[0] if args else kwargs["hidden_states"])

        def after(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            recorded.append(output[0] if isinstance(output, (tuple, list)) else output)

        handles = [self._layers[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [layer.register_forward_hook(after) for layer in self._layers]
        try:
            yield recorded
        finally:
            for handle in handles:
                handle.remove()
