"""Blocks in which the interpreter collects no garbage."""

from __future__ import annotations

import gc
from contextlib import suppress

from orbitsplit._io.garbage import no_collections


def test_nothing_is_collected_until_the_outer_block_ends() -> None:
    assert gc.isenabled()
    with no_collections():
        with no_collections():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_the_block() -> None:
    with suppress(RuntimeError), no_collections():
        raise RuntimeError("a fault")
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
