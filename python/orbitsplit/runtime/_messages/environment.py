"""Environment variables of a worker that its parent sets."""

from __future__ import annotations

# The secret that authenticates messages between stages. It is never put into the store, which anybody can read who can
# connect to it.
SECRET_VARIABLE = "ORBITSPLIT_SECRET"
# The network interface that Gloo listens on.
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
