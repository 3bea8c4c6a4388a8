"""The command line: parses, calls one public function, prints. Whatever it can do, the Python API can do.

options   the app, consoles and options that commands share
planning  solve, pareto, profile, calibrate, verify, plan
running   simulate, run, serve, demo
leo       leo, bench paper
"""

from __future__ import annotations

import sys

import orbitsplit as osp

from . import (
    leo,  # noqa: F401
    planning,  # noqa: F401
    running,  # noqa: F401
)
from .options import BAD_INPUT, FAILED, app


def run() -> None:
    """Run the command line; errors become one line on standard error and an exit code."""
    try:
        app()
    except osp.CorruptFrameError as error:
        _fail(error, BAD_INPUT)
    except osp.OrbitsplitError as error:
        _fail(error, FAILED)
    except (ValueError, TypeError, ImportError, OSError) as error:
        _fail(error, BAD_INPUT)


def _fail(message: object, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
