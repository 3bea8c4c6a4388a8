"""The dtypes of activations and weights: their names, sizes, and numbers in frames."""

from __future__ import annotations

from collections.abc import Sequence

from .validation import quoted

# Index = the number of the dtype in a frame.
DTYPES = ("float32", "float16", "bfloat16")
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# As the headers of safetensors files write them.
SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def check_dtype(name: str, dtype: str) -> None:
    """Raise `ValueError` for a name that is no dtype; `name` is the argument's."""
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} is {quoted(dtype)}, must be one of {', '.join(DTYPES)}")


def describe_array(dtype: int, shape: Sequence[int]) -> str:
    """Return a dtype, by its number in frames, and a shape as messages write them."""
    return f"{DTYPES[dtype]} [{', '.join(map(str, shape))}]"
