"""Codecs fitted to the activations at one cut of a model: plain numbers, prepared by the backend that runs them."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field, fields
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from orbitsplit._backend import backend
from orbitsplit._errors import CorruptFrameError
from orbitsplit._io.deprecation import REMOVED_IN
from orbitsplit._io.validation import check_number, check_range

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class CalibratedCodec:
    """A codec for activations of one width at one cut of a model, with numbers that calibration found.

    With x a row of `width` channels and T the transform:

        y    = T ((x - shift) scale)
        code = 0 where |y| < threshold, else sign(y) floor(|y| / step + rounding); beyond -127..127 y itself is
               kept as a bfloat16, so that nothing is ever clipped
        y'   = sign(code) (|code| - shrink) step
        x'   = (T' y') / scale + shift, or with `inverse` instead of T'

    Arrays have one float32 per channel; None leaves a step out. `step` is from 2^-126 to 2^120, `shift` from -2^126 to
    2^126, `threshold` at least 0, `rounding` in (0, 0.5], `shrink` in [0, 0.5). The transform is that of `matrix`
    ([width, width]) or Hadamard's on blocks of `hadamard` channels, a power of two; `scale` needs one (without, it
    belongs into `step`). A matrix is orthogonal, or comes with its `inverse` ([width, width]), both with magnitudes up
    to 2^40: with F a Fisher matrix and U orthogonal, T = U' F^(1/2) and its inverse F^(-1/2) U weigh errors by F.

    `tables` ([T, 256], up to 64 of them) are expected frequencies of each byte in 256ths, which add up to 1 to 255; the
    rest to 256 is the frequency of an escape that codes the bytes of frequency 0. `table_of_channel` is the index of
    each channel's table, by default 0. Without tables codes are stored unchanged.

    A frame holds `codebook`, `cut` and `level` and none of these numbers: its receiver needs the same codec.

    Raises:
        TypeError: An array does not hold numbers, or a number is none; the message names it.
        ValueError: A number or a shape is not valid; the message names it.

    >>> codec = CalibratedCodec(codebook=7, step=np.full(4, 0.5, np.float32))
    >>> codec.width
    4
    """

    codebook: int
    cut: int = 0
    level: int = 0
    step: Floats
    shift: Floats | None = None
    scale: Floats | None = None
    threshold: Floats | None = None
    rounding: float = 0.5
    shrink: float = 0.0
    hadamard: int = 0
    matrix: Floats | None = None
    inverse: Floats | None = None
    tables: Bytes | None = None
    table_of_channel: Bytes | None = None
    _prepared: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("step", "shift", "scale", "threshold"):
            self._freeze(name, np.float32, 1)
        for name in ("matrix", "inverse"):
            self._freeze(name, np.float32, 2)
        self._freeze("tables", np.uint8, 2)
        if self.tables is not None and self.table_of_channel is None:
            object.__setattr__(self, "table_of_channel", np.zeros(self.width, np.uint8))
        self._freeze("table_of_channel", np.uint8, 1)
        for name, bits in (("codebook", 64), ("cut", 16), ("level", 16), ("hadamard", 31)):
            check_range(name, getattr(self, name), 0, (1 << bits) - 1)
        for name in ("rounding", "shrink"):
            check_number(name, getattr(self, name))
        if self.tables is not None and (self.tables.shape[1] != 256 or not len(self.tables)):
            raise ValueError(f"tables has shape {list(self.tables.shape)}, it must have rows of 256")
        for name in ("matrix", "inverse"):
            matrix = getattr(self, name)
            if matrix is not None and matrix.shape != (self.width, self.width):
                raise ValueError(f"{name} has shape {list(matrix.shape)}, it must be [{self.width}, {self.width}]")
        # Here and not at the first frame: wrong numbers are an error of the code that makes the codec.
        prepared(self, backend())

    def _freeze(self, name: str, dtype: type[np.float32] | type[np.uint8], axes: int) -> None:
        """Replace an array by a copy that cannot change."""
        given = getattr(self, name)
        if given is None:
            if name == "step":
                raise TypeError("step is None, must be numbers")
            return
        try:
            array = np.array(given)
        except ValueError as error:
            raise ValueError(f"{name} has rows of different lengths") from error
        # A comparison of channels may tell which of two tables they have.
        if array.dtype.kind not in ("biuf" if dtype is np.uint8 else "iuf"):
            raise TypeError(f"{name} holds {array.dtype}, it must hold numbers")
        if array.ndim != axes:
            raise ValueError(f"{name} has {array.ndim} axes, it must have {axes}")
        if dtype is np.uint8 and not np.array_equal(array.astype(np.uint8), array):
            raise ValueError(f"{name} must hold whole numbers from 0 to 255")
        with np.errstate(over="ignore"):
            array = np.ascontiguousarray(array, dtype)
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def width(self) -> int:
        """The number of channels."""
        return len(self.step)

    def prepared(self, module: ModuleType) -> Any:
        """Return the backend's form of this codec. Deprecated: it is internal to `compress` and the others."""
        advice = "compress, decompress, Encoder and Decoder take the codec itself"
        warnings.warn(
            f"CalibratedCodec.prepared goes in version {REMOVED_IN}; {advice}", DeprecationWarning, stacklevel=2
        )
        return prepared(self, module)

    def _numbers(self) -> tuple[Any, ...]:
        """Return everything a frame depends on, in a form that can be compared: arrays as their shape and bytes."""
        values = (getattr(self, entry.name) for entry in fields(self) if entry.init)
        return tuple((x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for x in values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CalibratedCodec):
            return NotImplemented
        return self is other or self._numbers() == other._numbers()

    def __hash__(self) -> int:
        return hash((self.codebook, self.cut, self.level, self.step.tobytes()))

    def __repr__(self) -> str:
        transform = "matrix" if self.matrix is not None else f"hadamard {self.hadamard}" if self.hadamard else "none"
        tables = 0 if self.tables is None else len(self.tables)
        return (
            f"CalibratedCodec(codebook={self.codebook}, cut={self.cut}, level={self.level}, width={self.width}, "
            f"transform={transform}, tables={tables})"
        )

    # The backend's form cannot be pickled; it is remade from the numbers.
    def __reduce__(self) -> tuple[Any, ...]:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.init}
        return functools.partial(CalibratedCodec, **values), ()


