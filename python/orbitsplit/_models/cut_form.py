"""How what a layer hands to the next one is laid out as one tensor [B, S, W], which crosses a cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

Argument = int | str  # the position of an argument of a layer, or its name


class Carried(NamedTuple):
    """What a layer returns at a `position` beside the hidden state, of each token, and the next takes as `argument`."""

    position: int
    argument: Argument
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CutForm:
    """The numbers of each token at a cut.

    A hidden state has the shape [B, S, *token_shape]; with several `streams` of hidden states of the same tokens, these
    are behind one another, [B, streams * S, *token_shape]. Behind it is what is `carried` beside it.
    """

    token_shape: tuple[int, ...]
    streams: int = 1
    carried: tuple[Carried, ...] = ()

    @property
    def width(self) -> int:
        """The numbers of each token."""
        return self.streams * math.prod(self.token_shape) + sum(math.prod(one.shape) for one in self.carried)

    @property
    def is_plain(self) -> bool:
        """Whether it is a hidden state [B, S, H] alone."""
        return self.streams == 1 and len(self.token_shape) == 1 and not self.carried

    def pack(self, hidden: Tensor, extras: Sequence[Tensor | None]) -> Tensor:
        """Return the hidden state and what is carried as one tensor; what is not there yet is zeros."""
        if self.is_plain:
            return hidden
        rows, tokens = hidden.shape[0], hidden.shape[1] // self.streams
        by_token = hidden.reshape(rows, self.streams, tokens, -1).transpose(1, 2).reshape(rows, tokens, -1)
        parts = [by_token]
        for one, extra in zip(self.carried, extras, strict=True):
            if extra is None:
                extra = hidden.new_zeros(rows, tokens, *one.shape)
            parts.append(extra.reshape(rows, tokens, -1).to(hidden.dtype))
        return torch.cat(parts, dim=-1)

    def unpack(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the hidden state and what is carried of what `pack` returns."""
        if self.is_plain:
            return x, []
        rows, tokens = x.shape[:2]
        sizes = [math.prod(one.shape) for one in self.carried]
        by_token, *extras = torch.split(x, [self.width - sum(sizes), *sizes], dim=-1)
        hidden = by_token.reshape(rows, tokens, self.streams, -1).transpose(1, 2)
        shaped = hidden.reshape(rows, self.streams * tokens, *self.token_shape)
        return shaped, [
            extra.reshape(rows, tokens, *one.shape) for one, extra in zip(self.carried, extras, strict=True)
        ]


def argument_of(argument: Argument, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return an argument of a call, None if it is not given."""
    if isinstance(argument, str):
        return kwargs.get(argument)
    return args[argument] if argument < len(args) else None


def with_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], changes: dict[Argument, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with some replaced."""
    changed = tuple(changes.get(index, value) for index, value in enumerate(args))
    return changed, {**kwargs, **{name: value for name, value in changes.items() if isinstance(name, str)}}


def hidden_argument(args: Sequence[Any]) -> Argument:
    """Return how a call of a layer names the hidden state."""
    return 0 if args else "hidden_states"
