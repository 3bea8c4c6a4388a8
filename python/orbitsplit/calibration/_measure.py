"""The loss of codecs in a model, measured with real frames: at one cut after another, or at several at once."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from orbitsplit._codec.calibrated import CalibratedCodec
from orbitsplit._codec.codecs import compress, decompress
from orbitsplit._io.deprecation import renamed_attribute
from orbitsplit._io.validation import check_range
from orbitsplit._models.source import unsupported

from ._activation_hooks import ActivationHooks
from ._task import Batch, Task

# The divergence that float32 arithmetic in another order makes; layers that read more than the hidden state make far
# more.
_SAME = 1e-5

# The memory for a model's own outputs by default.
KEPT_BYTES = 512 << 20


@dataclass(frozen=True, slots=True)
class Transmitted:
    """An activation after encoding and decoding, the bytes of its frame, and seconds of one thread."""

    received: Tensor
    frame_bytes: int
    encode_s: float
    decode_s: float


AnyCodec: TypeAlias = "CalibratedCodec | str | Callable[[Tensor], Transmitted]"
"""A calibrated codec, the name of a fixed one, or a function that encodes and decodes an activation [B, S, H]."""


def transmit(hidden: Tensor, codec: AnyCodec) -> Transmitted:
    """Encode and decode an activation [..., H]."""
    if callable(codec):
        return codec(hidden)
    start = time.thread_time()
    frame = compress(hidden.contiguous(), codec=codec)
    encoded = time.thread_time()
    book = codec if isinstance(codec, CalibratedCodec) else None
    received: Tensor = decompress(frame, book, framework="torch", max_bytes=max(1, hidden.nbytes))
    return Transmitted(received, len(frame), encoded - start, time.thread_time() - encoded)


@dataclass(frozen=True, slots=True)
class Measured:
    """The cost of codecs on some data: mean loss and mean drop in accuracy (a fraction), with standard errors.

    `loss` is in nats per token or sample (encoders: cosine distance). `accuracy` is that of the model without codecs;
    `samples` is the number of compared outputs; `bits_per_element` the mean size of the frames, 32 if nothing was
    encoded. `expected_drop` is the drop if the model's own probabilities are calibrated; it does not depend on labels.
    `nll_increase` is the mean increase of the negative log-likelihood of the targets, in nats. Standard errors treat
    the outputs of one text as one sample.
    """

    loss: float
    loss_error: float
    drop: float
    drop_error: float
    accuracy: float
    samples: int
    bits_per_element: float
    expected_drop: float
    expected_drop_error: float
    nll_increase: float
    nll_increase_error: float

    surprise = renamed_attribute("Measured.surprise", "nll_increase")
    surprise_error = renamed_attribute("Measured.surprise_error", "nll_increase_error")

    @property
    def perplexity_rise(self) -> float:
        """The relative increase of the perplexity of the targets (0.01: 1 %)."""
        return math.expm1(self.nll_increase)


@dataclass(frozen=True, slots=True)
class _Compared:
    """The outputs of one batch with codecs compared with those without, each by a value, and the size of the frames."""

    loss: Tensor
    right: Tensor
    drop: Tensor
    expected_drop: Tensor
    nll_increase: Tensor
    frame_bytes: int
    elements: int


class Reference:
    """A model's own outputs on some batches, with which outputs with codecs are compared; `held_out` makes one.

    The first `kept_bytes` of them are kept (next-token distributions over a large vocabulary take a megabyte each), the
    others are recomputed when needed. All batches are of one task.

    Raises:
        ValueError: The outputs are not finite.
    """

    def __init__(
        self, hooked: ActivationHooks, task: Task, batches: Sequence[Batch], *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self.hooked = hooked
        self.task = task
        self.batches = tuple(batches)
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes, self._most_kept_bytes = 0, kept_bytes

    @property
    def width(self) -> int:
        """The channels of the hidden state."""
        with torch.no_grad():
            return self.hooked.hidden(self.batches[0].inputs, 0).shape[-1]

    def outputs(self, index: int) -> Tensor:
        """Return the model's own outputs on a batch."""
        if index in self._kept:
            return self._kept[index]
        batch = self.batches[index]
        with torch.no_grad():
            outputs = self.task.outputs(self.hooked.run(batch.inputs), batch)
        if not bool(outputs.isfinite().all()):
            raise ValueError(f"the model's own outputs are not finite in {self.hooked.model.dtype}")
        if self._kept_bytes + outputs.nbytes <= self._most_kept_bytes:
            self._kept[index] = outputs
            self._kept_bytes += outputs.nbytes
        return outputs

    def measure(
        self,
        codecs: Mapping[int, AnyCodec],
        *,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_batch: Callable[[int], None] = lambda _index: None,
    ) -> Measured:
        """Return the cost of codecs at several cuts at once, {cut: codec}; each encodes what the earlier ones decoded.

        The model runs with them inside the context of `within`, which may give it other weights. `on_batch(index)` is
        called after each batch.

        Raises:
            TypeError: A cut is no integer, or a codec is none.
            ValueError: The model has no such cut, a codec does not fit its activation, or outputs are not finite.
        """
        return self.measure_each([codecs], within=within, on_batch=on_batch)[0]

    def measure_each(
        self,
        choices: Sequence[Mapping[int, AnyCodec]],
        *,
        within: Callable[[], AbstractContextManager[None]] = nullcontext,
        on_batch: Callable[[int], None] = lambda _index: None,
    ) -> list[Measured]:
        """Return what `measure` does for each of several choices, computing the outputs without codecs once for all."""
        for codecs in choices:
            for cut in codecs:
                check_range("a cut", cut, 0, len(self.hooked.layers))
        found: list[list[_Compared]] = [[] for _ in choices]
        for index, batch in enumerate(self.batches):
            reference = self.outputs(index)
            right = self.task.scores(reference, reference, batch)
            with within():
                for codecs, compared in zip(choices, found, strict=True):
                    compared.append(self._compare(batch, reference, right, codecs))
            on_batch(index)
        return [self._summed(compared) for compared in found]

    def _compare(self, batch: Batch, reference: Tensor, right: Tensor, codecs: Mapping[int, AnyCodec]) -> _Compared:
        """Run one batch with codecs and compare its outputs with the model's own."""
        frame_bytes = elements = 0

        def through(codec: AnyCodec) -> Callable[[Tensor], Tensor]:
            def at(hidden: Tensor) -> Tensor:
                nonlocal frame_bytes, elements
                sent = transmit(hidden, codec)
                frame_bytes += sent.frame_bytes
                elements += hidden.numel()
                return sent.received

            return at

        task = self.task
        with torch.no_grad():
            result = self.hooked.run(batch.inputs, {cut: through(codec) for cut, codec in codecs.items()})
            outputs = task.outputs(result, batch)
        return _Compared(
            loss=task.divergence(reference, outputs),
            right=right,
            drop=right - task.scores(reference, outputs, batch),
            expected_drop=task.expected_drop(reference, outputs),
            nll_increase=task.nll(outputs, batch) - task.nll(reference, batch),
            frame_bytes=frame_bytes,
            elements=elements,
        )

    def _summed(self, compared: Sequence[_Compared]) -> Measured:
        figures: dict[str, float] = {}
        for name in ("loss", "drop", "expected_drop", "nll_increase"):
            values = [getattr(one, name) for one in compared]
            figures[name], figures[f"{name}_error"] = self.with_error(values)
        elements = sum(one.elements for one in compared)
        return Measured(
            **figures,
            accuracy=float(torch.cat([one.right for one in compared]).mean()),
            samples=sum(len(one.loss) for one in compared),
            bits_per_element=8 * sum(one.frame_bytes for one in compared) / elements if elements else 32.0,
        )

    def with_error(self, values: Sequence[Tensor]) -> tuple[float, float]:
        """Return the mean of one value for each output, batch by batch, and its standard error."""
        return mean_and_error(values, are_clusters=self.batches[0].positions is not None)


