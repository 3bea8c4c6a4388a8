"""Values from files and callers brought to their type and shape.

A value of the wrong type is a TypeError, a wrong value a ValueError; both name the key, the value and what is expected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# The largest count that is accepted: what is beyond is a mistake.
LARGEST_INTEGER = 2**31 - 1
# Bytes, which the core counts in 64 bits.
LARGEST_BYTES = 2**63 - 1
# Two of them in a message, and what they stand beside, stay below 200 characters.
LONGEST_QUOTE = 80
LONGEST_LIST = 160


def listed(values: Iterable[Any], limit: int = LONGEST_LIST) -> str:
    """Return values separated by commas: the first ones, in `limit` characters, and how many more there are."""
    texts = [value if isinstance(value, str) else str(value) for value in values]
    shown, length = 0, 0
    for text in texts:
        length += min(len(text), LONGEST_QUOTE) + 2
        if length > limit + 2:
            break
        shown += 1
    found = ", ".join(_cut(text) for text in texts[:shown])
    return found if shown == len(texts) else f"{found} and {len(texts) - shown:,} more"


def quoted(value: Any, limit: int = LONGEST_QUOTE) -> str:
    """Return `repr` of a value, of a long one only its beginning and its length; at most `limit` characters quoted."""
    if isinstance(value, (str, bytes)):
        text, length = repr(value[:limit]), len(value)
    elif isinstance(value, int) and value.bit_length() > 4 * limit:  # of most digits Python refuses to print them
        return f"an integer of about {value.bit_length() * math.log10(2):,.0f} digits"
    else:
        text = repr(value)
        length = len(text)
    if length <= limit and len(text) <= limit + 2:
        return text
    return f"{text[:limit]}... ({length:,} characters)"


def check_kind(key: str, value: Any, kind: type) -> None:
    """Raise `TypeError` for what is no instance of a class."""
    if not isinstance(value, kind):
        raise TypeError(f"{key} is {quoted(value)}, must be {_with_article(kind)}")


def tuple_of(key: str, values: Any, kind: type = object) -> tuple[Any, ...]:
    """Return a sequence as a tuple. Raises `TypeError` for a string, and for a value that is no instance of `kind`."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        of = {object: "", str: " of names"}.get(kind, f" of {kind.__name__}")
        raise TypeError(f"{key} is {quoted(values)}, must be a sequence{of}")
    found = tuple(values)
    for k, value in enumerate(found):
        check_kind(f"{key}[{k}]", value, kind)
    return found


def _with_article(kind: type) -> str:
    name = "string" if kind is str else kind.__name__
    return f"{'an' if name[0] in 'AEIO' else 'a'} {name}"


def check_fields(key: str, record: Any, *, strings: Sequence[str], booleans: Sequence[str] = ()) -> None:
    """Check the types of a record's fields: what is neither a string nor a boolean is a number."""
    for part in dataclasses.fields(record):
        value = getattr(record, part.name)
        if part.name in strings:
            check_string(f"{key}.{part.name}", value)
        elif part.name in booleans:
            check_boolean(f"{key}.{part.name}", value)
        else:
            check_number(f"{key}.{part.name}", value)


def check_string(key: str, value: Any) -> None:
    """Raise `TypeError` for what is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{key} is {quoted(value)}, must be a string")


def check_boolean(key: str, value: Any) -> None:
    """Raise `TypeError` for what is neither true nor false."""
    if not isinstance(value, bool):
        raise TypeError(f"{key} is {quoted(value)}, must be true or false")


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raise `ValueError` for what is none of some strings."""
    if not isinstance(value, str) or value not in choices:
        *most, last = (f'"{choice}"' for choice in choices)
        wanted = f"{', '.join(most)} or {last}" if most else last
        raise ValueError(f"{key} is {quoted(value)}, must be {wanted}")


def check_number(key: str, value: Any) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for an integer that no float holds."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{key} is {quoted(value)}, must be a number")
    try:
        float(value)
    except OverflowError:
        digits = math.floor(math.log10(abs(value))) + 1  # Python refuses to print many
        raise ValueError(f"{key} has {digits} digits, must be at most 1.8e308") from None


