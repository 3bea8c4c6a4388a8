"""The paper's figures, models and images, codecs as levels, and what is not known: each number with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orbitsplit._planner.level_table import LevelTable
from orbitsplit._planner.problem_parts import Level
from orbitsplit._profiling.profile import ModelProfile

# Of the abstract and of public digests of arXiv 2604.04654; its equations were not available.
PAPER_DELAY_AT_DOWNLINK = -0.42  # at 0.8 Gbit/s from satellite to ground
PAPER_DELAY_AT_1080P = -0.58
PAPER_COMMUNICATION = -0.717
PAPER_UNIFORM, PAPER_PROPORTIONAL = 2.03, 1.03  # times the delay of its search
PAPER_ROBUST, RANDOM_PLANS = 194, 200  # random split plans that lose less than a point
PAPER_MEMORY_GB = {"ViT-B": 2.0, "ViT-L": 4.0, "ViT-H": 7.0, "ViT-G": 12.0}
BATCH = 64

# RGB, one byte a sample: what a camera delivers without compression.
RESOLUTIONS: Mapping[str, tuple[int, int]] = {
    "240p": (426, 240),
    "360p": (640, 360),
    "480p": (854, 480),
    "720p": (1280, 720),
    "1080p": (1920, 1080),
}
SAMPLE_BYTES = 3
MODEL_SIDE = 224  # pixels of the model's input, after the first satellite has resized the image
CLASSES = 45  # of RESISC45, the result being a float32 for each

# Gbit/s; the paper sweeps 0.2 to 0.8 and also gives 6.
DOWNLINKS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 6.0)

# hidden size, layers, heads, width of the feed-forward part, patch: as published for each ViT. The image is 224 pixels.
_MODELS: Mapping[str, tuple[int, int, int, int, int]] = {
    "ViT-B": (768, 12, 12, 3072, 16),
    "ViT-L": (1024, 24, 16, 4096, 16),
    "ViT-H": (1280, 32, 16, 5120, 14),
    "ViT-G": (1664, 48, 16, 8192, 14),
}
MODELS = tuple(_MODELS)


def profiled(model: str) -> ModelProfile:
    """Return the profile of a vision transformer from its configuration, float32, batches of 64; needs transformers."""
    try:
        from transformers import ViTConfig
    except ModuleNotFoundError as error:
        raise ImportError('profiling ViTs needs transformers: pip install "orbitsplit[models]"') from error
    from orbitsplit._profiling.measure import profile

    hidden, layers, heads, wide, patch = _MODELS[model]
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=wide,
        patch_size=patch,
        image_size=MODEL_SIDE,
        num_labels=CLASSES,
        architectures=["ViTForImageClassification"],
    )
    config.name_or_path = model
    return profile(config, batch_size=BATCH)


@dataclass(frozen=True, slots=True)
class Codec:
    """Levels and the points of accuracy that each loses at a cut, the same at every cut, as no more is known."""

    name: str
    levels: tuple[Level, ...]
    points: tuple[float, ...]

    def table(self, cuts: int) -> LevelTable:
        """Return the levels for a model with this number of cuts."""
        return LevelTable(self.levels, (self.points,) * cuts)

    def at(self, level: int) -> Codec:
        """Return the codec with one of its levels alone."""
        return Codec(f"{self.name} {self.levels[level].name}", (self.levels[level],), (self.points[level],))


# Measured: 7.5 and 10.5 GB/s on one core of a server (docs/benchmarks.md). Assumed: a satellite's cores are 4 times
# slower, and the paper's codec, of whose speed nothing is known, is as fast as ours.
_ENCODE_S_PER_BYTE, _DECODE_S_PER_BYTE = 4 / 7.5e9, 4 / 10.5e9
_RAW = Level(name="raw", ratio=1.0)


def _codec(name: str, points: Mapping[float, float]) -> Codec:
    levels = [
        Level(
            name=f"{ratio:g}x", ratio=ratio, encode_s_per_byte=_ENCODE_S_PER_BYTE, decode_s_per_byte=_DECODE_S_PER_BYTE
        )
        for ratio in points
    ]
    return Codec(name, (_RAW, *levels), (0.0, *points.values()))


# Paper: ViT-L on RESISC45 loses 0.70 points (96.67 -> 95.97), with 4 cuts; assumed: the same at each cut, and before
# entropy coding, which loses nothing, as after it.
PAPER_CUTS = 4
PAPER_CODEC = _codec("the paper's codec", dict.fromkeys((3.96, 11.56, 25.82), 0.70 / PAPER_CUTS))
OUR_CUTS = 3
# Measured on a small ViT with 3 cuts (docs/benchmarks.md, "Calibration, a vision transformer"): klt loses 0.00 points
# up to 26.4x. An image is 0.14 points, so that much is counted. That larger ViTs lose as little is assumed.
OUR_CODEC = _codec("our codec", dict.fromkeys((7.9, 11.4, 15.7, 26.4), 0.14 / OUR_CUTS))
# The same measurements of plain top-k.
TOP_K = _codec("top-k", {8.0: 0.71 / OUR_CUTS, 11.6: 1.43 / OUR_CUTS, 16.2: 2.71 / OUR_CUTS, 28.5: 19.29 / OUR_CUTS})
LOSS_BUDGET = 1.0  # points: the paper's "less than 1 %"

# What the abstract and the digests of arXiv 2604.04654 do not state, and what is assumed instead.
UNKNOWN = (
    "Every formula: no equation of the paper was available. Delay here is that of DESIGN.md, section 3: resources in a"
    " row, overlapped, propagation once.",
    "How its ground-only baseline is timed. Here: raw 8-bit RGB images, not compressed, relayed over every link from"
    " the satellite that takes them to the one in contact, batch after batch. The fair variants drop assumptions.",
    "How many batches of 64 a request has, and whether they overlap. Here: 16, overlapped; other numbers are in the"
    " tables too.",
    "Which satellite has which power mode, and what share of its peak a Jetson reaches. Here: 15, 30, 50, 30, 15 W, and"
    " half of the float32 peak on all devices, the server included. Tensor cores have peaks up to 8 times higher.",
    "Whether the resolution changes the model's input. Here it does not: the first satellite resizes images to 224"
    " pixels, in no time.",
    "At which resolution the figure at 0.8 Gbit/s is, at which downlink the one at 1080p, and over what the bytes are"
    " counted.",
    "How long its codec takes, and what each of its stages loses at which cut. Here: as long as ours, 0.70 points in"
    " four equal parts.",
    "Whether the ground server may run stages. Here it may not, unless a line says so.",
)
