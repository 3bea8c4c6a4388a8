"""Requests over a span of time, drawn at random from a seed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np

from orbitsplit._io.validation import check_count, check_number
from orbitsplit._models.source import read_config
from orbitsplit.leo import Scenario, TimedRequest

from ._flight import FlightRequest

# As many bytes as a token takes on a link.
_BYTES_OF_TOKEN = 4


def requests_over(
    scenario: Scenario | str | Path,
    model: str | Path,
    count: int,
    *,
    hours: float,
    prompt_tokens: int = 32,
    new_tokens: int = 32,
    input_bytes: float | None = None,
    output_bytes: float | None = None,
    deadline_s: float = 86_400.0,
    seed: int = 0,
) -> tuple[FlightRequest, ...]:
    """Return requests at random times in the first `hours` of a scenario, in order, from satellites of its chain.

    Prompts are random tokens of the model's vocabulary. Files have `input_bytes` and `output_bytes`, by default 4 bytes
    for each token of the prompt and of the text.

    Raises:
        ValueError: A number is out of range, or the scenario as `Scenario.load`.
    """
    for name, value in (("count", count), ("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
        check_count(name, value, 1)
    check_number("hours", hours)
    if not 0 < hours <= 24 * 30:
        raise ValueError(f"hours is {hours:g}, must be over 0 and at most 720")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    vocabulary = read_config(model).get_text_config().vocab_size
    sources = loaded.chain or loaded.constellation.names
    r = np.random.default_rng(seed)
    times = np.sort(r.uniform(0.0, 3600.0 * hours, count))
    found = []
    for at_s in times.tolist():
        request = TimedRequest(
            requested=loaded.constellation.epoch + timedelta(seconds=at_s),
            source=sources[int(r.integers(len(sources)))],
            input_bytes=_BYTES_OF_TOKEN * prompt_tokens if input_bytes is None else input_bytes,
            output_bytes=_BYTES_OF_TOKEN * new_tokens if output_bytes is None else output_bytes,
            deadline_s=deadline_s,
        )
        found.append(FlightRequest(request, tuple(r.integers(0, vocabulary, prompt_tokens).tolist())))
    return tuple(found)
