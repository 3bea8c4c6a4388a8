"""What the layers of a model lose with quantised weights. Needs NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orbitsplit._io.validation import check_finite, list_of, mapping_of, record_of, tuple_of


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLosses:
    """The loss of each layer of a model when it alone has its weights in one precision, and standard errors.

    The first number is that of the embeddings, the last that of the head, and those between are of the transformer
    layers. Units are those of a codebook's levels: nats per token or sample, or cosine distance. Losses of several
    layers, and of codecs between them, add up while they are small.

    Raises:
        ValueError: A number is negative or not finite, or there are not as many errors as losses.
        TypeError: A field is no sequence of numbers.
    """

    loss: tuple[float, ...]
    loss_error: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("loss", "loss_error"):
            numbers = tuple_of(name, getattr(self, name))
            for number in numbers:
                check_finite(f"a number of {name}", number, least=0)
            object.__setattr__(self, name, numbers)
        if len(self.loss) != len(self.loss_error):
            raise ValueError(f"there are {len(self.loss)} losses and {len(self.loss_error)} errors of them")


def read_weight_losses(data: Any, layers: int) -> dict[str, WeightLosses]:
    """Return the losses of each precision as a codebook has them. Raises `ValueError` naming what is wrong."""
    found = {}
    for name, values in mapping_of("weights", data).items():
        fields = {key: tuple(list_of(key, numbers)) for key, numbers in mapping_of(f"weights {name}", values).items()}
        found[name] = record_of(f"weights {name}", fields, WeightLosses)
    check_layers(found, layers)
    return found


def check_layers(weights: Mapping[str, WeightLosses], layers: int) -> None:
    """Raise `ValueError` for losses of another number of layers than embeddings, `layers` and head."""
    for name, losses in weights.items():
        if len(losses.loss) != layers + 2:
            raise ValueError(
                f"weights {name} have losses of {len(losses.loss)} layers, the model has {layers + 2} with its ends"
            )
