"""Hooks by which what a stage receives enters a model's forward, and the forward ends behind the stage's layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class StageExit(BaseException):
    """Ends a model's forward behind the last layer of a stage; not an Exception, which a forward may catch."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class CutHooks:
    """Lets `received` [B, S, H] be what a layer gets, and if it `leaves` the forward end with a `StageExit`."""

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
        if args:
            return (self.received, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self.received}

    def _leave(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        if self.leaves:
            raise StageExit(output[0] if isinstance(output, (tuple, list)) else output)
