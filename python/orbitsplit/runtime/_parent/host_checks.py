"""What a pipeline needs of the machine it is started on: checked first, since its lack shows late and unnamed."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from orbitsplit._errors import TransportError
from orbitsplit._models.device import open_device
from orbitsplit._plans.plan_parts import PlanStage
from orbitsplit.runtime._messages.environment import INTERFACE_VARIABLE
from orbitsplit.runtime._messages.interfaces import interface_address, interface_names

# Descriptors of the parent, which serves the control store: measured 79 with 4 stages, 100 with 5; fewer in a stage.
_FILES, _FILES_PER_STAGE = 32, 24
# More with hosts, where a connection to the store has two descriptors of its tunnel too: measured 82 with 4 stages, 46
# without hosts.
_FILES_PER_HOST = 12
_CONNECT_S = 5.0


def check_host(stages: int, address: str, *, has_hosts: bool = False) -> None:
    """Raise TransportError of kind "host" if a pipeline of so many stages cannot run, with the cause and what helps."""
    _check_files(stages, _FILES_PER_STAGE + (_FILES_PER_HOST if has_hosts else 0))
    _check_interface()
    _check_address(address)


def check_devices(stages: Iterable[PlanStage]) -> None:
    """Raise TransportError of kind "host" if a stage of this machine has a device that torch does not find."""
    for stage in stages:
        try:
            open_device(stage.device)
        except ValueError as error:
            raise TransportError(f'node "{stage.node}" has device {stage.device}: {error}', kind="host") from None


def _check_files(stages: int, files_per_stage: int) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _open_files() + _FILES + files_per_stage * stages
    if limit != resource.RLIM_INFINITY and limit < needed:
        message = f"a process may open {limit} files here (ulimit -n), a pipeline of {stages} stages needs {needed}"
        raise TransportError(message, kind="host")


def _open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 3


def _check_interface() -> None:
    named = os.environ.get(INTERFACE_VARIABLE)
    if named is None:
        return
    for name in named.split(","):
        present = interface_names()
        if name not in present:
            raise TransportError(
                f'{INTERFACE_VARIABLE} names "{name}", which is no interface here: {", ".join(present)}', kind="host"
            )
        if sys.platform == "linux" and interface_address(name) is None:
            raise TransportError(f'{INTERFACE_VARIABLE} names "{name}", which has no IPv4 address', kind="host")


def _check_address(address: str) -> None:
    """Connect to this machine itself, as the processes of all stages will."""
    try:
        with socket.create_server((address, 0)) as listener:
            socket.create_connection(listener.getsockname()[:2], timeout=_CONNECT_S).close()
    except OSError as error:
        hint = "; is the loopback interface up? (ip link set lo up)" if address.startswith("127.") else ""
        raise TransportError(f"this machine does not reach itself at {address}: {error}{hint}", kind="host") from error
