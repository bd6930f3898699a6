"""A person ranks: the questions of one sitting, and a local page that asks them.

Every answer is on the disk before the next question goes out. An answer given twice counts once:
double clicks, second tabs, reloads and a second server on the same file neither lose a ranking nor
write it twice. The server listens on the loopback interface unless told otherwise. Each request
needs the token, a Host that is this machine, and an Origin that is this page. The page runs only
its own script and shows model output as text, never as HTML.
"""

import hmac
import ipaddress
import json
import os
import random
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlsplit

from minirlhf import UserError
from minirlhf.feedback.rankings import Candidate, append_ranking, open_rankings
from minirlhf.files import to_json

PAGE = Path(__file__).with_name("page.html")
REPEATS = 0.1  # share of prompts that come twice
LARGEST_BODY = 65536  # bytes; answers hold only numbers
LONGEST_REQUEST = 20  # seconds, body included
CONTENT_POLICY = (
    "default-src 'none'; style-src 'nonce-NONCE'; script-src 'nonce-NONCE'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Sitting:
    """The questions for one annotator, in an order fixed by (seed, name). Thread-safe.

    Prompts whose responses are all equal are left out. A tenth of the prompts come a second time,
    about a dozen questions later, in another order.
    """

    def __init__(self, candidates: list[Candidate], out: str | Path, name="person", seed: int = 0):
        self.candidates = candidates
        self.out = Path(out)
        self.name = name
        self.lock = threading.RLock()
        self.plan = self._plan(random.Random(f"{seed}/{name}"))
        self.shown: dict[int, float] = {}  # question -> when it was first shown in this sitting
        self.seconds: list[float] = []  # how long the answers of this sitting took
        self._unanswered()

    def _plan(self, rng: random.Random) -> list[tuple[Candidate, bool, list[str]]]:
        """Questions: a candidate, whether it is a repeat, the different texts in blind order."""
        different = [c for c in self.candidates if len(set(c.responses)) > 1]
        repeated = set(rng.sample(range(len(different)), round(REPEATS * len(different))))
        questions = []  # (when, question)
        for i, candidate in enumerate(different):
            texts = list(dict.fromkeys(candidate.responses))
            cards = again = rng.sample(texts, len(texts))
            questions.append((i, (candidate, False, cards)))
            if i in repeated:
                while again == cards:
                    again = rng.sample(texts, len(texts))
                questions.append((i + 8 + 8 * rng.random(), (candidate, True, again)))
        questions.sort(key=lambda question: question[0])
        return [question for _, question in questions]

    def _unanswered(self) -> list[int]:
        """The questions left. The file decides: another server may have written to it."""
        rankings = open_rankings(self.out, self.candidates)
        own = [r for r in rankings if r.get("annotator") == self.name]
        self.done = {(r["id"], r.get("repeat", False)) for r in own}
        closed = self.done | {(r["id"], True) for r in own if r.get("skipped")}
        asked = [(candidate.id, repeat) for candidate, repeat, _ in self.plan]
        return [number for number, key in enumerate(asked) if key not in closed]

    def question(self) -> dict:
        """Progress, and unless all are answered the next question with its turns and cards."""
        with self.lock:
            left = self._unanswered()
            state = {"done": len(self.done), "left": len(left), "rate": None}
            if self.seconds:
                state["rate"] = round(60 / max(0.1, median(self.seconds[-20:])), 1)
            if left:
                number = left[0]
                candidate, _, cards = self.plan[number]
                self.shown.setdefault(number, time.monotonic())
                turns = [{"role": role, "text": text} for role, text in candidate.prompt.turns]
                state |= {"question": number, "turns": turns, "cards": cards}
            return state

    def answer(self, question: int, ranks=(), harmful=(), all_bad=False, skip=False) -> bool:
        """Write the record; False if this question was answered before.

        ranks, harmful: lists of whole numbers, about the cards in the order they were shown.
        """
        with self.lock:
            if type(question) is not int or question not in self.shown:
                raise UserError("this question was not asked: reload the page")
            candidate, repeat, shown = self.plan[question]
            if skip is True:
                ranks = [1] * len(shown)
            check_answer(ranks, harmful, len(shown))
            if question not in self._unanswered():
                return False
            cards = [shown.index(text) for text in candidate.responses]
            seconds = time.monotonic() - self.shown[question]
            flags = {
                "harmful": [i for i, card in enumerate(cards) if card in harmful],
                "all_bad": all_bad is True,
                "skipped": skip is True,
                "repeat": repeat,
            }
            append_ranking(
                self.out,
                candidate,
                [ranks[card] for card in cards],
                self.name,
                seconds=round(seconds, 1),
                **{name: value for name, value in flags.items() if value},
            )
            self.seconds.append(seconds)
            return True


def check_answer(ranks: list[int], harmful: list[int], count: int) -> None:
    if not all(type(number) is int for number in (*ranks, *harmful)):
        raise UserError("ranks and harmful must be lists of whole numbers")
    if len(ranks) != count or set(ranks) != set(range(1, len(set(ranks)) + 1)):
        raise UserError(f"ranks must be {count} numbers, 1 for the best, without gaps")
    if not set(harmful) <= set(range(count)):
        raise UserError(f"harmful must hold numbers of responses, 0 to {count - 1}")


class Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a read may wait
    server_version, sys_version = "minirlhf", ""

    def reply(self, status: int, content: dict) -> None:
        self.send(status, "application/json", to_json(content).encode())

    def send(self, status: int, kind: str, body: bytes, nonce: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CONTENT_POLICY.replace("NONCE", nonce))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refusal(self, query: str) -> str:
        """Why this request is not the page's; empty if it is."""
        host = self.headers.get("Host", "")
        if not self.server.is_own_name(urlsplit(f"//{host}").hostname or ""):
            return "wrong Host"  # a foreign name that was made to point here
        if self.headers.get("Origin") not in (None, f"http://{host}"):
            return "wrong Origin"  # a foreign page that asks from inside this browser
        tokens = [*parse_qs(query).get("token", ()), self.headers.get("X-Token", "")]
        given = tokens[0].encode("utf-8", "replace")
        if not hmac.compare_digest(given, self.server.token.encode()):
            return "wrong or missing token"
        return ""

    def do_GET(self) -> None:
        self.respond(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST_BODY:
            self.reply(413, {"error": f"a body needs a Content-Length up to {LARGEST_BODY}"})
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):  # else the other side went away in the middle
            self.respond(body)

    def respond(self, body: bytes) -> None:
        try:
            url = urlsplit(self.path)
            refusal = self.refusal(url.query)
            if refusal:
                self.reply(403, {"error": f"{refusal}: open the link that label.py printed"})
            else:
                self.route(url.path, body)
        except (ConnectionError, TimeoutError):  # the other side went away
            raise
        except OSError as error:
            problem = error.strerror or error
            self.reply(507, {"error": f"not saved ({problem}): make room, then confirm again"})
        except UserError as error:
            self.reply(400, {"error": str(error)})
        except (ValueError, TypeError, RecursionError):  # no URL, no JSON, unknown fields
            self.reply(400, {"error": "this is no answer"})

    def route(self, path: str, body: bytes) -> None:
        sitting, finished = self.server.sitting, self.server.finished
        request = f"{self.command} {path}"
        if request == "GET /":
            nonce = secrets.token_urlsafe(16)
            page = PAGE.read_bytes().replace(b"NONCE", nonce.encode())
            self.send(200, "text/html", page, nonce)
        elif request == "GET /question":
            self.reply(200, sitting.question())
        elif request == "POST /answer":
            saved = sitting.answer(**json.loads(body))
            state = sitting.question()
            self.reply(200, state | {"saved": saved})
            if "question" not in state:
                finished.set()
        elif request == "POST /finish":
            self.reply(200, {"finished": True})
            finished.set()
        else:
            self.reply(404, {"error": "there is nothing here"})

    def log_message(self, *args) -> None:
        """Print nothing: the console belongs to the person."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    allow_reuse_address = os.name != "nt"  # on Windows it would let two programs share a port

    def __init__(self, sitting: Sitting, host: str, port: int):
        self.sitting = sitting
        self.host = host.lower()
        self.everywhere = host in ("0.0.0.0", "::")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.token = secrets.token_urlsafe(24)
        self.finished = threading.Event()
        self.live: dict[socket.socket, float] = {}  # connection -> since when
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"the page cannot be served on {host}, port {port} ({error}): choose another "
                "--port (0: any that is free) or another --host"
            ) from None
        name = socket.gethostname() if self.everywhere else host
        if ":" in name:
            name = f"[{name}]"
        self.url = f"http://{name}:{self.server_address[1]}/?token={self.token}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks up our name, which is slow

    def is_own_name(self, name: str) -> bool:
        """Addresses are safe: only a name can be made to point here by a stranger."""
        try:
            is_loopback = ipaddress.ip_address(name).is_loopback
        except ValueError:
            own = ["localhost", self.host]
            if self.everywhere:
                own.append(socket.gethostname().lower())
            return name in own
        return is_loopback or self.everywhere or name == self.host

    def process_request(self, request, client_address) -> None:
        self.live[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.live.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: hang up on connections that take too long, even if they keep sending."""
        for request, since in list(self.live.items()):
            if time.monotonic() - since > LONGEST_REQUEST and self.live.pop(request, None):
                with suppress(OSError):  # gone already
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # other than a hang-up
            super().handle_error(request, client_address)


def has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(sitting: Sitting, host="127.0.0.1", port: int = 0, open_browser: bool = True) -> None:
    """Serve the page until all is ranked or "Finish for now" is pressed."""
    with Server(sitting, host, port) as server:
        print(f"rank here: {server.url}")
        print(
            "(Ctrl-C stops; confirmed rankings are saved, repeat the command to go on)", flush=True
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if open_browser and has_display():
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            while not server.finished.wait(0.5):  # an endless wait ignores Ctrl-C on Windows
                pass
            time.sleep(0.2)  # for the last requests of other tabs
        finally:
            server.shutdown()
            sitting.lock.acquire()  # for good: no answer is half-written now, and none comes later
