"""The functions of the C++ extension in Python and Numba: slower, with the same plans and the same frames."""

from __future__ import annotations

from .codec.calibrated import CalibratedCodec, codebook_key
from .codec.codec import decode, decode_into, encode, encode_into, frame_bytes
from .codec.encoder import Decoder, Encoder
from .codec.frame import crc32c
from .codec.inverse import inverse_of
from .codec.symbol_table import table_from_counts
from .decoder.decoder import DecoderLayer
from .isa import isa, isas, set_isa
from .planner.cost import evaluate
from .planner.problem import prepare_problem
from .planner.solve import solve
from .weights.quantize import quantize
from .weights.weights import dequantize, dequantize_rows, multiply, quantized_bytes

__all__ = [
    "CalibratedCodec",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "codebook_key",
    "crc32c",
    "decode",
    "decode_into",
    "dequantize",
    "dequantize_rows",
    "encode",
    "encode_into",
    "evaluate",
    "frame_bytes",
    "inverse_of",
    "isa",
    "isas",
    "multiply",
    "prepare_problem",
    "quantize",
    "quantized_bytes",
    "set_isa",
    "solve",
    "table_from_counts",
]
