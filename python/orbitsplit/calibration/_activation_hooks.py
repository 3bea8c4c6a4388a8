"""A whole model whose hidden states can be read and replaced at any cut, and that can run from any cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from orbitsplit._models.architecture import find_layers
from orbitsplit._models.passthrough import LayerCall, Passthrough

AtCut = Callable[[Tensor], Tensor]


class ActivationHooks:
    """Runs a model of transformers with hooks on its hidden states: cut c lies after c transformer layers.

    Raises:
        ValueError: The model has no list of layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        _, self._list = find_layers(model)
        self._layers = list(self._list)
        self._call = LayerCall()
        self._has_run = False

    @property
    def layers(self) -> list[nn.Module]:
        """The transformer layers."""
        return self._layers

    def run(
        self,
        inputs: Mapping[str, Any],
        at: Mapping[int, AtCut] | None = None,
        *,
        start: tuple[int, Tensor] | None = None,
    ) -> Any:
        """Return the model's output for `inputs`; `at` maps cuts to functions that replace the hidden state there.

        With `start`, a cut and a hidden state [B, S, H], the layers before that cut do not run, and those behind it get
        the hidden state. The model must have run whole once before.
        """
        first, hidden = start if start is not None else (0, None)
        actions = dict(at or {})
        if hidden is not None:
            entered, then = hidden, actions.get(first)
            actions[first] = lambda _: entered if then is None else then(entered)
        with self._without(first), self._hooks(actions), _evaluating(self.model):
            result = self.model(**inputs)
        self._has_run = True
        return result

    def hidden(self, inputs: Mapping[str, Any], cut: int, *, start: tuple[int, Tensor] | None = None) -> Tensor:
        """Return the hidden state at a cut, [B, S, H]; no layer behind it runs."""

        def leave(states: Tensor) -> Tensor:
            raise _Left(states)

        try:
            self.run(inputs, {cut: leave}, start=start)
        except _Left as left:
            return left.hidden
        raise AssertionError(f"the forward did not reach cut {cut}")

    def hidden_at(self, inputs: Mapping[str, Any], cuts: Sequence[int]) -> dict[int, Tensor]:
        """Return the hidden states at some cuts, each [B, S, H]; no layer behind the last of them runs."""
        found: dict[int, Tensor] = {}

        def keep(cut: int) -> AtCut:
            def at(states: Tensor) -> Tensor:
                found[cut] = states
                if cut == max(cuts):
                    raise _Left(states)
                return states

            return at

        try:
            with torch.no_grad():
                self.run(inputs, {cut: keep(cut) for cut in cuts})
        except _Left:
            pass
        return found

    @contextmanager
    def _without(self, first: int) -> Iterator[None]:
        """Replace the layers before a cut by ones that return the hidden state unchanged, until the block ends."""
        try:
            for index in range(first):
                self._list[index] = Passthrough(index, self._layers[index], self._call)
            yield
        finally:
            for index in range(first):
                self._list[index] = self._layers[index]

    @contextmanager
    def _hooks(self, actions: Mapping[int, AtCut]) -> Iterator[None]:
        handles = []
        try:
            if not self._has_run:
                handles.append(self._layers[0].register_forward_hook(self._look))
            for cut, action in actions.items():
                if cut < len(self._list):
                    hook = _before(action)
                    handles.append(self._list[cut].register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(self._list[cut - 1].register_forward_hook(_after(action)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _look(self, _layer: nn.Module, _args: Any, output: Any) -> None:
        self._call = LayerCall(len(output) if isinstance(output, (tuple, list)) else None)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


class _Left(BaseException):
    """Ends a forward at a cut; not an Exception, which a forward may catch."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _before(action: AtCut) -> Any:
    def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (action(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": action(kwargs["hidden_states"])}

    return hook


def _after(action: AtCut) -> Any:
    def hook(_layer: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return (action(output[0]), *output[1:])
        return action(output)

    return hook
