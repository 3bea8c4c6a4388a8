"""A short profile of a node, made by a process of its own: a few layers of the model, timed as by `profile`."""

from __future__ import annotations

import json
import os
import sys

import torch

from orbitsplit._models.source import open_model
from orbitsplit._profiling.timing import measure_layers
from orbitsplit.runtime._messages.hosts import ShortProfile


def main(settings: str) -> None:
    """Time what the `ShortProfile` in JSON says, print the seconds as JSON, and end the process."""
    wanted = ShortProfile(**json.loads(settings))
    prefill_s, decode_s = measure_layers(
        open_model(wanted.model),
        wanted.start,
        wanted.stop,
        prompt_tokens=wanted.prompt_tokens,
        batch_size=wanted.batch_size,
        dtype=getattr(torch, wanted.dtype),
        threads=wanted.threads,
    )
    seconds = {"prefill_s": prefill_s, "decode_s": decode_s}
    print(json.dumps({name: [wanted.slowdown * one for one in own] for name, own in seconds.items()}))
    sys.stdout.flush()
    os._exit(0)  # as a worker ends, which may have been forked
