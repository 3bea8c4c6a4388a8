"""Names of the modules of a model in the order in which they run, as other engines place them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .architecture import modules_outside, plain_bounds
from .layouts import find_layout
from .source import open_model, read_config, refuse_encoder
from .valueless import build_on_meta


@dataclass(frozen=True)
class ModuleNames:
    """Modules before the transformer layers, the layers, and modules after them; `is_tied`: ends share weights."""

    before: tuple[str, ...]
    layers: tuple[str, ...]
    after: tuple[str, ...]
    is_tied: bool


def module_names(model: str | Path) -> ModuleNames:
    """Return the names of a model's modules, from its configuration alone.

    Raises:
        ValueError: There is no such model, or it cannot be split.
        FileNotFoundError: The path does not exist.
    """
    config = read_config(open_model(model))
    refuse_encoder(config, "plans are exported for models with one of them alone")
    layout = find_layout(config)
    if layout.bounds != plain_bounds(layout.layer_count):
        held = next(
            one for one in map(layout.layer_name, range(layout.layer_count + 2)) if " to " in one or ", " in one
        )
        raise ValueError(f"other engines place layers one by one, and {held} of {model} are held together")
    outside = modules_outside(build_on_meta(config), layout.layers_name)
    after = tuple(name for name in outside if name in layout.after | layout.idle)
    return ModuleNames(
        # What has no parameters, such as rotary embeddings, is where the inputs are.
        before=tuple(name for name in outside if name not in after),
        layers=tuple(f"{layout.layers_name}.{k}" for k in range(layout.layer_count)),
        after=after,
        is_tied=bool(getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False)),
    )
