"""The options of `calibrate`, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from orbitsplit._io.dtypes import check_dtype
from orbitsplit._io.validation import check_boolean, check_count, check_integer, check_number, check_string, quoted
from orbitsplit._weights.quantized import FORMATS

from ._candidates import check_codecs

LEVELS = (5.0, 4.0, 3.2, 2.6, 2.1, 1.7)
"""The bits per element of the codecs that `calibrate` fits by default, best quality first."""

CODECS = ("fisher", "klt")
"""The kinds of codecs that `calibrate` fits by default; `CalibrationOptions` describes them and the others."""

# Each batch has a random sequence of its own, whose seed is this many times larger; torch takes 64 bits.
_LARGEST_SEED = 1 << 43


class CalibrationKeywords(TypedDict, total=False):
    """The fields of `CalibrationOptions` as keywords of `calibrate`."""

    cuts: Sequence[int] | Literal["all", "inner"]
    levels: Sequence[float]
    codecs: Sequence[str]
    prompt_tokens: int
    fit_samples: int | None
    measure_samples: int | None
    dtype: torch.dtype
    hull_only: bool
    weights: Sequence[str | Path]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What `calibrate` fits and measures: cuts, levels, kinds of codecs, samples.

    `cuts` are numbers of layers before the cut ("all": 0 to the number of layers; "inner": without the first and the
    last). `levels` are bits per element. `codecs` are

        channel   a step for each channel, in proportion to its standard deviation
        fisher    a step for each channel by the effect of its errors on the output (diagonal Fisher information)
        klt       the same by the whole Fisher information, in the principal axes of the activation (a matrix product)
        mask      elements below a learned threshold of their channel are dropped, the others take 4 or 8 bits
                  (Gumbel-sigmoid gates trained through the frozen model, as in arXiv 2604.04654; trained for plans
                  with the mask of the same level at all earlier cuts that kept one)
        trained   the numbers of klt, trained further by distillation with a penalty on bits
        int8 ...  any fixed codec

    Texts become rows of `prompt_tokens` tokens. `fit_samples` rows, texts or images are fitted to and `measure_samples`
    others measured on, drawn by `seed`; None chooses both by how many samples there are. `dtype` is that of a model
    that is loaded. With `hull_only`, codecs are left out that lie above the lower convex hull of loss over bits at
    their cut by more than their standard error (codecs with and without a matrix apart).

    `weights` are precisions whose loss is measured for each layer, the embeddings and the head: the formats "int8" and
    "int4", as `convert` rounds without calibration texts, or folders that it wrote of the same model.

    Example:
        >>> options = osp.CalibrationOptions(cuts=[5, 9, 14], codecs=("klt", "int8"))        # doctest: +SKIP
        >>> book = osp.calibrate("path-or-hub-id", texts, options=options)                   # doctest: +SKIP

    Raises:
        TypeError: An option has a wrong type; the message names it.
        ValueError: An option has a wrong value; the message names it. Cuts and numbers of samples are compared with
            the model and the data by `calibrate`.
    """

    cuts: Sequence[int] | Literal["all", "inner"] = "all"
    levels: Sequence[float] = LEVELS
    codecs: Sequence[str] = CODECS
    prompt_tokens: int = 512
    fit_samples: int | None = None
    measure_samples: int | None = None
    dtype: torch.dtype = torch.float32
    hull_only: bool = True
    weights: Sequence[str | Path] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("levels", "codecs"):
            object.__setattr__(self, name, _tuple_of(name, getattr(self, name)))
        _check_levels(self.levels)
        for codec in self.codecs:
            check_string("a codec", codec)
        check_codecs(self.codecs)
        if isinstance(self.cuts, str):
            if self.cuts not in ("all", "inner"):
                raise ValueError(f'cuts is "{self.cuts}"; valid are "all", "inner" and a sequence of whole numbers')
        else:
            object.__setattr__(self, "cuts", _tuple_of("cuts", self.cuts))
            for cut in self.cuts:
                check_integer("a cut", cut)
        check_count("prompt_tokens", self.prompt_tokens, 1)
        for name in ("fit_samples", "measure_samples"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        check_torch_dtype("dtype", self.dtype)
        check_boolean("hull_only", self.hull_only)
        weights = _tuple_of("weights", self.weights)
        object.__setattr__(self, "weights", weights)
        weight_levels(weights)
        check_seed(self.seed)


def weight_levels(weights: Sequence[Any]) -> dict[str, str | Path]:
    """Return precisions of weights by name: formats, and folders by their own names.

    Raises `TypeError` for what is neither a string nor a path, `ValueError` for no format or folder, and for two of one
    name.
    """
    found: dict[str, str | Path] = {}
    for given in weights:
        if not isinstance(given, (str, Path)):
            raise TypeError(f"a precision of weights is {quoted(given)}, must be a format or a folder")
        name = given if given in FORMATS else Path(given).resolve().name
        if given not in FORMATS and not Path(given).is_dir():
            raise ValueError(f"weights {quoted(str(given))} are no folder and none of {', '.join(FORMATS)}")
        if name in found:
            raise ValueError(f"weights name {quoted(str(name))} twice")
        found[str(name)] = given
    return found


def check_torch_dtype(name: str, dtype: Any) -> None:
    """Raise `TypeError` for what is no dtype of torch, `ValueError` for one that frames do not have."""
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is {quoted(dtype)}, must be a torch.dtype")
    check_dtype(name, str(dtype).removeprefix("torch."))


def check_seed(seed: Any) -> None:
    """Raise `TypeError` or `ValueError` for what seeds no random numbers."""
    check_integer("seed", seed, most=_LARGEST_SEED)


def _tuple_of(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is {quoted(values)}, must be a sequence")
    return tuple(values)


def _check_levels(levels: Sequence[float]) -> None:
    if not levels:
        raise ValueError("there is no level to calibrate")
    for bits in levels:
        check_number("a level", bits)
        if not 0.05 <= bits <= 16:
            raise ValueError(f"level {bits} is not from 0.05 to 16 bits per element")
    if len(set(levels)) < len(levels):
        raise ValueError(f"levels {', '.join(f'{bits:g}' for bits in levels)} name one twice")
