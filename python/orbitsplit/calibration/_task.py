"""The tasks of models: which outputs are compared, how far they diverge, and how accurate they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Batch:
    """The inputs of one forward and what its outputs are compared with.

    `targets` [n] are the labels or next tokens of the n outputs, None without labels; `mask` [B, S] is true for rows of
    the hidden state [B, S, H] that are not padding (None: all). `positions` [P] are the positions of a causal model
    whose next-token predictions are used.
    """

    inputs: Mapping[str, Any]
    targets: Tensor | None = None
    mask: Tensor | None = None
    positions: Tensor | None = None

    @property
    def samples(self) -> int:
        """The number of texts, rows or images."""
        return len(next(iter(self.inputs.values())))

    def rows(self, hidden: Tensor) -> Tensor:
        """Return the rows [R, H] of a hidden state [B, S, H] that are not padding."""
        return hidden.flatten(0, -2) if self.mask is None else hidden[self.mask.bool()]

    def disturbed(self) -> dict[str, Any]:
        """Return other inputs of the same shape."""
        changed = dict(self.inputs)
        if "input_ids" in changed:
            changed["input_ids"] = changed["input_ids"].roll(1, -1)
        if "pixel_values" in changed:
            changed["pixel_values"] = -changed["pixel_values"]
        return changed


class Task(Protocol):
    """Compares outputs of a model with reference outputs. n is the number of outputs of a batch: positions, images or
    texts. `unit` is that of the divergence."""

    unit: str

    def outputs(self, result: Any, batch: Batch) -> Tensor:
        """Return the outputs to compare from the result of a forward, [n, ...]."""
        ...

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Return the divergence of outputs from those of the model without codecs, [n]; differentiable."""
        ...

    def surrogate(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return a random scalar; the second moment of its gradient is the curvature of the divergence."""
        ...

    def scores(self, reference: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the score of each output, from 0 to 1, [n]; accuracy is the mean."""
        ...

    def expected_drop(self, reference: Tensor, outputs: Tensor) -> Tensor:
        """Return the expected drop of each score if the reference's probabilities are calibrated, [n].

        It is never negative, and its variance is far smaller than that of a difference of scores.
        """
        ...

    def nll(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the negative log-likelihood of the targets in nats, [n] (perplexity is e to the mean); 0 without."""
        ...


class Distributions:
    """Next tokens or classes: Kullback-Leibler divergence in nats, and top-1 accuracy."""

    unit = "nats"

    def outputs(self, result: Any, batch: Batch) -> Tensor:
        logits: Tensor = result.logits
        if batch.positions is not None and logits.shape[-2] != len(batch.positions):
            logits = logits[:, batch.positions]  # a forward that takes no logits_to_keep
        return logits.float().log_softmax(-1).reshape(-1, logits.shape[-1])

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        return nn.functional.kl_div(outputs, reference, log_target=True, reduction="none").sum(-1)

    def surrogate(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        # Classes sampled from the model itself: the second moment of the gradient of their log-likelihood is the Fisher
        # information, the curvature of the divergence. Labels would give the "empirical" Fisher information.
        drawn = torch.multinomial(outputs.detach().exp(), 1, generator=generator)
        return outputs.gather(1, drawn).sum()

    def scores(self, reference: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        # Without labels: agreement with the reference.
        right = reference.argmax(-1) if batch.targets is None else batch.targets
        return (outputs.argmax(-1) == right).float()

    def expected_drop(self, reference: Tensor, outputs: Tensor) -> Tensor:
        chosen = reference.gather(-1, outputs.argmax(-1, keepdim=True))[:, 0]
        return reference.max(-1).values.exp() - chosen.exp()

    def nll(self, outputs: Tensor, batch: Batch) -> Tensor:
        if batch.targets is None:
            return torch.zeros(len(outputs))
        return -outputs.gather(1, batch.targets[:, None])[:, 0]


class Embeddings:
    """Mean-pooled embeddings of texts, as sentence transformers make them: cosine distance."""

    unit = "cosine distance"

    def outputs(self, result: Any, batch: Batch) -> Tensor:
        hidden: Tensor = result.last_hidden_state.float()
        weight = torch.ones(hidden.shape[:2]) if batch.mask is None else batch.mask.float()
        pooled = (hidden * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
        return nn.functional.normalize(pooled, dim=-1)

    def divergence(self, reference: Tensor, outputs: Tensor) -> Tensor:
        return 1 - (reference * outputs).sum(-1)

    def surrogate(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        # The distance of unit vectors is half the square of their difference, so its curvature is J'J.
        return (outputs * torch.randn(outputs.shape, generator=generator)).sum()

    def scores(self, reference: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
        return (reference * outputs).sum(-1)

    def expected_drop(self, reference: Tensor, outputs: Tensor) -> Tensor:
        return self.divergence(reference, outputs)

    def nll(self, outputs: Tensor, batch: Batch) -> Tensor:
        return torch.zeros(len(outputs))
