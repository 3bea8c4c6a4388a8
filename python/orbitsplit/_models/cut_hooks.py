"""Hooks by which what a stage receives enters a model's forward behind its layers of other stages, and leaves it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .architecture import Layout
from .cut_form import Argument, argument_of, hidden_argument, with_arguments
from .source import state_argument


class StageExit(BaseException):
    """Ends a model's forward behind the last layer; not an Exception, which a forward may catch."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class CutHooks:
    """Lets `received` [B, S, W] be the hidden state that a layer gets, and if it `leaves` end with a `StageExit`."""

    def __init__(self) -> None:
        self.received: Tensor | None = None
        self.leaves = False

    def enter_at(self, layer: nn.Module) -> None:
        """Let what is received take the place of a layer's hidden state."""
        layer.register_forward_pre_hook(self._enter, with_kwargs=True)

    def leave_behind(self, layer: nn.Module) -> None:
        """Let the forward end behind a layer, with the hidden state that it returns."""
        layer.register_forward_hook(self._leave)

    def _enter(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return with_arguments(args, kwargs, {hidden_argument(args): self.received})

    def _leave(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        if self.leaves:
            raise StageExit(_hidden_state(output))


class LayerCutHooks(CutHooks):
    """The hooks of a stage of the layers [start, stop), which hand on what a layout's form says.

    The forward ends behind the model's last layer if it `leaves`, with what the last layer of the stage hands on.
    """

    def __init__(self, model: nn.Module, layout: Layout, start: int, stop: int) -> None:
        super().__init__()
        self.state: Any = None  # what the model itself has made of the tokens so far
        self.rows_and_tokens: tuple[int, int] | None = None  # behind the last layer
        self._form, self._call = layout.form, layout.call
        self._dtype: torch.dtype = model.dtype  # type: ignore[assignment]  # of a model of transformers
        self._left: Tensor | None = None
        layers = layout.layers_of(model)
        first, last = layout.running[0], layout.running[-1]
        before = [index for index in layout.running if index < layout.bounds[start]]
        own = [index for index in layout.running if index < layout.bounds[stop]]
        if start > 0 and layout.changes_between and before:
            # What is computed between two layers is of the stage that has the second one.
            layers[before[-1]].register_forward_hook(self._replace_output)
        elif start > 0:
            has_extras = bool(before)
            layers[first].register_forward_pre_hook(
                lambda _, args, kwargs: self._replace_input(args, kwargs, has_extras=has_extras), with_kwargs=True
            )
        if not own:
            layers[first].register_forward_pre_hook(self._keep_input, with_kwargs=True)
        elif own[-1] != last and layout.changes_between:
            layers[own[-1]].register_forward_hook(self._keep_output)
        self.leave_behind(layers[last])
        if layout.state == "own":
            layers[first].register_forward_pre_hook(self._keep_state, with_kwargs=True)

    def _replace_input(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], *, has_extras: bool
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden, extras = self._unpacked()
        changes: dict[Argument, Any] = {hidden_argument(args): hidden}
        if has_extras:  # behind no layer, the model itself says what there is at first
            changes |= {one.argument: extra for one, extra in zip(self._form.carried, extras, strict=True)}
        return with_arguments(args, kwargs, changes)

    def _replace_output(self, _layer: nn.Module, _args: Any, output: Any) -> Any:
        hidden, extras = self._unpacked()
        if not isinstance(output, (tuple, list)):
            return hidden
        changed = [hidden, *output[1:]]
        for one, extra in zip(self._form.carried, extras, strict=True):
            changed[one.position] = extra
        return changed if isinstance(output, list) else tuple(changed)

    def _unpacked(self) -> tuple[Tensor, list[Tensor]]:
        """Return what is received; the hidden state may be in float32 where all else is in the model's dtype."""
        assert self.received is not None, "a stage behind the first one receives"
        hidden, extras = self._form.unpack(self.received)
        return hidden, [extra.to(self._dtype) for extra in extras]

    def _keep_state(self, _layer: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self.state = state_argument(kwargs)

    def _keep_input(self, _layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        extras = [argument_of(one.argument, args, kwargs) for one in self._form.carried]
        self._left = self._form.pack(argument_of(hidden_argument(args), args, kwargs), extras)

    def _keep_output(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        self._left = self._packed(output)

    def _leave(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        hidden = _hidden_state(output)
        self.rows_and_tokens = hidden.shape[0], hidden.shape[1] // self._form.streams
        if self.leaves:
            left, self._left = self._left, None
            raise StageExit(self._packed(output) if left is None else left)

    def _packed(self, output: Any) -> Tensor:
        if not isinstance(output, (tuple, list)):
            return self._form.pack(output, [])
        return self._form.pack(output[0], [output[one.position] for one in self._form.carried])


def _hidden_state(output: Any) -> Tensor:
    """Return the hidden state that a layer returns, alone or first of several."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden
