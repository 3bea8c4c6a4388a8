"""Ordinary OpenAI clients of several servers under one name, which has two addresses, as DNS gives them.

    FLEET_ADDRESSES=A,B python -m tests.support.fleet_clients URL REQUESTS CLIENTS RETRIES < prompts.json

Prints a line of JSON for each request: its number, the prompt's, the text or the error, and the seconds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai

NAME = "fleet"
TIMEOUT_S = 120.0


def resolve_name(addresses: list[str]) -> None:
    """Let this process find the addresses under `NAME`, as if DNS had them."""
    look_up = socket.getaddrinfo

    def found(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in (NAME, NAME.encode()):
            return look_up(host, *arguments, **options)
        return [one for address in addresses for one in look_up(address, *arguments, **options)]

    socket.getaddrinfo = found  # type: ignore[assignment]


def main() -> None:
    """Send requests, and print what became of each."""
    url, requests, clients, retries = sys.argv[1], *map(int, sys.argv[2:5])
    prompts = json.load(sys.stdin)
    resolve_name(os.environ["FLEET_ADDRESSES"].split(","))
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=retries, timeout=TIMEOUT_S)

    def ask(number: int) -> None:
        began_s, which = time.monotonic(), number % len(prompts)
        answer: dict[str, Any] = {"number": number, "prompt": which}
        try:
            done = client.completions.create(model="model", temperature=0, **prompts[which])
            answer["text"] = done.choices[0].text
        except openai.APIError as error:
            answer |= {"error": f"{type(error).__name__}: {error}", "status": getattr(error, "status_code", None)}
        print(json.dumps({**answer, "seconds": time.monotonic() - began_s}), flush=True)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(requests)))


if __name__ == "__main__":
    main()
