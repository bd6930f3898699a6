"""A person ranks: the questions of one sitting, and the page that asks them, served by the standard library.

Every answer is on the disk before the next question goes out. Answering twice changes nothing, so a double click, a
second tab, a reload or a second server on the same file can neither lose a ranking nor write it twice. The server stays
on the loopback interface unless told otherwise; it wants its token with every request, a Host that is this machine and
an Origin that is this page; the page runs no script but its own and shows model output as text, never as HTML.
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlsplit

from minirlhf import UserError
from minirlhf.feedback import append_ranking, open_rankings
from minirlhf.tokenizer import ASSISTANT, HUMAN

PAGE = Path(__file__).with_name("label.html")
REPEATS = 0.1           # share of prompts that come twice
LARGEST_BODY = 65536    # bytes; only numbers are posted
LONGEST_REQUEST = 20    # seconds, body included


class BadAnswer(ValueError):
    """The message is for the person."""


def turns(prompt: str) -> list[dict]:
    """A conversation's turns, [{"role": "human" | "assistant" | "text", "text"}]; the open turn at the end is left out."""
    pieces = ["", *re.split(f"({HUMAN}|{ASSISTANT})", prompt)]
    roles = {HUMAN: "human", ASSISTANT: "assistant", "": "text"}
    return [{"role": roles[marker], "text": text.strip()} for marker, text in zip(pieces[::2], pieces[1::2]) if text.strip()]


class Sitting:
    """The questions that one annotator has of these candidates, in an order fixed by (seed, name); thread-safe.

    A question is a prompt with its different responses in blind order; where all are the same there is nothing to ask.
    A tenth of the prompts come a second time, a dozen or so questions later, in another order.
    """

    def __init__(self, candidates: list[dict], out: str | Path, name: str = "person", seed: int = 0):
        self.candidates, self.out, self.name, self.lock = candidates, Path(out), name, threading.RLock()
        dice, plan = random.Random(f"{seed}/{name}"), []
        asked = [i for i, c in enumerate(candidates) if len(set(c["responses"])) > 1]
        twice = set(dice.sample(asked, round(REPEATS * len(asked))))
        for at, i in enumerate(asked):
            order = list(dict.fromkeys(candidates[i]["responses"]))
            for repeat in range(1 + (i in twice)):
                before = order
                while repeat and order == before:
                    order = dice.sample(order, len(order))
                order = order if repeat else dice.sample(order, len(order))
                plan.append((at + repeat * (8 + 8 * dice.random()), i, bool(repeat), order))
        self.plan = [question for _, *question in sorted(plan, key=lambda p: p[0])]
        self.shown: dict[int, float] = {}        # question -> when it was first shown in this sitting
        self.seconds: list[float] = []           # how long the answers of this sitting took
        self.size = -1
        self._read()

    def _read(self) -> None:
        """What is answered is what the file says: it may have grown by another's hand."""
        if not self.out.exists() or self.out.stat().st_size != self.size:
            mine = [r for r in open_rankings(self.out, self.candidates) if r.get("annotator") == self.name]
            self.done = {(r["id"], r.get("repeat", False)) for r in mine}
            self.skipped = {r["id"] for r in mine if r.get("skipped")}
            self.size = self.out.stat().st_size

    def _open(self) -> list[int]:
        """The questions still to ask; what was skipped is not repeated."""
        ids = [self.candidates[i]["id"] for _, (i, *_) in enumerate(self.plan)]
        return [q for q, (id_, (_, repeat, _)) in enumerate(zip(ids, self.plan))
                if (id_, repeat) not in self.done and not (repeat and id_ in self.skipped)]

    def question(self) -> dict:
        """The next one: {"question", "turns", "cards": [texts in blind order], ...} and the progress; no "question" at the end."""
        with self.lock:
            self._read()
            left = self._open()
            state = {"done": len(self.done), "left": len(left), "name": self.name,
                     "rate": round(60 / max(0.1, median(self.seconds[-20:])), 1) if self.seconds else None}
            if left:
                i, _, order = self.plan[left[0]]
                self.shown.setdefault(left[0], time.monotonic())
                state |= {"question": left[0], "turns": turns(self.candidates[i]["prompt"]), "cards": order}
            return state

    def answer(self, question: int, ranks: list[int] = (), harmful: list[int] = (), all_bad: bool = False,
               skip: bool = False) -> bool:
        """Writes the record; False if this question was answered before. ranks, harmful: of the cards as they were shown."""
        with self.lock:
            if type(question) is not int or question not in self.shown:
                raise BadAnswer("this question was not asked: reload the page")
            i, repeat, order = self.plan[question]
            K, candidate = len(order), self.candidates[i]
            ranks = [1] * K if skip is True else ranks
            if not (isinstance(ranks, list) and len(ranks) == K and all(type(r) is int for r in ranks)
                    and set(ranks) == set(range(1, max(ranks) + 1))):
                raise BadAnswer(f"ranks must be {K} whole numbers, 1 for the best, without gaps")
            if not (isinstance(harmful, list | tuple) and all(type(h) is int and 0 <= h < K for h in harmful)):
                raise BadAnswer(f"harmful must be numbers of responses, 0 to {K - 1}")
            self._read()
            if question not in self._open():
                return False
            place = {text: card for card, text in enumerate(order)}
            cards = [place[text] for text in candidate["responses"]]
            seconds = time.monotonic() - self.shown[question]
            flags = {"harmful": [j for j, card in enumerate(cards) if card in harmful], "all_bad": all_bad is True,
                     "skipped": skip is True, "repeat": repeat}
            append_ranking(self.out, candidate, [ranks[card] for card in cards], self.name, seconds=round(seconds, 1),
                           **{k: v for k, v in flags.items() if v})
            self.seconds.append(seconds)
            self._read()
            return True


