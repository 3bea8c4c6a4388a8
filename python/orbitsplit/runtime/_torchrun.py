"""Stages on several machines: torchrun starts one process for each, rank k for stage k.

Rank 0 is the parent: it serves the control store at the master's address and starts the process of stage 0 itself. The
other ranks are workers from the start. Models and codebooks are read by each from its own disk. Links and nodes are as
fast as they are: nothing is emulated.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
import struct
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, not in its __all__

from orbitsplit._plans.plan import Plan
from orbitsplit.runtime._parent.session import Where
from orbitsplit.runtime._worker import process

_CONTROL = "orbitsplit/control"
_PATIENCE = datetime.timedelta(minutes=10)
_SIOCGIFADDR = 0x8915  # Linux, netdevice(7)


def lead(plan: Plan) -> Where:
    """Return where the processes of a plan are, on rank 0, and let the others know where the control store is.

    Raises ValueError if there are not as many ranks as stages.
    """
    ranks, ranks_here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if ranks != len(plan.stages):
        raise ValueError(f"torchrun started {ranks} processes, the plan has {len(plan.stages)} stages")
    # The master's name may be that of an interface which others reach.
    address = "127.0.0.1" if ranks == ranks_here else socket.gethostbyname(os.environ["MASTER_ADDR"])
    with socket.create_server((address, 0)) as probe:
        port = probe.getsockname()[1]
    _choose_interface(address)
    _agents_store().set(_CONTROL, f"{address}:{port}")
    return Where(address, port, (None, *(stage.node for stage in plan.stages[1:])), emulates=False)


def follow(rank: int, *, model: str | Path | None, codebook: str | Path | None) -> None:
    """Serve as the worker of stage `rank` until the parent needs it no more. Does not return."""
    address = _agents_store().get(_CONTROL).decode()
    _choose_interface(address.rpartition(":")[0])
    process.main(address, str(rank), "0", model=model, codebook=codebook)


def _agents_store() -> TCPStore:
    """Return the store that torchrun's own processes meet at."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError("torchrun serves no store of its own here (TORCHELASTIC_USE_AGENT_STORE is not True)")
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=_PATIENCE)


def _choose_interface(master: str) -> None:
    """Let Gloo listen on the interface that reaches the master only, unless GLOO_SOCKET_IFNAME says which."""
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing; it makes the system choose the way
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue  # an interface without an address
            if socket.inet_ntoa(answer[20:24]) == own:
                os.environ["GLOO_SOCKET_IFNAME"] = name
                return