def check_is_integer(key: str, value: Any) -> None:
    """Raise `TypeError` for what is no integer."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{key} is {quoted(value)}, must be an integer")


def check_integer(key: str, value: Any, *, most: int = LARGEST_INTEGER) -> None:
    """Raise `TypeError` for what is no integer, `ValueError` for one whose magnitude is above `most`."""
    check_count(key, value, -most, most=most)


def check_count(key: str, value: Any, least: int, *, most: int = LARGEST_INTEGER) -> None:
    """Raise `TypeError` for what is no integer, `ValueError` for one below `least` or above `most`."""
    check_is_integer(key, value)
    if value < least:
        raise ValueError(f"{key} is {quoted(int(value))}, must be at least {least}")
    if value > most:
        raise ValueError(f"{key} is {quoted(int(value))}, must be at most {most}")


def check_finite(
    key: str, value: Any, *, above: float | None = None, least: float | None = None, most: float = math.inf
) -> None:
    """Raise `TypeError` for what is no number, `ValueError` for one that is not finite or not within the limits."""
    check_number(key, value)
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}, must be finite")
    if above is not None and not value > above:
        raise ValueError(f"{key} is {value}, must be above {above:g}")
    if least is not None and value < least:
        raise ValueError(f"{key} is {value}, must be at least {least:g}")
    if value > most:
        raise ValueError(f"{key} is {value}, must be at most {most:g}")


def check_path(key: str, value: Any) -> None:
    """Raise `TypeError` for what is neither a path nor None."""
    if value is not None and not isinstance(value, (str, Path)):
        raise TypeError(f"{key} is {quoted(value)}, must be a path")


def check_callable(key: str, value: Any) -> None:
    """Raise `TypeError` for what can neither be called nor is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{key} is {quoted(value)}, must be a function")


def check_range(key: str, value: Any, least: int, most: int) -> None:
    """Raise `TypeError` for what is no integer, `ValueError` for one that is not from `least` to `most`."""
    check_is_integer(key, value)
    if not least <= value <= most:
        raise ValueError(f"{key} is {quoted(int(value))}, it must be from {least} to {most}")


def array_of(key: str, value: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Return a read-only float64 copy of the shape. Raises `TypeError` or `ValueError` naming the key."""
    wanted = f"must be numbers of shape {shape}"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{key} has rows of different lengths, {wanted}") from error
    if 0 in shape and array.size == 0:
        array = np.zeros(shape)
    if array.dtype.kind not in "iuf" or (isinstance(value, (list, tuple)) and _contains_bool(value)):
        raise TypeError(f"{key} holds something that is no number, {wanted}")
    if array.shape != shape:
        raise ValueError(f"{key} has shape {array.shape}, {wanted}")
    copy = np.array(array, dtype=np.float64, order="C")
    copy.flags.writeable = False
    return copy


def _contains_bool(values: Sequence[Any]) -> bool:
    return any(_contains_bool(v) if isinstance(v, (list, tuple)) else isinstance(v, bool) for v in values)


def mapping_of(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{key} is {type(value).__name__}, must be an object with keys")
    return value


def _cut(name: Any) -> str:
    text = str(name)
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "..."


def list_of(key: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{key} is {type(value).__name__}, must be a list")
    return value


def check_keys(key: str, values: Mapping[str, Any], record: type) -> None:
    fields = {f.name: f for f in dataclasses.fields(record)}
    for name in values:
        if name not in fields:
            raise ValueError(f'{key} has the unknown key "{_cut(name)}"; the keys are {", ".join(fields)}')
    for name, part in fields.items():
        has_default = part.default is not dataclasses.MISSING or part.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise ValueError(f'{key} has no key "{name}"')


def record_of(key: str, value: Any, record: type) -> Any:
    values = mapping_of(key, value)
    check_keys(key, values, record)
    return record(**values)


def records_of(key: str, values: Sequence[Any], record: type) -> tuple[Any, ...]:
    return tuple(record_of(f"{key}[{i}]", value, record) for i, value in enumerate(values))


def index_of(key: str, value: Any, names: Sequence[str]) -> int:
    if isinstance(value, str):
        if names.count(value) != 1:
            count = names.count(value)
            raise ValueError(f'{key} is "{_cut(value)}", the name of {count} out of: {listed(names)}')
        return names.index(value)
    check_integer(key, value)
    return int(value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(k for k in keys if keys.count(k) > 1)
        raise ValueError(f'the key "{_cut(key)}" appears twice')
    return result
