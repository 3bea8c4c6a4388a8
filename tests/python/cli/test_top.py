"""`orbitsplit top`: rates between two looks at the metrics of a server, as tables, lines and JSON."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from orbitsplit.__main__ import main
from orbitsplit._cli import live
from tests.support.fake_engine import FakeEngine, serving

BEFORE = {
    ("orbitsplit_generation_tokens_total",): 100.0,
    ("orbitsplit_prompt_tokens_total",): 10.0,
    ("orbitsplit_live_choices", "waiting"): 3.0,
    ("orbitsplit_live_choices", "running"): 2.0,
    ("orbitsplit_recoveries_total",): 0.0,
    ("orbitsplit_start_time_seconds",): 1000.0,
    ("orbitsplit_node_memory_bytes", "a[1]"): 5e8,
    ("orbitsplit_node_memory_bytes", "b"): 4e8,
    ("orbitsplit_node_memory_limit_bytes", "b"): 8e8,
    ("orbitsplit_node_busy_seconds_total", "a[1]"): 7.0,
    ("orbitsplit_node_busy_seconds_total", "b"): 100.0,
    ("orbitsplit_link_bytes_total", "b", "a[1]"): 1000.0,
    ("orbitsplit_link_bytes_total", "a[1]", "b"): 10.0,
    ("orbitsplit_link_rate_bytes_per_second", "b", "a[1]"): 1000.0,
}
NOW = BEFORE | {
    ("orbitsplit_generation_tokens_total",): 150.0,
    ("orbitsplit_prompt_tokens_total",): 14.0,
    ("orbitsplit_live_choices", "waiting"): 1.0,
    ("orbitsplit_node_busy_seconds_total", "a[1]"): 8.5,
    ("orbitsplit_node_busy_seconds_total", "b"): 0.5,  # after a recovery
    ("orbitsplit_link_bytes_total", "b", "a[1]"): 1400.0,
}


def test_a_load_has_rates_between_two_looks() -> None:
    load = live.load_between(BEFORE, NOW, 2.0, 1060.0)
    assert (load.tokens_per_s, load.prompt_tokens_per_s) == (25.0, 2.0)
    assert (load.waiting, load.running, load.recoveries, load.up_s) == (1, 2, 0, 60.0)
    assert [(node.name, node.busy, node.memory_bytes) for node in load.nodes] == [
        ("a[1]", 0.75, None),
        ("b", 0.25, 8e8),
    ]
    assert [(link.source, link.destination, link.bytes_per_s, link.use) for link in load.links] == [
        ("a[1]", "b", 200.0, 0.2),
        ("b", "a[1]", 0.0, None),
    ]


def test_a_line_names_the_busiest_and_a_screen_everything() -> None:
    load = live.load_between(BEFORE, NOW, 2.0, 1060.0)
    assert live.line(load) == (
        "25.0 tokens/s, prompts 2.0 tokens/s; choices: 2 running, 1 waiting; up 60 s; busiest node a[1] 75%; "
        "busiest link a[1] -> b 20%"
    )
    text = io.StringIO()
    Console(file=text, width=100).print(live.screen(load))
    for shown in ("a[1]", "75%", "###############", "800 MB", "a[1] -> b", "20%", "200 B/s"):
        assert shown in text.getvalue()


def test_a_server_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    engine: Any = FakeEngine()
    engine.status = lambda: SimpleNamespace(
        nodes=[SimpleNamespace(name="sat-1", resident_bytes=7, memory_bytes=None, busy_s=1.0)],
        links=[SimpleNamespace(source="sat-1", destination="sat-2", sent_bytes=9, bytes_per_s=125.0)],
    )
    with serving(engine, api_key="open sesame") as served:
        words = ["orbitsplit", "top", served.url, "--interval", "0.1", "--count", "1"]
        for more, code in (([], 2), (["--api-key", "open sesame", "--json"], 0)):
            monkeypatch.setattr(sys, "argv", [*words, *more])
            with pytest.raises(SystemExit) as ended:
                main()
            assert (ended.value.code or 0) == code
    printed = capsys.readouterr()
    assert f"error: {served.url} shows no metrics of an orbitsplit server: HTTP Error 401" in printed.err
    load = json.loads(printed.out)
    assert load["nodes"] == [{"name": "sat-1", "busy": 0.0, "resident_bytes": 7.0, "memory_bytes": None}]
    assert load["links"] == [{"source": "sat-1", "destination": "sat-2", "bytes_per_s": 0.0, "use": 0.0}]


class _Answers(BaseHTTPRequestHandler):
    """Answers with what is next of `texts`; without one it closes the connection, in the middle of an answer."""

    texts: ClassVar[Iterator[str | None]]

    def do_GET(self) -> None:
        text = next(self.texts)
        self.send_response(200)
        self.send_header("Content-Length", "1000" if text is None else str(len(text)))
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, *_given: object) -> None:
        pass


@contextmanager
def answering(*texts: str | None) -> Iterator[str]:
    _Answers.texts = iter(texts)
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_that_answered_may_be_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An answer that broke off ended the command with a traceback.
    metrics = "orbitsplit_start_time_seconds 1000.0\norbitsplit_generation_tokens_total {}.0\n"
    with answering(metrics.format(10), None, metrics.format(40)) as url:
        monkeypatch.setattr(sys, "argv", ["orbitsplit", "top", url, "--interval", "0.1", "--count", "2"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"no answer, trying again: {url} shows no metrics of an orbitsplit server: IncompleteRead")
    assert float(second.split()[0]) > 0


def test_another_server_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # It was shown with zeros everywhere.
    with answering("process_cpu_seconds_total 1.0\n") as url:
        monkeypatch.setattr(sys, "argv", ["orbitsplit", "top", url])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    assert (
        "shows no metrics of an orbitsplit server: orbitsplit_start_time_seconds is missing" in capsys.readouterr().err
    )


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1:1"])
def test_what_is_no_server_is_named(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["orbitsplit", "top", url])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {url} ")
