"""What codecs cost a model, from the definition: hooks on the whole model, real frames, every output compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import orbitsplit as osp

AnyCodec = osp.CalibratedCodec | str


@dataclass
class Judged:
    """What each output of each sample shows, [N, outputs of a sample], and the bits that the frames took.

    `expected_drop` is the drop if the model's own probabilities are right, `nll_increase` the rise of the
    nats of what is right.
    """

    loss: Tensor
    drop: Tensor
    expected_drop: Tensor
    nll_increase: Tensor
    bits_per_element: float


def error_of_mean(values: Tensor) -> float:
    """Return the standard error of the mean of values [N, outputs of a sample]; outputs of one text are one sample."""
    samples = values.flatten(1).mean(1) if len(values) > 1 else values.flatten()
    return float(samples.std()) / len(samples) ** 0.5


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    for name in ("model.layers", "vit.layers", "vit.encoder.layer", "encoder.layer"):
        try:
            return list(model.get_submodule(name))
        except AttributeError:
            continue
    raise AssertionError(f"where are the layers of {type(model).__name__}?")


def judge(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    codecs: Mapping[int, AnyCodec],
    book: osp.Codebook | None = None,
    *,
    labels: Tensor | None = None,
    composite: PreTrainedModel | None = None,
) -> Judged:
    """Run the model as it is, and with the hidden state after each of these numbers of layers sent as a frame.

    It is another model that sends frames if `composite` is given: one with other weights.
    """
    sending = model if composite is None else composite
    layers = layers_of(sending)
    sizes: list[tuple[int, int]] = []

    def sent(hidden: Tensor, codec: AnyCodec) -> Tensor:
        frame = osp.compress(hidden.contiguous(), codec=codec)
        sizes.append((8 * len(frame), hidden.numel()))
        received: Tensor = osp.decompress(frame, book, framework="torch")
        return received

    def before(codec: AnyCodec) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (sent(args[0], codec), *args[1:])

        return hook

    def behind(codec: AnyCodec) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            return (sent(output[0], codec), *output[1:]) if isinstance(output, tuple) else sent(output, codec)

        return hook

    with torch.no_grad():
        expected = model(**inputs)
        handles = [
            layers[cut].register_forward_pre_hook(before(codec))
            if cut < len(layers)
            else layers[-1].register_forward_hook(behind(codec))
            for cut, codec in codecs.items()
        ]
        changed = sending(**inputs)
        for handle in handles:
            handle.remove()
    bits = sum(size for size, _ in sizes) / sum(count for _, count in sizes) if sizes else 32.0
    return Judged(*_compared(expected, changed, inputs, labels), bits)


def _compared(
    expected: Any, changed: Any, inputs: Mapping[str, Tensor], labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if "logits" not in expected:
        mask = inputs["attention_mask"][..., None].double()
        pooled = [(o.last_hidden_state.double() * mask).sum(1) / mask.sum(1) for o in (expected, changed)]
        distance = 1 - nn.functional.cosine_similarity(pooled[0], pooled[1], dim=-1)[:, None]
        return distance, distance, distance, torch.zeros_like(distance)
    logits = [o.logits.double() for o in (expected, changed)]
    if labels is None:  # every token but the first is predicted
        logits, targets = [one[:, :-1] for one in logits], inputs["input_ids"][:, 1:]
    else:
        logits, targets = [one[:, None] for one in logits], labels[:, None]
    p, q = (one.softmax(-1) for one in logits)
    loss = (p * (p.log() - q.log())).sum(-1)
    before, after = logits[0].argmax(-1), logits[1].argmax(-1)
    drop = (before == targets).double() - (after == targets).double()
    expected_drop = _probability(p, before) - _probability(p, after)
    return loss, drop, expected_drop, _probability(p, targets).log() - _probability(q, targets).log()


def _probability(distributions: Tensor, chosen: Tensor) -> Tensor:
    return distributions.gather(-1, chosen[..., None])[..., 0]
