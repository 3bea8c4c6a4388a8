"""The functions of the C++ extension in Python and Numba: slower, with the same plans and the same frames."""

from __future__ import annotations

from ._calibrated import CalibratedCodec, codebook_key
from ._codec import decode, decode_into, encode, encode_into, frame_bytes
from ._cost import evaluate
from ._encoder import Decoder, Encoder
from ._frame import crc32c
from ._isa import isa, isas, set_isa
from ._planner import solve
from ._problem import validate_problem
from ._symbol_table import table_from_counts

__all__ = [
    "CalibratedCodec",
    "Decoder",
    "Encoder",
    "codebook_key",
    "crc32c",
    "decode",
    "decode_into",
    "encode",
    "encode_into",
    "evaluate",
    "frame_bytes",
    "isa",
    "isas",
    "set_isa",
    "solve",
    "table_from_counts",
    "validate_problem",
]
