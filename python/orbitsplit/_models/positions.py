"""The number of positions that a model can tell apart."""

from __future__ import annotations

from torch import nn

from .stage import StageModel


def position_limit(model: StageModel) -> int | None:
    """Return how many positions the stage's table of learned positions has, None without a table (rotary, ALiBi)."""
    if model.encoder_decoder is not None:
        return model.encoder_decoder.layout.positions
    most = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if not model.is_first or not isinstance(most, int):
        return None
    tokens = model.model.get_input_embeddings()
    # Tables of a vision model count patches.
    is_part = model.config.get_text_config(decoder=True) is not model.config and bool(model.image_inputs)
    for module in (model.model.get_decoder() if is_part else model.model).modules():
        if not isinstance(module, nn.Embedding) or module is tokens:
            continue
        # OPT's table has two rows more than positions; RoBERTa's has no position for its rows up to the padding's.
        if most <= module.num_embeddings <= most + 2:
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return min(most, module.num_embeddings - unused)
    return None
