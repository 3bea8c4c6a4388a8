"""What values of a forward are computed from: labels on the memory of tensors, which follow every operation.

A label is the number of a layer, as in a problem (0: the inputs and what is computed of them before the transformer
layers), or the name of a module outside of the layers, of whose weights alone a value is computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Label = int | str
_NO_LABELS: frozenset[Label] = frozenset()


class LabelFlow(TorchDispatchMode):
    """Gives what an operation returns the labels of what it takes, but for operations that use shapes alone.

    What is drawn at random has the label `within`, since each stage would draw other numbers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.within: Label = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = str(func._schema.name).partition("::")[2]
        if not name.endswith("_like") and not name.startswith("new_"):
            labels = _NO_LABELS.union(*map(labels_of, tensors_in((args, kwargs))))
            if torch.Tag.nondeterministic_seeded in func.tags:
                labels |= {self.within}
            if labels:
                for tensor in tensors_in(output):
                    add_labels(tensor, labels)
        return output


def labels_of(tensor: Tensor) -> frozenset[Label]:
    """Return the labels of a tensor's memory."""
    return getattr(tensor.untyped_storage(), "_orbitsplit_labels", _NO_LABELS)


def add_labels(tensor: Tensor, labels: Iterable[Label]) -> None:
    """Add labels to a tensor's memory, unless it is that of states, see `keep_free`."""
    storage = tensor.untyped_storage()
    if not getattr(storage, "_orbitsplit_is_free", False):
        storage._orbitsplit_labels = labels_of(tensor).union(labels)  # type: ignore[attr-defined]


def keep_free(tensor: Tensor) -> None:
    """Take no labels for a tensor's memory: states of all layers lie in it, each of which uses its own."""
    tensor.untyped_storage()._orbitsplit_is_free = True  # type: ignore[attr-defined]


def label_weights(layers: Iterable[nn.Module], outside: dict[str, nn.Module]) -> None:
    """Label the weights of modules by name, and those of a single layer with its number.

    Weights that several layers share have no label: each stage has a copy.
    """
    layers = list(layers)
    for module in (*layers, *outside.values()):
        for parameter in module.parameters():  # of which another forward may have been observed
            parameter.untyped_storage()._orbitsplit_labels = _NO_LABELS  # type: ignore[attr-defined]
    for name, module in outside.items():
        for parameter in module.parameters():
            add_labels(parameter, {name})
    owners: dict[nn.Parameter, list[int]] = {}
    for index, layer in enumerate(layers):
        for parameter in layer.parameters():
            owners.setdefault(parameter, []).append(index + 1)
    for parameter, numbers in owners.items():
        if len(numbers) == 1 and not labels_of(parameter):
            add_labels(parameter, numbers)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