class Handler(BaseHTTPRequestHandler):
    timeout = 10                # seconds that a read may wait
    server_version, sys_version = "minirlhf", ""

    def reply(self, status: int, content: dict | bytes, nonce: str = "") -> None:
        page = isinstance(content, bytes)
        body = content if page else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{'text/html' if page else 'application/json'}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy",
                         f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
                         "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        for name, value in (("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"),
                            ("Cache-Control", "no-store"), ("Cross-Origin-Resource-Policy", "same-origin")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refusal(self, token: str) -> str:
        """Why this request is none of ours; "" if it is."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if not self.server.knows(urlsplit(f"//{host}").hostname or ""):
            return "wrong Host"                # a foreign name that was made to point here
        if origin is not None and origin != f"http://{host}":
            return "wrong Origin"              # a foreign page that asks from inside this browser
        return "" if hmac.compare_digest(token.encode(), self.server.token.encode()) else "wrong or missing token"

    def handle_request(self, body: bytes | None = None) -> None:
        try:
            url = urlsplit(self.path)
            why = self.refusal((parse_qs(url.query).get("token") or [self.headers.get("X-Token", "")])[0])
        except ValueError:
            return self.reply(400, {"error": "not a URL or Host"})
        sitting, what = self.server.sitting, (self.command, url.path)
        if why:
            return self.reply(403, {"error": f"{why}: open the link that label.py printed"})
        try:
            if what == ("GET", "/"):
                nonce = secrets.token_urlsafe(16)
                return self.reply(200, PAGE.read_bytes().replace(b"NONCE", nonce.encode()), nonce)
            if what == ("GET", "/question"):
                return self.reply(200, sitting.question())
            if what == ("POST", "/finish"):
                self.reply(200, {"finished": True})
                return self.server.finished.set()
            if what == ("POST", "/answer"):
                fields = json.loads(body)
                saved = sitting.answer(**fields)
                state = sitting.question() | {"saved": saved}
                self.reply(200, state)
                if "question" not in state:
                    self.server.finished.set()
                return
            self.reply(404, {"error": "there is nothing here"})
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self.reply(507, {"error": f"not saved ({error.strerror or error}): make room on the disk and confirm again"})
        except UserError as error:                      # somebody changed the file by hand
            self.reply(409, {"error": str(error)})
        except BadAnswer as error:
            self.reply(400, {"error": str(error)})
        except (ValueError, TypeError, RecursionError):          # no JSON, no object, fields that do not exist
            self.reply(400, {"error": "not an answer: an object of question, ranks, harmful, all_bad, skip is"})

    def do_GET(self) -> None:
        self.handle_request()

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return self.reply(411, {"error": "Content-Length is missing"})
        if len(length) > 9 or int(length) > LARGEST_BODY:
            return self.reply(413, {"error": f"more than {LARGEST_BODY} bytes"})
        body = self.rfile.read(int(length))
        if len(body) == int(length):                    # else the other side went away in the middle
            self.handle_request(body)

    def log_message(self, *args) -> None:
        """Says nothing: the console is the person's."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    allow_reuse_address = os.name != "nt"               # on Windows it would let two programs share a port

    def __init__(self, sitting: Sitting, host: str, port: int):
        self.sitting, self.host, self.token = sitting, host, secrets.token_urlsafe(24)
        self.finished, self.live = threading.Event(), {}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"the page cannot be served on {host}, port {port} ({getattr(error, 'strerror', error)}): choose another "
                            "--port (0 takes any that is free) or another --host") from None
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, f"[{host}]" if ":" in host else host)
        self.url = f"http://{shown}:{self.server_address[1]}/?token={self.token}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)        # HTTPServer's looks up our name, which can take seconds

    def knows(self, name: str) -> bool:
        """Is this a name of ours? On the loopback only its own; elsewhere any address, which cannot be a stranger's name."""
        if name in ("localhost", self.host.lower()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return self.host in ("0.0.0.0", "::") and name == socket.gethostname().lower()
        return address.is_loopback or self.host in ("0.0.0.0", "::")

    def process_request(self, request, client_address) -> None:
        self.live[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.live.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: hangs up on who is still not done, however busily they drip."""
        for request, since in list(self.live.items()):
            if time.monotonic() - since > LONGEST_REQUEST:
                self.live.pop(request, None)
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:                         # gone already
                    pass

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1], OSError):      # not a hang-up
            super().handle_error(request, client_address)


def serve(sitting: Sitting, host: str = "127.0.0.1", port: int = 0, open_browser: bool = True) -> None:
    """Serves the page until everything is ranked or the person presses "Finish for now"; Ctrl-C raises KeyboardInterrupt."""
    with Server(sitting, host, port) as server:
        print(f"rank here: {server.url}\n(Ctrl-C stops; what is confirmed is saved, and the same command goes on from there)", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if open_browser and (sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            while not server.finished.wait(0.5):        # a wait without an end would not hear Ctrl-C on Windows
                pass
            time.sleep(0.2)                             # other tabs' last requests
        finally:
            server.shutdown()
            with sitting.lock:                          # no answer is half-written when this ends
                pass
