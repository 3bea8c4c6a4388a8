"""A small problem, network and conditions of its links, valid and of two nodes."""

from __future__ import annotations

from typing import Any

PROBLEM: dict[str, Any] = {
    "layers": ["a", "b", "c"],
    "nodes": [{"name": "n0", "memory_bytes": 2}, {"name": "n1", "memory_bytes": 2}],
    "layer_memory_bytes": [1, 1, 1],
    "layer_time_s": [[1, 1, 1], [2, 2, 2]],
    "cut_bytes": [4, 4],
    "bandwidth_bytes_per_s": [[0, 1], [1, 0]],
    "latency_s": [[0, 0.5], [0.5, 0]],
    "levels": [{"name": "raw", "ratio": 1}, {"name": "int8", "ratio": 4}],
    "loss": [[0, 0.1], [0, 0.1]],
    "loss_budget": 0.1,
}
NETWORK = """
[[nodes]]
name = "a"
memory = "1 GB"
compute = "10 MFLOP/s"

[[nodes]]
name = "b"
memory = "1 GB"
compute = "10 MFLOP/s"

[[links]]
between = ["a", "b"]
bandwidth = "100 Mbit/s"
"""
LINKS = """
[[links]]
source = "a"
destination = "b"
latency = "2 ms"
jitter = "1 ms"
"""
