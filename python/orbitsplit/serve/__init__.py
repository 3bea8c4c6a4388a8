"""Serve a running pipeline to ordinary OpenAI clients: `/v1/completions` and `/v1/chat/completions`, streaming or not.

_engine      what the server needs of a pipeline
_server      a socket, signals, an end in order                    -> _app
_app         routes, keys, bodies                                  -> _requests, _answer
_answer      one request: its generations, sent as they come       -> _admission, _generation, _reply
_generation  one choice: tokens of the engine's thread become text -> _detokeniser, _stop_strings
"""

from __future__ import annotations

try:
    from ._app import create_app
    from ._engine import Engine, Submitted
    from ._server import run, serve_model
except ModuleNotFoundError as error:
    raise ImportError(
        f'orbitsplit.serve needs {error.name}, which is not installed: pip install "orbitsplit[serve]"'
    ) from error

__all__ = ["Engine", "Submitted", "create_app", "run", "serve_model"]
