"""Satellites one behind the other above two stations, a toy model for them, and plans in time as executed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np

from orbitsplit import LayerProfile, ModelProfile, Node, Workload, leo
from tests.judges.events import Judge, Sky, Task

STEP_S = 10.0
RATE = 1.25e6
SVALBARD = leo.Station("svalbard", 78.23, 15.39, 0.5, node=Node("server", 2_000_000_000, slowdown=1.0), antennas=1)
MUNICH = leo.Station("munich", 48.15, 11.57, 0.5, node=Node("server", 2_000_000_000, slowdown=1.5), antennas=1)


def by_range(km: Any) -> Any:
    """10 Mbit/s at 1,000 km, falling with the square of the range."""
    return RATE * (1000.0 / np.maximum(km, 200.0)) ** 2


def train(rate: Any = None, count: int = 3, spacing_deg: float = 0.42) -> leo.Constellation:
    """Return satellites one behind the other, 50 km apart, `sat-0` first."""
    budget = leo.FixedRate(RATE) if rate is None else SimpleNamespace(bytes_per_s=rate)
    equipment = leo.Equipment(Node("obc", 500_000_000, slowdown=4.0), isl=leo.FixedRate(RATE), downlink=budget)
    ones = [
        leo.single(f"sat-{k}", altitude_km=500, inclination_deg=97.4, mean_anomaly_deg=-k * spacing_deg)
        for k in range(count)
    ]
    together = ones[0]
    for one in ones[1:]:
        together = together + one
    return together.equipped(equipment).served_by(SVALBARD)


def profile(seconds: float = 1.0, weight_bytes: int = 20_000_000, cut_bytes: int = 1000) -> ModelProfile:
    layers = tuple(LayerProfile(f"layer {k}", weight_bytes, 0, None, 10**9, 0, seconds, None) for k in range(6))
    return ModelProfile(
        model="toy",
        architecture="Toy",
        dtype="float32",
        prompt_tokens=100,
        batch_size=1,
        hidden_size=250,
        layers=layers,
        cut_bytes_per_token=cut_bytes,
        workspace_bytes=0,
        tied_bytes=0,
        threads=1,
        machine="test",
    )


def workload(micro_batches: int) -> Workload:
    return Workload(micro_batches=micro_batches, prompt_tokens=100)


def judged(
    fleet: leo.Constellation, timed: leo.TimedPlan, request: dict[str, Any], model: ModelProfile, **rates: Any
) -> float:
    """Return the seconds from the request to the completion, as executed."""
    flat = {"isl": lambda _: RATE, "down": lambda _: RATE, "up": lambda _: RATE, **rates}
    task = Task(model, request["source"], request["input_bytes"], request["output_bytes"], ratios={"int8": 4.0}, **flat)
    sky = Sky(fleet, timed.requested, int(timed.duration_s) + 300)
    return (Judge(sky, task, timed).completion() - timed.requested).total_seconds()


def first_contact(fleet: leo.Constellation, satellite: str) -> leo.Contact:
    contacts = fleet.contacts(fleet.epoch, fleet.epoch + timedelta(hours=12))
    begin = fleet.epoch + timedelta(hours=1)
    return next(c for c in contacts if c.satellite == satellite and c.start > begin and c.duration_s > 400)
