"""A headless Chromium, which opens a page and tells what it sees. Needs Debian's package chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np

PROGRAM = "chromium"
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network: what a page asks for is an error in its console
    "--enable-logging=stderr",
    "--virtual-time-budget=30000",
)
_TIMEOUT_S = 180
# What the page tells once its figures are drawn: their places, its height, and what the test's own script returns.
_REPORTER = """
<script>
(async () => {
  const until = async is_so => { for (let k = 0; k < 400 && !is_so(); k++) await new Promise(r => setTimeout(r, 50)) }
  await until(() => window.Bokeh?.documents.length > 0 && Bokeh.documents.every(d => d.is_idle))
  const models = type => Array.from(Bokeh.documents[0]._all_models.values()).filter(model => model.type == type)
  const result = await (async () => { SCRIPT })()
  await new Promise(r => setTimeout(r, 500))
  const places = Array.from(document.querySelectorAll('main [data-root-id]')).map(element => {
    const r = (element.firstElementChild ?? element).getBoundingClientRect() // of the figure: its frame has no box
    return [r.left, r.top + scrollY, r.width, r.height].map(Math.round)
  })
  const seen = document.createElement('pre')
  seen.id = 'seen'
  seen.hidden = true
  const text = document.body.innerText
  seen.textContent = JSON.stringify({places, height: document.documentElement.scrollHeight, text, result})
  document.body.append(seen)
})()
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What a browser shows: the text, the console's warnings and errors, and the picture [height, width, 3]."""

    text: str
    complaints: list[str]
    places: list[tuple[int, int, int, int]]
    picture: Any
    result: Any


def is_there() -> bool:
    """Return whether Chromium is installed."""
    return shutil.which(PROGRAM) is not None


def see(path: Path, script: str = "return null") -> Seen:
    """Open a page, run a script of the test in it, and return what is there then.

    The script may use `models(type)`, the models of a type of bokeh, and `until(condition)`.
    """
    page = path.with_suffix(".seen.html")
    reporter = _REPORTER.replace("SCRIPT", script)
    text, _, end = path.read_text(encoding="utf-8").rpartition("</body>")  # a script may have another one
    page.write_text(f"{text}{reporter}</body>{end}", encoding="utf-8")
    run = _chromium("--window-size=1280,1000", "--dump-dom", page.as_uri())
    found = re.search(r'<pre id="seen" hidden="">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found is not None, run.stderr[-2000:]
    seen = json.loads(html.unescape(found[1]))
    picture = page.with_suffix(".png")
    _chromium(f"--window-size=1280,{seen['height'] + 200}", f"--screenshot={picture}", page.as_uri())
    pixels = (255 * matplotlib.image.imread(picture)[..., :3]).astype(np.uint8)
    places = [tuple(place) for place in seen["places"]]
    return Seen(seen["text"], _complaints(run.stderr), places, pixels, seen["result"])


def _chromium(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which(PROGRAM)), *_OPTIONS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)


def _complaints(log: str) -> list[str]:
    """Return what the page wrote into its console, without what bokeh says of a start."""
    lines = re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", log)
    return [line for line in lines if "setting log level to" not in line and "document idle at" not in line]
