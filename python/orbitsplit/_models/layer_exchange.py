"""What the layers of a model take from one another in a forward, and which of them it holds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.cache_utils import Cache

from .cut_form import Argument, Carried
from .data_flow import Label, add_labels, keep_free, labels_of, tensors_in
from .own_state import StateKind
from .passthrough import LayerCall
from .source import STATE_ARGUMENTS

_PLAIN = (bool, int, float, str, type(None))


@dataclass
class LayerExchange:
    """Collects what a probe sees at the layers; layers of a problem are counted with the embeddings as 0."""

    modules: set[str] = field(default_factory=set)  # of whose weights alone layers take something
    first_modules: set[str] = field(default_factory=set)  # of whose weights the first layer's hidden state is made
    carried: tuple[Carried, ...] = ()
    changes_between: bool = False
    tuple_length: int | None = None
    reason: str = ""
    _held: set[int] = field(default_factory=set)  # layers of a problem that stay with the one before
    _passed: dict[int, Argument] = field(default_factory=dict)
    _cached: dict[int, set[int]] = field(default_factory=dict)
    _within: int = -1  # the layer that runs
    _has_own_state: bool = False

    def watch(self, cache: Cache) -> None:
        """Note from now on which layers of a cache each layer extends."""
        update = cache.update

        def noted(keys: Tensor, values: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
            self._cached.setdefault(self._within, set()).add(layer_idx)
            return update(keys, values, layer_idx, *args, **kwargs)

        cache.update = noted  # of this cache alone

    def needs(self, layer: int, labels: frozenset[Label]) -> None:
        """Note that a layer of a problem computes what it hands on from data with these labels."""
        if not self._hold(layer, labels, f"layer {layer - 1} takes more than the hidden state of the layer before it"):
            self.modules.update(label for label in labels if isinstance(label, str))

    def needs_behind(self, layers: int, labels: frozenset[Label]) -> None:
        """Note that what comes after so many layers computes something from data with these labels."""
        self._hold(layers + 1, labels, "what comes after the layers takes more than the hidden state of the last one")

    def _hold(self, layer: int, labels: frozenset[Label], reason: str) -> bool:
        earlier = [label for label in labels if isinstance(label, int) and label != layer]
        if earlier:
            self._held.update(range(min(earlier) + 1, layer + 1))
            self.reason = self.reason or reason
        return bool(earlier)

    def leave_outside(self, name: str, output: Any) -> None:
        """Note what a module outside of the layers returns: positions, for instance, are numbers that layers may take.

        What stands for it on other stages returns numbers of the right shape alone.
        """
        whole = [tensor for tensor in tensors_in(output) if not tensor.is_floating_point()]
        if self._within < 0 and any(not labels_of(tensor) for tensor in whole):
            self.modules.add(name)

    def enter(
        self,
        index: int,
        hidden: Tensor,
        extras: Sequence[Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        state: StateKind | None,
    ) -> dict[Argument, Any]:
        """Note what a layer gets, with what the one before returned beside its hidden state; return what replaces it.

        Numbers of each token are carried along with the hidden state.
        """
        if self._within >= 0:
            self.needs(index + 1, labels_of(hidden))
        else:  # the first one takes what the inputs become
            self.first_modules.update(label for label in labels_of(hidden) if isinstance(label, str))
        self._within = index
        given: dict[Argument, Any] = dict(enumerate(args))
        given.update(kwargs)
        if state == "own":
            self._take_own_state(given)
        changes: dict[Argument, Any] = {}
        for position, extra in enumerate(extras, start=1):
            argument = next((name for name, value in given.items() if value is extra), None)
            if argument is None or isinstance(extra, _PLAIN):
                continue
            self._passed[position] = argument
            if isinstance(extra, Tensor) and extra.is_floating_point() and extra.shape[:2] == hidden.shape[:2]:
                changes[argument] = self.fresh(extra, index)
                one = Carried(position, argument, tuple(extra.shape[2:]))
                self.carried = tuple(sorted({*self.carried, one}))
                self.needs(index, labels_of(extra))  # of the layer that made it
        return changes

    def fresh(self, tensor: Tensor, index: int) -> Tensor:
        """Return a tensor like one that a layer gets, of which is known when it is used later than in that layer."""
        other = torch.empty_like(tensor)
        add_labels(other, {index + 1})
        return other

    def leave(self, index: int, hidden: Tensor) -> None:
        """Note the hidden state that a layer returns."""
        self.needs(index + 1, labels_of(hidden))

    def _take_own_state(self, given: Mapping[Argument, Any]) -> None:
        for name in STATE_ARGUMENTS:
            value = given.get(name)
            if isinstance(value, Cache) and not self._has_own_state:
                self.watch(value)
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor):
                    keep_free(leaf)
            self._has_own_state = self._has_own_state or value is not None

    def bounds(self, layers: int) -> tuple[int, ...] | None:
        """Return the bounds of the layers of a problem, see `Layout`; None if no cut is left between two layers."""
        starts = [layer for layer in range(layers + 2) if layer not in self._held]
        if self._held and not any(2 <= start <= layers for start in starts):
            return None
        return (*(max(0, start - 1) for start in starts), layers)

    def call(self, layers: int, streams: int) -> LayerCall:
        """Return how each layer is called."""
        usual = all(self._cached.get(index, {index}) == {index} for index in range(layers))
        cached = None
        if self._has_own_state or not usual:
            cached = tuple(tuple(sorted(self._cached.get(index, ()))) for index in range(layers))
        return LayerCall(self.tuple_length, tuple(sorted(self._passed.items())), streams, cached)
