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
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from urllib.parse import parse_qs, urlsplit

from minirlhf import UserError
from minirlhf.feedback import append_ranking, open_rankings
from minirlhf.json_text import to_json
from minirlhf.tokenizer import ASSISTANT, HUMAN

PAGE = Path(__file__).with_name("label.html")
REPEATS = 0.1           # share of prompts that come twice
LARGEST_BODY = 65536    # bytes; only numbers are posted
LONGEST_REQUEST = 20    # seconds, body included


def turns(prompt: str) -> list[dict]:
    """A conversation's turns, [{"role": "human" | "assistant" | "text", "text"}]; the open turn at the end is left out."""
    pieces, roles = ["", *re.split(f"({HUMAN}|{ASSISTANT})", prompt)], {HUMAN: "human", ASSISTANT: "assistant", "": "text"}
    return [{"role": roles[marker], "text": text.strip()} for marker, text in zip(pieces[::2], pieces[1::2]) if text.strip()]


class Sitting:
    """The questions that one annotator has of these candidates, in an order fixed by (seed, name); thread-safe.

    A question is a prompt with its different responses in blind order; where all are the same there is nothing to ask.
    A tenth of the prompts come a second time, a dozen or so questions later, in another order.
    """

    def __init__(self, candidates: list[dict], out: str | Path, name: str = "person", seed: int = 0):
        self.candidates, self.out, self.name, self.lock = candidates, Path(out), name, threading.RLock()
        dice, plan = random.Random(f"{seed}/{name}"), []
        asked = [c for c in candidates if len(set(c["responses"])) > 1]
        twice = set(dice.sample(range(len(asked)), round(REPEATS * len(asked))))
        for at, c in enumerate(asked):
            texts = list(dict.fromkeys(c["responses"]))
            first = again = dice.sample(texts, len(texts))
            plan.append((at, c, False, first))
            if at in twice:
                while again == first:
                    again = dice.sample(texts, len(texts))
                plan.append((at + 8 + 8 * dice.random(), c, True, again))
        self.plan = [question for _, *question in sorted(plan, key=lambda p: p[0])]     # [candidate, is a repeat, cards]
        self.shown: dict[int, float] = {}        # question -> when it was first shown in this sitting
        self.seconds: list[float] = []           # how long the answers of this sitting took
        self.size = -1
        self._read()

    def _read(self) -> list[int]:
        """The questions still to ask. What is answered is what the file says: it may have grown by another's hand."""
        if not self.out.exists() or self.out.stat().st_size != self.size:
            mine = [r for r in open_rankings(self.out, self.candidates) if r.get("annotator") == self.name]
            self.done = {(r["id"], r.get("repeat", False)) for r in mine}
            skipped = {(r["id"], True) for r in mine if r.get("skipped")}                # and is not asked again
            self.left = [q for q, (c, repeat, _) in enumerate(self.plan) if (c["id"], repeat) not in self.done | skipped]
            self.size = self.out.stat().st_size
        return self.left

    def question(self) -> dict:
        """The next one: {"question", "turns", "cards": [texts in blind order], ...} and the progress; no "question" at the end."""
        with self.lock:
            left = self._read()
            rate = round(60 / max(0.1, median(self.seconds[-20:])), 1) if self.seconds else None
            state = {"done": len(self.done), "left": len(left), "rate": rate}
            if left:
                candidate, _, cards = self.plan[left[0]]
                self.shown.setdefault(left[0], time.monotonic())
                state |= {"question": left[0], "turns": turns(candidate["prompt"]), "cards": cards}
            return state

    def answer(self, question: int, ranks: list[int] = (), harmful: list[int] = (), all_bad=False, skip=False) -> bool:
        """Writes the record; False if this question was answered before. ranks, harmful: of the cards as they were shown."""
        with self.lock:
            if type(question) is not int or question not in self.shown:
                raise UserError("this question was not asked: reload the page")
            candidate, repeat, order = self.plan[question]
            K, ranks = len(order), [1] * len(order) if skip is True else ranks
            if not (isinstance(ranks, list) and len(ranks) == K and all(type(r) is int for r in ranks)
                    and set(ranks) == set(range(1, len(set(ranks)) + 1))):
                raise UserError(f"ranks must be {K} whole numbers, 1 for the best, without gaps")
            if not (isinstance(harmful, list | tuple) and all(type(h) is int and 0 <= h < K for h in harmful)):
                raise UserError(f"harmful must hold numbers of responses, 0 to {K - 1}")
            if question not in self._read():
                return False
            cards = [order.index(text) for text in candidate["responses"]]
            seconds = time.monotonic() - self.shown[question]
            flags = {"harmful": [j for j, card in enumerate(cards) if card in harmful], "all_bad": all_bad is True,
                     "skipped": skip is True, "repeat": repeat}
            append_ranking(self.out, candidate, [ranks[card] for card in cards], self.name, seconds=round(seconds, 1),
                           **{k: v for k, v in flags.items() if v})
            self.seconds.append(seconds)
            return True


