"""Channels between hosts: TLS 1.3, in which both ends prove that they have the same credentials.

Credentials are a PEM file with a private key and its self-signed certificate, the same file on every host. An end
accepts that one certificate and no other, and TLS makes each end prove that it has the key: a host without the file is
refused, and what was recorded on the network opens no channel. Messages are JSON objects; nothing is pickled.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orbitsplit._errors import OrbitsplitError, TransportError

LOG = logging.getLogger("orbitsplit.runtime")

_CHUNK_BYTES = 1 << 16
_MESSAGE_BYTES = 1 << 20
_LENGTH_BYTES = 4
# The time for an end to prove who it is; a satellite link has round trips of up to a second.
HANDSHAKE_S = 10.0
_VALID_DAYS = 3650
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL.
_DATE_PROBLEMS = (9, 10)
# After a failed accept: most likely this process may open no more files for now.
_ACCEPT_AGAIN_S = 0.2


class RefusedError(TransportError):
    """The other end has other credentials, or does not accept this end."""


class Credentials:
    """The credentials in a file. Raises OSError or ValueError, naming the file, if there are none in it."""

    def __init__(self, path: str | Path) -> None:
        data = Path(path).read_bytes()
        if b"PRIVATE KEY" not in data or b"CERTIFICATE" not in data:
            raise ValueError(f"{path} has no private key and certificate: `orbitsplit credentials FILE` makes them")
        try:
            self.server = _context(ssl.PROTOCOL_TLS_SERVER, path)
            self.client = _context(ssl.PROTOCOL_TLS_CLIENT, path)
        except ssl.SSLError as error:
            raise ValueError(f"{path} has a private key and a certificate that cannot be used: {error}") from None


def create_credentials(path: str | Path) -> None:
    """Write new credentials to a file that only its owner can read. Raises FileExistsError if it is there already.

    Raises OrbitsplitError if the program `openssl` is missing or fails.
    """
    if shutil.which("openssl") is None:
        raise OrbitsplitError("the program openssl, which makes credentials, is not installed")
    key = _openssl("genpkey", "-algorithm", "ed25519")
    options = ("-days", str(_VALID_DAYS), "-subj", "/CN=orbitsplit")
    certificate = _openssl("req", "-x509", "-new", "-key", "/dev/stdin", *options, given=key)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key + certificate)


def _openssl(*arguments: str, given: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=False)
    if done.returncode:
        raise OrbitsplitError(f"openssl {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _context(protocol: int, path: str | Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate is what is trusted, under any name
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(path)
    context.load_verify_locations(path)
    return context


class TlsChannel:
    """One end of a channel. One thread may receive while others send; `close` may be called from any."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext, *, is_server: bool) -> None:
        """Prove the credentials to the other end, and have it prove its own; takes the connection over.

        Raises RefusedError if they differ, or TLS fails otherwise, OSError if the other end goes away or says nothing.
        """
        self._socket = connection
        # Memory buffers, so that one thread can wait for bytes while another encrypts.
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._received = bytearray()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._shake_hands(time.monotonic() + HANDSHAKE_S)
            connection.settimeout(None)
        except ssl.SSLError as error:
            connection.close()
            raise RefusedError(_refusal(error), kind="host") from None
        except BaseException:
            connection.close()
            raise

    @classmethod
    def connect(cls, address: str, credentials: Credentials) -> TlsChannel:
        """Connect to "host:port". Raises as the constructor."""
        connection = socket.create_connection(host_and_port(address), timeout=HANDSHAKE_S)
        return cls(connection, credentials.client, is_server=False)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message. Raises OSError if the connection is broken."""
        data = json.dumps(message).encode()
        self._send_bytes(len(data).to_bytes(_LENGTH_BYTES, "little") + data)

    def receive(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Wait for the next message; return None at the end of the channel.

        Raises RefusedError if the other end does not accept this one, TimeoutError, and ValueError for what is none.
        """
        self._socket.settimeout(timeout_s)
        head = self._receive_exactly(_LENGTH_BYTES)
        if head is None:
            return None
        size = int.from_bytes(head, "little")
        if size > _MESSAGE_BYTES:
            raise ValueError(f"a message of {size:,} bytes is announced, the limit is {_MESSAGE_BYTES:,}")
        data = self._receive_exactly(size)
        self._socket.settimeout(None)
        message = None if data is None else json.loads(data)
        if not isinstance(message, dict | None):
            raise ValueError("a message is no JSON object")
        return message

    def pass_through(self, plain: socket.socket) -> None:
        """Pass on what comes from either end to the other, until one of them ends; close both."""
        outward = threading.Thread(target=self._pass_outward, args=(plain,), name="tunnel", daemon=True)
        outward.start()
        with suppress(OSError, RefusedError):
            while data := self._take(len(self._received)) or self._receive_bytes():
                plain.sendall(data)
        shut(plain)
        self.close()
        outward.join()
        plain.close()
        self._socket.close()

    def close(self) -> None:
        """End the channel: whoever waits for a message gets None."""
        shut(self._socket)

    def release(self) -> None:
        """Close the descriptor; for the thread that has received, once it does not receive any more."""
        self.close()
        self._socket.close()

    def _pass_outward(self, plain: socket.socket) -> None:
        with suppress(OSError):
            while data := plain.recv(_CHUNK_BYTES):
                self._send_bytes(data)
        shut(plain)
        self.close()

    def _shake_hands(self, deadline_s: float) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._socket.settimeout(max(0.001, deadline_s - time.monotonic()))
                data = self._socket.recv(_CHUNK_BYTES)
                if not data:
                    raise ConnectionResetError("the other end went away") from None
                self._incoming.write(data)
            except ssl.SSLError:
                with suppress(OSError):
                    self._socket.sendall(self._outgoing.read())  # tells the other end why
                raise
            else:
                self._socket.sendall(self._outgoing.read())
                return

    def _send_bytes(self, data: bytes) -> None:
        with self._sending:  # what is encrypted first is sent first
            with self._lock:
                self._tls.write(data)
                encrypted = self._outgoing.read()
            self._socket.sendall(encrypted)

    def _receive_exactly(self, size: int) -> bytes | None:
        while len(self._received) < size:
            data = self._receive_bytes()
            if not data:
                return None
            self._received += data
        return self._take(size)

    def _take(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive_bytes(self) -> bytes:
        """Return what has arrived, at least one byte; nothing at the end of the channel."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(_CHUNK_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return b""
                except ssl.SSLError as error:
                    # In TLS 1.3 a client learns by its first read that the server does not accept it.
                    raise RefusedError(f"the other end refused: {error.reason or error}", kind="host") from None
            try:
                data = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError:
                raise
            except OSError:
                data = b""
            if not data:
                return b""
            with self._lock:
                self._incoming.write(data)


def _refusal(error: ssl.SSLError) -> str:
    """Return why a handshake has failed: other credentials are one reason of several."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _DATE_PROBLEMS:
            return f"the credentials are not valid by this machine's clock: {error.verify_message}"
        return f"the other end has other credentials: {error.verify_message}"
    reason = error.reason or str(error)
    if reason.endswith("ALERT_UNKNOWN_CA"):  # it has checked first, and says so
        return f"the other end has other credentials: {reason}"
    return f"TLS with the other end fails: {reason}"


def host_and_port(address: str) -> tuple[str, int]:
    """Return the parts of "host:port". Raises ValueError for another form."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"address is {address!r}, expected HOST:PORT, as 10.0.0.1:29400")
    return host, int(port)


def accepted(listener: socket.socket, is_closed: Callable[[], bool]) -> Iterator[tuple[socket.socket, str]]:
    """Yield the connections to a listener, with the address of the other end, until it is closed.

    Lack of files, or a connection that is gone before it is accepted, ends nothing.
    """
    failure: int | None = None
    while not is_closed():
        try:
            connection, peer = listener.accept()
        except OSError as error:
            if is_closed():
                return
            if error.errno != failure:  # once, and not five times a second
                LOG.warning("a connection cannot be accepted, it is tried again: %s", error)
            failure = error.errno
            time.sleep(_ACCEPT_AGAIN_S)
            continue
        failure = None
        yield connection, peer[0]


def shut(connection: socket.socket) -> None:
    """End a connection for both of its ends, from any thread."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
