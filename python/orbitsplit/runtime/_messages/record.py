"""Plain records that travel between processes as JSON.

Nothing is pickled: whoever can connect to the control store can send wrong data, but no code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

R = TypeVar("R", bound="Record")


class Record:
    """A dataclass that travels as a JSON object; its fields are JSON values, tuples, or dataclasses of such."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_json(self) -> bytes:
        """Return the record as JSON; `from_json` takes it back."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls: type[R], data: bytes) -> R:
        """Make a record from what `to_json` returned, lists as tuples."""
        values, kinds = json.loads(data), get_type_hints(cls)
        return cls(**{field.name: _restored(kinds[field.name], values[field.name]) for field in fields(cls)})


def _restored(kind: Any, value: Any) -> Any:
    if isinstance(value, dict):
        record = next((k for k in (kind, *get_args(kind)) if isinstance(k, type) and is_dataclass(k)), None)
        return value if record is None else record(**value)
    return tuple(_restored(None, item) for item in value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Traffic:
    """The traffic of a link: frames, their bytes in prefill and decode, and `original_bytes` before compression.

    `message_bytes` are those of the frames with headers and descriptions of groups, as they are handed to Gloo.
    """

    frames: int = 0
    prefill_bytes: int = 0
    decode_bytes: int = 0
    original_bytes: int = 0
    message_bytes: int = 0

    @property
    def frame_bytes(self) -> int:
        """Return the bytes of all frames."""
        return self.prefill_bytes + self.decode_bytes

    @property
    def ratio(self) -> float:
        """Return the compression ratio: original over compressed bytes."""
        return self.original_bytes / self.frame_bytes

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.frames + other.frames,
            self.prefill_bytes + other.prefill_bytes,
            self.decode_bytes + other.decode_bytes,
            self.original_bytes + other.original_bytes,
            self.message_bytes + other.message_bytes,
        )
