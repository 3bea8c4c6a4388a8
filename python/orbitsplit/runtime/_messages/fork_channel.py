"""Messages between the parent and its fork server: JSON objects, each one packet of a Unix socket."""

from __future__ import annotations

# The largest packet that is read.
MAX_MESSAGE_BYTES = 1 << 18
