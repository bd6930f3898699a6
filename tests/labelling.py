"""What the tests of label.py share: candidates, the page's server in a thread, requests to it."""

import http.client
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from minirlhf.data import Prompt
from minirlhf.feedback.page import Sitting
from minirlhf.feedback.rankings import Candidate
from minirlhf.feedback.server import Address, Server
from minirlhf.files import write_jsonl

ROOT = Path(__file__).parents[1]


def talk(question: str) -> list[dict]:
    return [
        {"role": "user", "content": "Hello & <b>you</b>"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": question},
    ]


def candidates(n: int = 20, K: int = 4) -> list[Candidate]:
    rows = []
    for i in range(n):
        responses = [f"answer {i}.{k}" for k in range(K)]
        rows.append(Candidate(f"c{i}", Prompt.of(talk(f"Question {i}?")), responses))
    return rows


def write_candidates(path: Path, rows: list[Candidate]) -> None:
    write_jsonl(
        path, [{"id": c.id, "prompt": c.prompt.source, "responses": c.responses} for c in rows]
    )


@contextmanager
def serving(path: Path, rows: list[Candidate], address=None, token="", **more):
    """The ranking page. more: arguments of Sitting."""
    with serving_app(Sitting(rows, path / "r.jsonl", "me", **more), address, token) as both:
        yield both


@contextmanager
def serving_app(app, address: Address | None = None, token: str = ""):
    """Gives (server, ask): ask(method, path, content, **headers) -> (status, answer)."""
    with Server(app, address or Address(), token) as server:
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        yield server, lambda *words, **headers: call(server, *words, **headers)
        server.shutdown()


def call(server: Server, method: str, path: str, content=None, **headers) -> tuple[int, dict]:
    """A header that is None is not sent."""
    port = server.server_address[1]
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = content
    if not isinstance(content, bytes):
        body = b"" if content is None else json.dumps(content).encode()
    sent = {"Content-Length": str(len(body)), "Host": f"127.0.0.1:{port}", "X-Token": server.token}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    link.putrequest(method, path, skip_host=True)
    for name, value in sent.items():
        if value is not None:
            link.putheader(name, value)
    link.endheaders(body)
    reply = link.getresponse()
    data = reply.read()
    if data.startswith(b"{"):
        return reply.status, json.loads(data.splitlines()[-1])
    return reply.status, {"page": data.decode(), "headers": dict(reply.headers)}


def start_label(path: Path, *more: str) -> tuple[subprocess.Popen, str, str]:
    """label.py as a process; its page's port and token."""
    words = ["--candidates", str(path / "c.jsonl"), "--out", str(path / "r.jsonl"), "--no-open"]
    process = subprocess.Popen(
        [sys.executable, "label.py", *words, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if "/?token=" in line:
            break
    url, _, token = line.split()[-1].partition("/?token=")
    return process, url.rpartition(":")[2], token


def post(port: str, token: str, path: str, content: dict | None = None) -> dict:
    link = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    method = "GET" if content is None else "POST"
    body = None if content is None else json.dumps(content)
    link.request(method, path, body, {"X-Token": token})
    return json.loads(link.getresponse().read().splitlines()[-1])


# the smallest contrast of any text, with its element; backgrounds are opaque where they are set
CONTRAST = """(() => {
  const channels = color => color.match(/[\\d.]+/g)
    .map(c => color.startsWith("color(srgb") ? 255 * c : Number(c))
  const light = color => channels(color).slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0)
  const behind = e => {
    const color = getComputedStyle(e).backgroundColor
    return channels(color)[3] === 0 ? behind(e.parentElement) : color
  }
  let worst = [99, ""]
  for (const e of document.querySelectorAll("body *")) {
    const words = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())
    if (!words || !e.checkVisibility() || e.closest("script, .unseen")) continue
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))]
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (contrast < worst[0]) worst = [contrast, e.outerHTML.slice(0, 80)]
  }
  return worst
})()"""


def assert_contrast(browser) -> None:
    """At least 4.5 in light and dark."""
    for scheme in ("light", "dark"):
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.call("Emulation.setEmulatedMedia", features=wanted)
        time.sleep(0.3)  # colours glide
        contrast, where = browser.js(CONTRAST)
        assert contrast >= 4.5, (scheme, where)
    browser.call("Emulation.setEmulatedMedia", features=[])
