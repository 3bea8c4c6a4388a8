"""How a model with an encoder and a decoder runs what others do not have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderLayout:
    """How a model runs the layers of its encoder, before those of its decoder and once for each prompt.

    `middle` names the modules with parameters that run between the two lists of layers: the encoder's norm and the
    decoder's embeddings. They count as a layer. `shared` are submodules that the first layer of a list has alone, and
    of which all its layers use what they make: embeddings of relative positions. `positions` are those that the decoder
    can tell apart, None for any number, `prompt_positions` those of the encoder.
    """

    layers_name: str
    layer_count: int
    tuple_length: int | None
    middle: frozenset[str]
    shared: frozenset[str]
    decoder_shared: frozenset[str]
    positions: int | None
    prompt_positions: int | None

    @property
    def middle_layer(self) -> int:
        """The layer of a problem that `middle` is."""
        return self.layer_count + 1
