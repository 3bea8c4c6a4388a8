"""Devices: numbers as in their data sheets, each with its source, and speeds from measured layer times."""

from __future__ import annotations

from dataclasses import replace

import pytest

import orbitsplit as osp
from orbitsplit import leo
from orbitsplit._profiling.profile import LayerProfile, ModelProfile


def profile(seconds: float | None, *, layers: int = 4, **changes: object) -> ModelProfile:
    """Return a profile whose layers take `seconds` and 2 TFLOP each."""
    rows = tuple(LayerProfile(f"layer {k}", 1_000, 0, None, 2 * 10**12, 0, seconds) for k in range(layers))
    measured = {} if seconds is None else {"threads": 1, "machine": "a bench"}
    made = ModelProfile("vit", "ViT", "float32", 197, 64, 8, rows, 32, 0, 0, **measured)
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("watts", "peak", "bytes_per_s"),
    [
        # lanes of a TPC x 2 x clock, and 256 bit x 2 x memory clock: NVIDIA's file of power modes
        (15, 3 * 256 * 2 * 408e6, 256 / 8 * 2 * 2133e6),
        (30, 4 * 256 * 2 * 612e6, 204.8e9),
        (50, 8 * 256 * 2 * 816e6, 204.8e9),
    ],
)
def test_power_modes_of_a_jetson(watts: int, peak: float, bytes_per_s: float) -> None:
    found = leo.device(f"jetson-agx-orin-{watts}w")
    node = found.node("sat-7")
    assert node.name == "sat-7"
    assert node.memory_bytes == 8_000_000_000
    assert node.flop_per_s == pytest.approx(0.5 * peak, rel=1e-12)
    assert node.memory_bytes_per_s == pytest.approx(bytes_per_s, rel=1e-12)
    assert found.power_w.value == watts


def test_the_ground_server_has_the_published_peak() -> None:
    found = leo.device("rtx-4070-ti")
    assert found.peak_flop_per_s.value == pytest.approx(40.09e12, rel=1e-3)
    assert found.node().memory_bytes == 12_000_000_000
    assert found.node().memory_bytes_per_s == 504e9


def test_every_number_has_an_origin_and_a_source() -> None:
    assert len(leo.DEVICES) >= 6
    for name, found in leo.DEVICES.items():
        assert found.name == name
        numbers = found.numbers()
        assert {"memory_bytes", "peak_flop_per_s", "efficiency", "memory_bytes_per_s", "power_w"} == set(numbers)
        for number in numbers.values():
            assert number.origin in ("paper", "datasheet", "measured", "assumed")
            assert number.source
            assert number.origin in str(number)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no device 'abacus'; there are: jetson-agx-orin-15w, .*rtx-4070-ti"):
        leo.device("abacus")
    with pytest.raises(ValueError, match="the origin 'rumour' must be one of paper, datasheet, measured, assumed"):
        leo.Sourced(1.0, "rumour")


def test_a_measured_profile_replaces_the_assumed_efficiency() -> None:
    known = leo.device("jetson-agx-orin-30w")
    found = leo.calibrated(known, profile(0.5))
    assert found.node().flop_per_s == pytest.approx(4e12)  # 2 TFLOP in half a second
    assert found.efficiency.origin == "measured"
    assert "a bench" in found.efficiency.source
    assert found.memory_bytes == known.memory_bytes


def test_a_node_is_as_slow_as_its_own_layer_times() -> None:
    node = leo.calibrated_node("sat-0", profile(0.6), profile(0.2), memory_bytes=1_000_000_000)
    assert node.slowdown == pytest.approx(3.0)
    # A plan made with the reference then predicts the seconds that the device itself measured.
    plan = osp.plan(
        profile(0.2), osp.Network("one", (node,)), osp.Workload(prompt_tokens=197, batch_size=64, new_tokens=0)
    )
    assert plan.prediction is not None
    assert plan.prediction.total_s == pytest.approx(4 * 0.6)


def test_profiles_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="the profile of vit was not measured"):
        leo.calibrated(leo.device("amd-v1605b"), profile(None))
    with pytest.raises(ValueError, match="the profile of vit was not measured"):
        leo.calibrated_node("sat-0", profile(None), profile(0.2), memory_bytes=1)
    with pytest.raises(ValueError, match="batch_size of the profile measured on the device is 64, of the reference 1"):
        leo.calibrated_node("sat-0", profile(0.6), profile(0.2, batch_size=1), memory_bytes=1)


def test_a_device_may_be_faster_than_the_reference() -> None:
    assert leo.calibrated_node("sat-0", profile(0.1), profile(0.2), memory_bytes=1).slowdown == pytest.approx(0.5)
