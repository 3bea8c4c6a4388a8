"""Inputs of modules in a forward: a model that runs whole, with its inputs written down, is the judge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orbitsplit._models.module_inputs import inputs_of, second_moments


class Net(nn.Module):
    """Two modules that get the same, one that gets their sum, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.idle = (nn.Linear(4, 4) for _ in range(4))
        self.ended = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.a(x) + self.b(x))
        self.ended += 1
        return y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_moments_are_sums_over_all_forwards(net: Net) -> None:
    batches = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    modules = {name: net.get_submodule(name) for name in ("a", "b", "c", "idle")}
    with torch.no_grad():
        found = second_moments(modules, [lambda x=x: net(x) for x in batches])
        x = torch.cat([batch.reshape(-1, 4) for batch in batches]).double()
        middle = torch.cat([(net.a(batch) + net.b(batch)).reshape(-1, 4) for batch in batches]).double()
    assert set(found) == {"a", "b", "c"}
    for name, rows in (("a", x), ("b", x), ("c", middle)):
        torch.testing.assert_close(found[name], rows.t() @ rows, rtol=1e-5, atol=1e-5)
    assert net.ended == 2


def test_a_forward_ends_where_the_last_module_begins(net: Net) -> None:
    with torch.no_grad():
        found = inputs_of({"a": net.a, "c": net.c}, lambda: net(torch.ones(1, 4)))
    assert list(found) == ["a", "c"]
    assert net.ended == 0


def test_no_hook_stays(net: Net) -> None:
    def fails() -> None:
        raise RuntimeError("a forward that fails")

    with pytest.raises(RuntimeError, match="a forward that fails"):
        inputs_of({"a": net.a}, fails)
    net(torch.ones(1, 4))
    assert net.ended == 1
