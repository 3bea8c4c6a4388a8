"""What a host measures for its coordinator: a few layers of the model, its memory, and its links to other hosts.

profile   {"profile": fields of `ShortProfile`}    prefill_s, decode_s, memory_bytes
listen    {"listen": true}                         port
link      {"link": "host:port"}                    bytes_per_s, back_bytes_per_s, round_trip_s
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from orbitsplit._errors import OrbitsplitError
from orbitsplit.runtime._messages.hosts import ShortProfile, available_bytes
from orbitsplit.runtime._messages.tls_channel import Credentials
from orbitsplit.runtime._parent import worker_process
from orbitsplit.runtime._parent.launcher import new_log

from .link_probe import listen_once, measure_link

# The time for a process to import its libraries, load a few layers and run them.
_PROFILE_S = 120.0


def measure(asked: Mapping[str, Any], credentials: Credentials, own_model: str | None) -> dict[str, Any]:
    """Measure what is asked; `own_model` is this host's copy of the model, None: it is where the coordinator has it.

    Raises OrbitsplitError or OSError if it fails, KeyError, TypeError or ValueError for what is no question.
    """
    if "profile" in asked:
        wanted = ShortProfile(**asked["profile"])
        return short_profile(wanted if own_model is None else replace(wanted, model=own_model))
    if "listen" in asked:
        return {"port": listen_once(credentials)}
    return measure_link(str(asked["link"]), credentials)


def short_profile(wanted: ShortProfile) -> dict[str, Any]:
    """Time layers in a process of its own, so that this one has no memory of them. Raises OrbitsplitError."""
    memory_bytes = available_bytes()
    environment = {"OMP_NUM_THREADS": str(wanted.threads)}
    with new_log() as log:
        arguments = json.dumps(asdict(wanted))
        process = worker_process.start(arguments, log=log, environment=environment, module=worker_process.SHORT_PROFILE)
        try:
            code = process.wait(_PROFILE_S)
        except subprocess.TimeoutExpired:
            raise OrbitsplitError(f"its layers were not timed within {_PROFILE_S:g} s") from None
        finally:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
    if code or not lines:
        raise OrbitsplitError(f"its layers could not be timed: {lines[-1] if lines else f'exit code {code}'}")
    return {**json.loads(lines[-1]), "memory_bytes": memory_bytes}
