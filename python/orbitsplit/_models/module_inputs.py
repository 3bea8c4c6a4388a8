"""What modules get in a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Left(BaseException):
    """Ends a forward; not an Exception, which a forward may catch."""


def inputs_of(modules: Mapping[str, nn.Module], forward: Callable[[], Any]) -> dict[str, Tensor]:
    """Return the inputs [tokens, columns] of modules in a forward, by name.

    The forward ends where the last of them begins. Modules that do not run are left out.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            found[name] = args[0].flatten(0, -2)
            if len(found) == len(modules):
                raise _Left

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in modules.items()]
    try:
        forward()
    except _Left:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found


def second_moments(modules: Mapping[str, nn.Module], forwards: Iterable[Callable[[], Any]]) -> dict[str, Tensor]:
    """Return the sum of x x^T over the rows x that each module gets, by name, float64 [columns, columns]."""
    sums: dict[str, Tensor] = {}
    for forward in forwards:
        x, product = torch.empty(0), torch.empty(0)
        for name, rows in inputs_of(modules, forward).items():
            if rows.data_ptr() != x.data_ptr() or rows.shape != x.shape:  # several modules often get the same
                x, product = rows, (rows.t() @ rows).double()
            sums[name] = sums[name] + product if name in sums else product
    return sums
