"""Flight computers and a ground server: every number has its source; measured layer times can replace assumed speeds.

A speed is the float32 peak times the share of it that a transformer reaches, which is assumed and the same for all
devices: ratios between devices are better known than absolute speeds. `calibrated` replaces it by a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from orbitsplit._io.validation import check_kind, quoted
from orbitsplit._network.network import Node
from orbitsplit._profiling.profile import ModelProfile

from .provenance import Sourced


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of computer; every number has its source.

    Its nodes compute at `peak_flop_per_s` times `efficiency`, read weights at `memory_bytes_per_s` and have
    `memory_bytes`. `power_w` is the power of the module while it computes.

    Example:
        >>> device("jetson-agx-orin-30w").node("sat-0").memory_bytes
        8000000000
    """

    name: str
    title: str
    memory_bytes: Sourced
    peak_flop_per_s: Sourced
    efficiency: Sourced
    memory_bytes_per_s: Sourced
    power_w: Sourced

    def node(self, name: str | None = None) -> Node:
        """Return a node of this kind, called `name` (default: the name of the device)."""
        return Node(
            self.name if name is None else name,
            int(self.memory_bytes.value),
            flop_per_s=self.peak_flop_per_s.value * self.efficiency.value,
            memory_bytes_per_s=self.memory_bytes_per_s.value,
        )

    def numbers(self) -> Mapping[str, Sourced]:
        """Return the numbers by name."""
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Sourced)}


def device(name: str) -> Device:
    """Return the device with this name, one of `DEVICES`.

    Raises:
        ValueError: There is no such device.
    """
    if name not in DEVICES:
        raise ValueError(f"no device {quoted(name)}; there are: {', '.join(DEVICES)}")
    return DEVICES[name]


def calibrated(known: Device, profile: ModelProfile) -> Device:
    """Return the device with the FLOP/s that it reached in a profile measured on it, over the prefill of all layers.

    Raises:
        ValueError: The profile was not measured.
    """
    check_kind("known", known, Device)
    check_kind("profile", profile, ModelProfile)
    reached = sum(layer.prefill_flop for layer in profile.layers) / _seconds(profile)
    share = Sourced(
        reached / known.peak_flop_per_s.value, "measured", f"{profile.model} on {profile.machine or 'the device'}"
    )
    return replace(known, efficiency=share)


def calibrated_node(name: str, on_device: ModelProfile, reference: ModelProfile, *, memory_bytes: int) -> Node:
    """Return a node whose slowdown is the ratio of its measured layer times to those of `reference`.

    Plans made with `reference` then predict the node's own seconds, on average over the layers. Both are profiles of
    the same model, prompt length and batch size.

    Raises:
        ValueError: A profile was not measured, or the profiles differ in model or workload.
    """
    check_kind("on_device", on_device, ModelProfile)
    check_kind("reference", reference, ModelProfile)
    for what in ("model", "dtype", "prompt_tokens", "batch_size"):
        ours, theirs = getattr(on_device, what), getattr(reference, what)
        if ours != theirs:
            raise ValueError(
                f"{what} of the profile measured on the device is {quoted(ours)}, of the reference {quoted(theirs)}"
            )
    return Node(name, memory_bytes, slowdown=_seconds(on_device) / _seconds(reference))


def _seconds(profile: ModelProfile) -> float:
    """Return the measured seconds of all layers' prefill."""
    seconds = [layer.prefill_s for layer in profile.layers if layer.prefill_s is not None]
    if len(seconds) < len(profile.layers):
        raise ValueError(
            f"the profile of {profile.model} was not measured, its layers have no seconds: profile(..., measure=True)"
        )
    return sum(seconds)


