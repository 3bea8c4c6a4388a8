"""What `plan` may choose from as weights of a stage: models with other weights, what they cost and what they lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orbitsplit._io.validation import check_kind, check_number, check_string, mapping_of, quoted, tuple_of
from orbitsplit._planner.tied_weights import TiedBytes
from orbitsplit._profiling.profile import ModelProfile

if TYPE_CHECKING:
    from .plan import Plan

# What profiles of one model have in common, whatever the precision of its weights.
_SHARED = (
    "architecture",
    "prompt_tokens",
    "batch_size",
    "hidden_size",
    "cut_bytes_per_token",
    "dtype",
    "threads",
    "generates",
    "encoder_layers",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOption:
    """A precision that the weights of a stage may have: what a model with such weights costs and loses.

    Attributes:
        profile: Of the model with these weights, as `convert` writes it; made as the profile that is planned with.
        loss: The loss of each layer if it has these weights, embeddings first and head last, in nats per token or the
            unit of the codebook; `math.inf`: the layer cannot have them.
        model: The directory of the model with these weights; None: the `model` of the profile.

    Raises:
        ValueError: A loss is negative or no number, or there is not one for each layer.
        TypeError: A field has another type.
    """

    profile: ModelProfile
    loss: Sequence[float]
    model: str | None = None

    def __post_init__(self) -> None:
        check_kind("profile of a WeightOption", self.profile, ModelProfile)
        loss = tuple_of("loss", self.loss)
        for k, number in enumerate(loss):
            check_number(f"loss[{k}]", number)
            if not number >= 0:
                raise ValueError(f"loss[{k}] is {number}, must be at least 0")
        layers = len(self.profile.layers)
        if len(loss) != layers:
            raise ValueError(f"loss has {len(loss)} numbers, must have one for each of the {layers} layers")
        object.__setattr__(self, "loss", loss)
        if self.model is not None:
            check_string("model of a WeightOption", self.model)

    @property
    def directory(self) -> str:
        """Where a stage loads these weights from."""
        return self.profile.model if self.model is None else self.model


Weights = Mapping[str, WeightOption]


def check_weights(profile: ModelProfile, weights: Weights | None) -> Weights:
    """Return the options by name, none for None.

    Raises:
        ValueError: An option has the name of the profile's own weights, or its profile is of another model, prompt
            length, batch size, dtype or number of threads.
        TypeError: There is no mapping of names to options.
    """
    if weights is None:
        return {}
    for name, option in mapping_of("weights", weights).items():
        check_string("a name in weights", name)
        check_kind(f"weights[{quoted(name)}]", option, WeightOption)
        if name in ("", profile.dtype):
            raise ValueError(
                f"weights have the name {quoted(name)}, which is that of the profile's own weights or empty"
            )
        _check_same_model(f"the profile of weights {quoted(name)}", option.profile, profile)
    return dict(weights)


def _check_same_model(what: str, other: ModelProfile, profile: ModelProfile) -> None:
    names = [layer.name for layer in profile.layers]
    if [layer.name for layer in other.layers] != names:
        raise ValueError(f"{what} has {len(other.layers)} layers, which are not the {len(names)} of {profile.model}")
    for key in _SHARED:
        if getattr(other, key) != getattr(profile, key):
            values = f"{key}={getattr(other, key)}, that of {profile.model} has {getattr(profile, key)}"
            raise ValueError(f"{what} was made with {values}")


def weights_chosen(plan: Plan) -> tuple[str, ...]:
    """Return the names of the weights that stages have instead of the plan's own model's, sorted."""
    return tuple(sorted({stage.weights for stage in plan.stages if stage.weights is not None}))


def tied_bytes_of(profile: ModelProfile, weights: Weights) -> TiedBytes:
    """Return the tied bytes of the problem's plans: with options, those of each weight level."""
    if not weights:
        return profile.tied_bytes
    return (profile.tied_bytes, *(option.profile.tied_bytes for option in weights.values()))
