"""Serve a running pipeline to OpenAI clients: completions, chats, responses and embeddings, streaming or not.

_server      a socket, signals, an orderly shutdown                  -> _app
_app         routes, the API key, request ids                        -> _endpoints
_endpoints   from a request's body to its response                   -> _*_request, _response, _embeddings
_response    one request: its generations, sent as they proceed      -> _admission, _generation, _tool_calls, _*_body
_generation  one choice: tokens of the engine's thread become text   -> _detokeniser, _stop_strings, _scored_token
_grammar     answers that follow a JSON schema
_metrics     what is counted, for Prometheus
_engine      what the server needs of a pipeline
_options     what a server can be configured with

Errors go to clients as one line without the text of an exception, and to the logger `orbitsplit.serve` in full.
"""

from __future__ import annotations

try:
    from ._app import create_app
    from ._engine import Engine, Submitted
    from ._options import ServerOptions
    from ._server import run, serve_model
except ModuleNotFoundError as error:
    raise ImportError(
        f'orbitsplit.serve needs {error.name}, which is not installed: pip install "orbitsplit[serve]"'
    ) from error

__all__ = ["Engine", "ServerOptions", "Submitted", "create_app", "run", "serve_model"]