class CutDownstream:
    """The layers behind one cut, on the batches of a reference; a `DownstreamModel`.

    `before` is the downstream model of an earlier cut of the same reference, from which the activation is computed.

    Raises:
        ValueError: The layers behind the cut take more than the hidden state.
    """

    def __init__(self, reference: Reference, cut: int, before: CutDownstream | None = None) -> None:
        self._reference = reference
        self.cut = cut
        self._is_exact: bool = before is None or before._is_exact
        hooked = reference.hooked
        reference.outputs(0)  # `ActivationHooks` runs a model whole once before in part
        self._sent: list[Tensor] = []
        with torch.no_grad():
            for index, batch in enumerate(reference.batches):
                start = None if before is None else (before.cut, before.sent(index))
                self._sent.append(hooked.hidden(batch.inputs, cut, start=start))
            if self._is_exact and abs(self._divergence_of_other_inputs()) > _SAME:
                raise ValueError(
                    unsupported(hooked.model.config, f"layers behind cut {cut} take more than its hidden state")
                )

    @property
    def batches(self) -> int:
        """The number of batches."""
        return len(self._reference.batches)

    def through(self, codec: CalibratedCodec | str) -> CutDownstream:
        """Return the downstream model of the same cut whose activation has passed a codec."""
        changed = copy.copy(self)
        changed._is_exact = False
        changed._sent = [transmit(hidden, codec).received for hidden in self._sent]
        return changed

    def sent(self, batch: int) -> Tensor:
        """Return the activation at the cut for a batch, [B, S, H]."""
        return self._sent[batch]

    def _divergence_of_other_inputs(self) -> float:
        """Return the loss with the hidden state of a batch and everything else from other inputs.

        It is not 0 if a layer reads the embeddings, or what an earlier layer stored in this forward or the last.
        """
        reference = self._reference
        batch = reference.batches[0]
        others = batch.disturbed()
        reference.hooked.run(others)
        result = reference.hooked.run(others, start=(self.cut, self._sent[0]))
        outputs = reference.task.outputs(result, batch)
        return float(reference.task.divergence(reference.outputs(0), outputs).mean())

    def sample(self, count: int) -> Tensor:
        """Return up to `count` rows of the activation, without padding, evenly spaced, [R, H]."""
        each = -(-count // self.batches)
        found = []
        for batch, hidden in zip(self._reference.batches, self._sent, strict=True):
            rows = batch.rows(hidden)
            found.append(rows[:: max(1, len(rows) // each)][:each])
        return torch.cat(found).float()

    def divergences(self, batch: int, received: Tensor) -> Tensor:
        """Return the divergence of each output when the layers behind the cut get `received`, [n]."""
        reference = self._reference
        given = reference.batches[batch]
        result = reference.hooked.run(given.inputs, start=(self.cut, received))
        return reference.task.divergence(reference.outputs(batch), reference.task.outputs(result, given))

    def divergence(self, batch: int, received: Tensor) -> Tensor:
        """Return the mean of `divergences`, differentiable in `received`."""
        return self.divergences(batch, received).mean()

    def loss(self, received: Sequence[Tensor]) -> tuple[float, float]:
        """Return the mean loss and its standard error when the layers get these activations, one for each batch."""
        with torch.no_grad():
            found = [self.divergences(index, hidden) for index, hidden in enumerate(received)]
        return self._reference.with_error(found)


def mean_and_error(values: Sequence[Tensor], *, are_clusters: bool) -> tuple[float, float]:
    """Return the mean of batches of values and its standard error.

    With `are_clusters`, the values of one batch, such as the predictions in one text, are one sample.
    """
    every = torch.cat(list(values))
    mean = every.mean()
    if not are_clusters or len(values) < 2:
        error = float(every.std()) / math.sqrt(len(every)) if len(every) > 1 else 0.0
        return float(mean), error
    groups = len(values)
    deviations = torch.stack([(group - mean).sum() for group in values])
    return float(mean), float(deviations.square().sum().sqrt()) / len(every) * math.sqrt(groups / (groups - 1))
