"""What the tests of label.py share: candidates, the page's server in a thread, requests to it."""

import http.client
import json
import subprocess
import sys
import threading
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
        return reply.status, json.loads(data)
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
    url, _, token = process.stdout.readline().split()[-1].partition("/?token=")
    return process, url.rpartition(":")[2], token


def post(port: str, token: str, path: str, content: dict | None = None) -> dict:
    link = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    method = "GET" if content is None else "POST"
    body = None if content is None else json.dumps(content)
    link.request(method, path, body, {"X-Token": token})
    return json.loads(link.getresponse().read())
