"""The command line: each command parses, calls one public function and prints. Whatever it does, the API can do.

options      the app, its global options, and options that commands share
inputs       files that are read, before anything that takes seconds to import
outputs      files that are written
first_steps  init, demo
solving      solve
planning     profile, convert, calibrate, verify, plan
fronts       pareto
documents    problem, explain, export, schema, report
running      simulate, run
serving      serve
pipelines    the pipelines that run and serve start
live         top
hosts        credentials, node, nodes
leo          leo, bench paper
flights      fly
views        results as tables
progress     bars and lines while something takes seconds
logs         the log on standard error
"""

from __future__ import annotations

import gc
import sys

import orbitsplit as osp

# Imported for their commands, which --help lists in this order.
from . import first_steps  # noqa: F401

# isort: split
from . import solving  # noqa: F401

# isort: split
from . import planning  # noqa: F401

# isort: split
from . import fronts  # noqa: F401

# isort: split
from . import documents  # noqa: F401

# isort: split
from . import running  # noqa: F401

# isort: split
from . import serving  # noqa: F401

# isort: split
from . import live  # noqa: F401

# isort: split
from . import hosts  # noqa: F401

# isort: split
from . import leo  # noqa: F401

# isort: split
from . import flights  # noqa: F401

# isort: split
from .logs import log
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
    finally:
        gc.freeze()  # the exit collects garbage too: a second for a large tokenizer


def _fail(error: Exception, code: int) -> None:
    log.debug("the command failed", exc_info=error)
    message = str(error)
    if isinstance(error, OSError) and error.strerror is not None:
        message = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