class Handler(BaseHTTPRequestHandler):
    timeout = 10                # seconds that a read may wait
    server_version, sys_version = "minirlhf", ""

    def reply(self, status: int, content: dict | bytes, nonce: str = "") -> None:
        body, kind = (content, "text/html") if isinstance(content, bytes) else (to_json(content).encode(), "application/json")
        self.send_response(status)
        for name, value in {
                "Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body)), "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
                "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def refusal(self, query: str) -> str:
        """Why this request is none of ours; "" if it is."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        token = (parse_qs(query).get("token") or [self.headers.get("X-Token", "")])[0]
        if not self.server.knows(urlsplit(f"//{host}").hostname or ""):
            return "wrong Host"                # a foreign name that was made to point here
        if origin not in (None, f"http://{host}"):
            return "wrong Origin"              # a foreign page that asks from inside this browser
        same = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        return "" if same else "wrong or missing token"

    def do_GET(self, body: bytes = b"") -> None:
        sitting, nonce = self.server.sitting, secrets.token_urlsafe(16)
        try:
            url = urlsplit(self.path)
            what = self.command, url.path
            if why := self.refusal(url.query):
                self.reply(403, {"error": f"{why}: open the link that label.py printed"})
            elif what == ("GET", "/"):
                self.reply(200, PAGE.read_bytes().replace(b"NONCE", nonce.encode()), nonce)
            elif what == ("GET", "/question"):
                self.reply(200, sitting.question())
            elif what == ("POST", "/answer"):
                saved = sitting.answer(**json.loads(body))
                state = sitting.question()
                self.reply(200, state | {"saved": saved})
                if "question" not in state:
                    self.server.finished.set()
            elif what == ("POST", "/finish"):
                self.reply(200, {"finished": True})
                self.server.finished.set()
            else:
                self.reply(404, {"error": "there is nothing here"})
        except (ConnectionError, TimeoutError):                     # they went away
            raise
        except OSError as error:
            self.reply(507, {"error": f"not saved ({error.strerror or error}): make room on the disk, then confirm again"})
        except UserError as error:
            self.reply(400, {"error": str(error)})
        except (ValueError, TypeError, RecursionError):             # a Host or URL that is none, no JSON, unknown fields
            self.reply(400, {"error": "not an answer: that is an object of question, ranks, harmful, all_bad, skip"})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST_BODY:
            return self.reply(413, {"error": f"a body needs a Content-Length, of at most {LARGEST_BODY}"})
        body = self.rfile.read(int(length))
        if len(body) == int(length):                    # else the other side went away in the middle
            self.do_GET(body)

    def log_message(self, *args) -> None:
        """Says nothing: the console is the person's."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    allow_reuse_address = os.name != "nt"               # on Windows it would let two programs share a port

    def __init__(self, sitting: Sitting, host: str, port: int):
        self.sitting, self.host, self.token = sitting, host.lower(), secrets.token_urlsafe(24)
        self.finished, self.live = threading.Event(), {}
        self.everywhere, self.address_family = host in ("0.0.0.0", "::"), socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"the page cannot be served on {host}, port {port} ({getattr(error, 'strerror', error)}): choose "
                            "another --port (0 takes any that is free) or another --host") from None
        shown = socket.gethostname() if self.everywhere else f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/?token={self.token}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)        # HTTPServer's looks up our name, which can take seconds

    def knows(self, name: str) -> bool:
        """Is this a name of ours? Besides names only addresses are: no stranger can make one of those point here."""
        with suppress(ValueError):
            return ipaddress.ip_address(name).is_loopback or self.everywhere or name == self.host
        return name in ("localhost", self.host) or (self.everywhere and name == socket.gethostname().lower())

    def process_request(self, request, client_address) -> None:
        self.live[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request) -> None:
        self.live.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: hangs up on who is still not done, however busily they drip."""
        for request, since in list(self.live.items()):
            if time.monotonic() - since > LONGEST_REQUEST and self.live.pop(request, None):
                with suppress(OSError):                 # gone already
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a hang-up is no news
            super().handle_error(request, client_address)


def serve(sitting: Sitting, host: str = "127.0.0.1", port: int = 0, open_browser: bool = True) -> None:
    """Serves the page until everything is ranked or the person presses "Finish for now"; Ctrl-C raises KeyboardInterrupt."""
    with Server(sitting, host, port) as server:
        print(f"rank here: {server.url}\n(Ctrl-C stops; what is confirmed is saved, the same command goes on)", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if open_browser and (sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        try:
            while not server.finished.wait(0.5):        # a wait without an end would not hear Ctrl-C on Windows
                pass
            time.sleep(0.2)                             # other tabs' last requests
        finally:
            server.shutdown()
            sitting.lock.acquire()                      # for good: no answer is half-written now, and none comes later