# Peak of float32: 2 FLOP per lane and cycle; a texture processing cluster (TPC) has 256 lanes (2048 on 8 in the sheet).
_JETSON_MODES = "NVIDIA Jetson Linux, nvpmodel_p3701_0000.conf (AGX Orin 64GB), MODE_{}W: {} TPC at up to {} MHz"
_JETSON_SHEET = "NVIDIA Jetson AGX Orin Series data sheet DS-10662-001 v1.6"
_REACHED = Sourced(
    0.5, "assumed", "share of the float32 peak in a transformer's matrix products at batch 64; the same on all devices"
)
_CAP = Sourced(8e9, "paper", "8 GB cap per satellite, arXiv 2604.04654")


def _jetson(watts: int, clusters: int, mhz: float, memory_mhz: float) -> Device:
    peak = clusters * 256 * 2 * mhz * 1e6
    bus = f"256-bit LPDDR5 of up to 3200 MHz [{_JETSON_SHEET}, table 1-3], in this mode {memory_mhz:g} MHz"
    return Device(
        name=f"jetson-agx-orin-{watts}w",
        title=f"Jetson AGX Orin 64GB in its {watts} W mode, 8 GB for the model",
        memory_bytes=_CAP,
        peak_flop_per_s=Sourced(peak, "datasheet", _JETSON_MODES.format(watts, clusters, f"{mhz:g}")),
        efficiency=_REACHED,
        memory_bytes_per_s=Sourced(256 / 8 * 2 * memory_mhz * 1e6, "datasheet", bus),
        power_w=Sourced(watts, "paper", "power modes of 15, 30 and 50 W, arXiv 2604.04654"),
    )


_V1605B = Device(
    name="amd-v1605b",
    title="flight computer with an AMD Ryzen V1605B, as Unibap's iX10",
    memory_bytes=Sourced(8e9, "assumed", "memory that a flight computer of this class leaves to the payload"),
    peak_flop_per_s=Sourced(8 * 64 * 2 * 1.1e9, "datasheet", "AMD Ryzen Embedded V1605B: 8 compute units at 1.1 GHz"),
    efficiency=_REACHED,
    memory_bytes_per_s=Sourced(38.4e9, "assumed", "two channels of DDR4-2400; AMD's V1000 series has 2400 or 3200"),
    power_w=Sourced(25, "datasheet", "AMD Ryzen Embedded V1605B: TDP of 12 to 25 W"),
)
_Q8S = Device(
    name="xiphos-q8s",
    title="flight computer with four Arm Cortex-A53, as Xiphos' Q8S",
    memory_bytes=Sourced(2e9, "assumed", "half of the 4 GB of the board for the model"),
    peak_flop_per_s=Sourced(4 * 8 * 1.2e9, "assumed", "4 cores at 1.2 GHz, 4 fused multiply-adds per cycle and core"),
    efficiency=_REACHED,
    memory_bytes_per_s=Sourced(9.6e9, "assumed", "32 bit of LPDDR4-2400"),
    power_w=Sourced(10, "assumed", "of the whole board, all cores busy"),
)
_RTX_4070_TI = Device(
    name="rtx-4070-ti",
    title="ground server with a GeForce RTX 4070 Ti",
    memory_bytes=Sourced(12e9, "datasheet", "NVIDIA GeForce RTX 4070 Ti: 12 GB GDDR6X"),
    peak_flop_per_s=Sourced(7680 * 2 * 2.61e9, "datasheet", "NVIDIA GeForce RTX 4070 Ti: 7,680 lanes at 2.61 GHz"),
    efficiency=_REACHED,
    memory_bytes_per_s=Sourced(504e9, "datasheet", "NVIDIA GeForce RTX 4070 Ti: 192-bit at 21 Gbit/s"),
    power_w=Sourced(285, "datasheet", "NVIDIA GeForce RTX 4070 Ti: 285 W"),
)

DEVICES: Mapping[str, Device] = {
    known.name: known
    for known in (
        _jetson(15, 3, 408, 2133),
        _jetson(30, 4, 612, 3200),
        _jetson(50, 8, 816, 3200),
        _V1605B,
        _Q8S,
        _RTX_4070_TI,
    )
}
