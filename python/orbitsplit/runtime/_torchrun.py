"""Stages on several machines: torchrun starts one process for each stage, rank k for stage k.

Rank 0 is the parent: it serves the control store at the master's address and starts the process of stage 0 itself. The
other ranks are workers. Each reads the model and the codebook from its own disk. Links and nodes have their real speed:
nothing is emulated.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, not in its __all__

from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._launcher import check_ranks
from orbitsplit.runtime._messages.environment import INTERFACE_VARIABLE
from orbitsplit.runtime._messages.interfaces import interface_towards
from orbitsplit.runtime._parent.session import Deployment
from orbitsplit.runtime._worker import process

_CONTROL = "orbitsplit/control"
_PATIENCE = datetime.timedelta(minutes=10)


def deploy(plan: Plan) -> Deployment:
    """Return the deployment of a plan, on rank 0, and publish the address of the control store to the other ranks.

    Raises as `check_ranks`, which whoever calls this may do before it imports this module.
    """
    check_ranks(len(plan.stages))
    ranks, ranks_here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    # Other machines reach this one by the interface that the master's name stands for.
    address = "127.0.0.1" if ranks == ranks_here else socket.gethostbyname(os.environ["MASTER_ADDR"])
    with socket.create_server((address, 0)) as probe:
        port = probe.getsockname()[1]
    _set_interface(address)
    _agents_store().set(_CONTROL, f"{address}:{port}")
    return Deployment(address, port, (None, *(stage.node for stage in plan.stages[1:])), emulates=False)


def run_worker(
    rank: int, *, model: str | Path | None, codebook: str | Path | None, weight_models: Mapping[str, str]
) -> None:
    """Run as the worker of stage `rank` until the parent does not need it any more. Does not return."""
    address = _agents_store().get(_CONTROL).decode()
    _set_interface(address.rpartition(":")[0])
    process.main(address, str(rank), "0", model=model, codebook=codebook, weight_models=weight_models)


def _agents_store() -> TCPStore:
    """Return the rendezvous store of torchrun's own processes."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError("torchrun serves no store of its own here (TORCHELASTIC_USE_AGENT_STORE is not True)")
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE)


def _set_interface(master: str) -> None:
    """Make Gloo listen only on the interface that reaches the master, unless GLOO_SOCKET_IFNAME names another."""
    name = None if INTERFACE_VARIABLE in os.environ else interface_towards(master)
    if name is not None:
        os.environ[INTERFACE_VARIABLE] = name
