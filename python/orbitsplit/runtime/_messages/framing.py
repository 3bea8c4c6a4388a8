"""Messages as bytes: a header, a description, a payload, and the checks of all three. It knows no sockets.

    header        96 bytes, little-endian; the last 16 check the rest of the header and the description
    description   of a group that starts (JSON), otherwise empty
    payload       a frame, or tokens

A message longer than the transport's limit is split into parts, each with its own header. Without a secret the checks
are CRC-32 and detect corruption. With one they are HMAC-SHA-256 (RFC 2104, truncated to 16 bytes as its section 5
allows) and also detect forgery: the key belongs to one session and one direction of one link, and parts are numbered,
so that nothing can be replayed.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from typing import NamedTuple

from orbitsplit._errors import TransportError

HEADER_BYTES = 96
_MAGIC = b"OSPM"
_VERSION = 3
_CHECK_BYTES = 16
# magic, version, kind, flags, number of the part, group, step, rows, tokens, bytes of description and of payload,
# where the part begins, when it is delivered, the check of the payload's part, and that of the rest
_HEADER = struct.Struct("<4sHBBQQiIIIQQd16s16s")
assert _HEADER.size == HEADER_BYTES
_HAS_OWN_CHECK = 1
_CHECKED = HEADER_BYTES - _CHECK_BYTES
_NO_CHECK = bytes(_CHECK_BYTES)


class Header(NamedTuple):
    """The header of every part: the group and step of the message, its size, and its delivery on an emulated link.

    `rows` and `tokens` are the b and S of an activation [b, S, H]. `number` counts the parts of a channel; `offset` is
    the part's first byte in the concatenation of description and payload. A payload that `has_own_check` (a frame) is
    not checked again without a secret. `deliver_s` is on the monotonic clock, 0 where the link is not emulated.
    """

    kind: int
    group: int = 0
    step: int = 0
    rows: int = 0
    tokens: int = 0
    description_bytes: int = 0
    payload_bytes: int = 0
    has_own_check: bool = False
    deliver_s: float = 0.0
    number: int = 0
    offset: int = 0

    @property
    def body_bytes(self) -> int:
        """The bytes of description and payload."""
        return self.description_bytes + self.payload_bytes


class MessageAuthenticator:
    """Writes and verifies the headers of one channel, whose parts it counts."""

    def __init__(self, link: str, key: bytes | None = None) -> None:
        self._link = link
        self._keyed = None if key is None else hmac.new(key, digestmod="sha256")
        self._check = _plain_check if key is None else self._keyed_check
        self._number = 0

    # Every hop of a decode step runs through `authenticate` and `verify`, with cold caches: what looks unrolled here,
    # such as the unpacked header, is a tenth of a hop.

    def authenticate(self, header: Header, part: memoryview, body: int) -> None:
        """Write the header into the first 96 bytes of a part, whose `body` bytes follow already."""
        kind, group, step, rows, tokens, description_bytes, payload_bytes, has_own_check, deliver_s, _, offset = header
        described = _described(description_bytes, offset, body) if description_bytes else 0
        checked = _NO_CHECK
        if not has_own_check or self._keyed is not None:
            checked = self._check(part[HEADER_BYTES + described : HEADER_BYTES + body])
        _HEADER.pack_into(
            part,
            0,
            _MAGIC,
            _VERSION,
            kind,
            _HAS_OWN_CHECK if has_own_check else 0,
            self._number,
            group,
            step,
            rows,
            tokens,
            description_bytes,
            payload_bytes,
            offset,
            deliver_s,
            checked,
            _NO_CHECK,
        )
        self._number += 1
        part[_CHECKED:HEADER_BYTES] = self._check(
            part[:_CHECKED], part[HEADER_BYTES : HEADER_BYTES + described] if described else None
        )

    def verify(self, part: memoryview, most_bytes: int) -> tuple[Header, bool]:
        """Return the header of a part, and whether its payload is intact (True for one that has its own check).

        `part` may be longer than what was sent. Raises TransportError if the header is not that of this channel's next
        part, is corrupted or forged, or announces a body of more than `most_bytes`.
        """
        (
            magic, version, kind, flags, number, group, step, rows, tokens,
            description_bytes, payload_bytes, offset, deliver_s, checked, check,
        ) = _HEADER.unpack_from(part)  # fmt: skip
        if magic != _MAGIC or version != _VERSION:
            raise TransportError(
                f"{self._link}: a message starts with {magic!r} version {version}, expected {_MAGIC!r} {_VERSION}"
            )
        whole = description_bytes + payload_bytes
        if whole > most_bytes:
            raise TransportError(f"{self._link}: a message announces {whole} bytes, the limit is {most_bytes}")
        body = min(whole - offset, len(part) - HEADER_BYTES)
        if number != self._number or body < 0:
            raise TransportError(
                f"{self._link}: part {number} at byte {offset} of {whole} arrived, expected number {self._number}"
            )
        described = _described(description_bytes, offset, body) if description_bytes else 0
        expected = self._check(part[:_CHECKED], part[HEADER_BYTES : HEADER_BYTES + described] if described else None)
        if not hmac.compare_digest(expected, check):
            what = "is corrupted" if self._keyed is None else "is corrupted or not authentic"
            raise TransportError(f"{self._link}: the header of part {number} {what}")
        self._number += 1
        has_own_check = flags == _HAS_OWN_CHECK
        header = Header(
            kind,
            group,
            step,
            rows,
            tokens,
            description_bytes,
            payload_bytes,
            has_own_check,
            deliver_s,
            number,
            offset,
        )
        if has_own_check and self._keyed is None:
            return header, True
        payload = part[HEADER_BYTES + described : HEADER_BYTES + body]
        return header, hmac.compare_digest(self._check(payload), checked)

    def _keyed_check(self, first: memoryview, second: memoryview | None = None) -> bytes:
        # A copy has the key's block hashed already: half the time of hmac.digest.
        assert self._keyed is not None
        code = self._keyed.copy()
        code.update(first)
        if second is not None:
            code.update(second)
        return code.digest()[:_CHECK_BYTES]


def _plain_check(first: memoryview, second: memoryview | None = None) -> bytes:
    check = zlib.crc32(first)
    return (check if second is None else zlib.crc32(second, check)).to_bytes(_CHECK_BYTES, "little")


def _described(description_bytes: int, offset: int, body: int) -> int:
    """Return how many of a part's `body` bytes belong to the description."""
    return max(0, min(description_bytes - offset, body))


def channel_key(secret: bytes, session: str, source: int, destination: int) -> bytes:
    """Return the key of one direction between two stages in one session."""
    return hmac.digest(secret, f"orbitsplit message {session} {source}>{destination}".encode(), "sha256")