def prepared(codec: CalibratedCodec, module: ModuleType) -> Any:
    """Return a backend's own form of a codec, made once."""
    forms = codec._prepared
    if module.__name__ not in forms:
        forms[module.__name__] = _prepare(codec, module)
    return forms[module.__name__]


class CodecOfLevel(Protocol):
    """The codecs of a model, one for each cut and level."""

    @property
    def codebook_id(self) -> int: ...

    def codec_of(self, cut: int, level: int) -> CalibratedCodec: ...


def check_codebook(codebook: CodecOfLevel) -> None:
    """Raise `TypeError` for what has no codecs of levels, such as the name of a codec."""
    if not (hasattr(codebook, "codebook_id") and hasattr(codebook, "codec_of")):
        raise TypeError(
            f"codebook is a {type(codebook).__name__}, it must be a CalibratedCodec or have codecs of levels"
        )


def select(codebook: CalibratedCodec | CodecOfLevel, key: tuple[int, int, int]) -> CalibratedCodec | None:
    """Return the codec that decodes a frame with this key (codebook, cut, level), None if it needs none.

    Raises `CorruptFrameError` if the frame needs another codebook, `TypeError` for what is no codebook.
    """
    if isinstance(codebook, CalibratedCodec):
        return codebook  # its decoder compares the whole key
    check_codebook(codebook)
    needed, cut, level = key
    if needed == 0:
        return None
    if needed != codebook.codebook_id:
        raise CorruptFrameError(
            f"frame needs codebook {needed}, cut {cut}, level {level}, this is codebook {codebook.codebook_id}"
        )
    try:
        return codebook.codec_of(cut, level)
    except LookupError as error:
        raise CorruptFrameError(
            f"frame needs cut {cut}, level {level} of codebook {needed}, which has none: {error}"
        ) from error


def _prepare(codec: CalibratedCodec, module: ModuleType) -> Any:
    none = np.zeros(0, np.float32)
    no_bytes = np.zeros(0, np.uint8)

    def given(array: npt.NDArray[Any] | None, otherwise: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return otherwise if array is None else array

    return module.CalibratedCodec(
        codec.codebook,
        codec.cut,
        codec.level,
        codec.step,
        given(codec.shift, none),
        given(codec.scale, none),
        given(codec.threshold, none),
        codec.rounding,
        codec.shrink,
        codec.hadamard,
        given(codec.matrix, none).reshape(-1),
        given(codec.inverse, none).reshape(-1),
        given(codec.tables, no_bytes).reshape(-1),
        given(codec.table_of_channel, no_bytes),
    )
