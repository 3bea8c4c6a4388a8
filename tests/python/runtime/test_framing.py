"""Messages as bytes: what is authenticated is verified, and what was changed on the way is detected."""

from __future__ import annotations

import pytest

from orbitsplit import TransportError
from orbitsplit.runtime._messages.framing import HEADER_BYTES, Header, MessageAuthenticator, channel_key

KEY = channel_key(b"secret", "session", 0, 1)
LIMIT = 1 << 20
DESCRIPTION, PAYLOAD = b'{"id": 7}', bytes(range(200))
HEADER = Header(
    kind=1,
    group=2**40,
    step=70_000,
    rows=4,
    tokens=300,
    description_bytes=len(DESCRIPTION),
    payload_bytes=len(PAYLOAD),
    has_own_check=False,
    deliver_s=1234.5678,
)
BODY = len(DESCRIPTION) + len(PAYLOAD)


def authenticated(key: bytes | None, header: Header = HEADER, *, before: int = 0) -> bytearray:
    """Return the part that a channel sends after some others."""
    authenticator = MessageAuthenticator("link", key)
    for _ in range(before + 1):
        part = bytearray(HEADER_BYTES) + DESCRIPTION + PAYLOAD
        authenticator.authenticate(header, memoryview(part), BODY)
    return part


def verified(part: bytes | bytearray, key: bytes | None) -> tuple[Header, bool]:
    return MessageAuthenticator("link", key).verify(memoryview(bytearray(part)), LIMIT)


@pytest.mark.parametrize("key", [None, KEY], ids=["crc", "hmac"])
def test_a_header_has_96_bytes_and_a_round_trip(key: bytes | None) -> None:
    assert HEADER_BYTES == 96
    assert verified(authenticated(key), key) == (HEADER, True)
    assert verified(authenticated(key) + bytearray(50), key) == (HEADER, True)  # the buffer may be longer


@pytest.mark.parametrize("key", [None, KEY], ids=["crc", "hmac"])
def test_a_changed_byte_of_header_or_description_is_refused_and_one_of_the_payload_detected(key: bytes | None) -> None:
    good = authenticated(key)
    for place in range(len(good)):
        part = bytearray(good)
        part[place] ^= 0x10
        if place < HEADER_BYTES + len(DESCRIPTION):
            with pytest.raises(TransportError, match="link: "):
                verified(part, key)
        else:
            assert verified(part, key) == (HEADER, False)


def test_a_payload_with_a_check_of_its_own_is_checked_twice_only_with_a_secret() -> None:
    header = HEADER._replace(has_own_check=True)
    for key, is_whole in ((None, True), (KEY, False)):
        part = authenticated(key, header)
        part[-1] ^= 1
        assert verified(part, key) == (header, is_whole)


def test_other_keys_verify_nothing() -> None:
    others = [
        None,
        channel_key(b"other", "session", 0, 1),
        channel_key(b"secret", "another", 0, 1),
        channel_key(b"secret", "session", 1, 0),
        channel_key(b"secret", "session", 0, 2),
    ]
    for key in others:
        with pytest.raises(TransportError, match="the header of part 0 is corrupted"):
            verified(authenticated(KEY), key)
    with pytest.raises(TransportError, match="corrupted or not authentic"):
        verified(authenticated(None), KEY)


@pytest.mark.parametrize("key", [None, KEY], ids=["crc", "hmac"])
def test_parts_come_once_and_in_order(key: bytes | None) -> None:
    authenticator, limit = MessageAuthenticator("link", key), LIMIT
    first, second, third = (memoryview(authenticated(key, before=k)) for k in range(3))
    authenticator.verify(first, limit)
    for wrong, number in ((first, 0), (third, 2)):
        with pytest.raises(TransportError, match=f"part {number} at byte 0 of {BODY} arrived, expected number 1"):
            authenticator.verify(wrong, limit)
    authenticator.verify(second, limit)
    authenticator.verify(third, limit)


def test_what_announces_too_much_is_refused_before_anything_is_allocated() -> None:
    huge = authenticated(None, HEADER._replace(payload_bytes=2**50))
    with pytest.raises(
        TransportError, match=f"a message announces {2**50 + len(DESCRIPTION)} bytes, the limit is {LIMIT}"
    ):
        verified(huge, None)


def test_what_is_no_header_is_refused() -> None:
    with pytest.raises(TransportError, match="a message starts with"):
        verified(bytes(HEADER_BYTES), None)


def test_a_part_behind_the_first_continues_the_body() -> None:
    authenticator = MessageAuthenticator("link", KEY)
    rest = PAYLOAD[100:]
    part = bytearray(HEADER_BYTES) + rest
    header = HEADER._replace(offset=len(DESCRIPTION) + 100)
    authenticator.authenticate(header, memoryview(part), len(rest))
    assert verified(part, KEY) == (header, True)
    part[-1] ^= 1
    assert verified(part, KEY) == (header, False)
