"""The local web server behind the ranking page and the chat page.

It listens on the loopback interface unless told otherwise. Each request needs the token, a Host
that is this machine, and an Origin that is this page. A page runs only its own script and shows
model output as text, never as HTML.

An app is what the server serves: an object with

    page                       the file name of its page, beside this file
    finished                   a threading.Event that ends the serving; what streams stops then
    respond(request, content)  "POST /answer" and its JSON -> a dict, an iterator of dicts that are
                               sent one by one (a JSON line each), or None: there is no such thing
"""

import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import socketserver
import stat
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from minirlhf import UserError
from minirlhf.files import to_json

LARGEST_BODY = 2**20  # bytes
LONGEST_REQUEST = 20  # seconds until all of it has arrived
OWN_PORTS = {"http": 80, "https": 443}
CONTENT_POLICY = (
    "default-src 'none'; style-src 'nonce-NONCE'; script-src 'nonce-NONCE'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LINK = '<!doctype html><meta http-equiv="refresh" content="0; url={}">\n'
OUR_LINK = re.compile(LINK.format(r"\S+:(\d{1,5})/\?token=([\w-]{32})"), re.ASCII)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # a proxy passes streamed lines on at once
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class Address:
    """Where a page is served, and under which address others reach it."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: that of the last time, or any that is free
    public_url: str = ""  # of a proxy in front of it

    def __post_init__(self):
        if not self.host:
            raise UserError("--host is empty: name an address of this machine, or 0.0.0.0 for all")
        self.public_name, self.public_origin = None, None  # where there is no proxy
        if self.public_url:
            try:
                self.public_name, self.public_origin = host_and_origin(self.public_url)
            except ValueError:
                raise UserError(
                    f"--public_url {self.public_url}: write the address at which others open the "
                    "page, without user and password, as in https://rank.example.org/mine"
                ) from None

    @property
    def everywhere(self) -> bool:
        return self.host in ("0.0.0.0", "::")

    def is_own_name(self, name: str) -> bool:
        """Addresses are safe: only a name can be made to point here by a stranger."""
        own = ["localhost", self.host.lower(), self.public_name]
        if self.everywhere:
            own.append(socket.gethostname().lower())
        try:
            is_safe = ipaddress.ip_address(name).is_loopback or self.everywhere
        except ValueError:
            is_safe = False
        return is_safe or name in own

    def warning(self) -> str:
        """What a host other than this machine's own means; empty for the loopback interface."""
        if self.host == "localhost" or self.host.startswith("127.") or self.host == "::1":
            return ""
        return (
            f"--host {self.host}: other machines reach this page, and nothing is encrypted. "
            "Whoever has the link, or listens on the network, can answer in your name. Over "
            "networks that you do not trust use ssh -L, or a proxy with https and --public_url."
        )


def host_and_origin(url: str) -> tuple[str, str]:
    """As browsers write them: in lower case and ASCII, without the scheme's own port.

    ValueError if this is no address of a page, or holds more than that.
    """
    parts = urlsplit(url)
    is_complete = parts.scheme in OWN_PORTS and parts.hostname
    if not is_complete or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError
    host = parts.hostname.encode("idna").decode()
    origin = f"{parts.scheme}://{host}"
    if ":" in host:
        origin = f"{parts.scheme}://[{host}]"
    if parts.port not in (None, OWN_PORTS[parts.scheme]):
        origin += f":{parts.port}"
    return host, origin


def page_of(name: str) -> str:
    """A page with the files that it names as {{style.css}} put in."""

    def read(file: str) -> str:
        return Path(__file__).with_name(file).read_text(encoding="utf-8")

    return re.sub(r"\{\{([a-z.]+)\}\}", lambda match: read(match[1]), read(name))


class Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds that a read or a write may wait
    server_version, sys_version = "minirlhf", ""

    def begin(self, status: int, kind: str, length: int | None = None, nonce: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", CONTENT_POLICY.replace("NONCE", nonce))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, content: dict) -> None:
        body = to_json(content).encode()
        self.begin(status, "application/json", len(body))
        self.wfile.write(body)

    def reply_page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        page = page_of(self.server.app.page).replace('nonce="NONCE"', f'nonce="{nonce}"').encode()
        self.begin(200, "text/html", len(page), nonce)
        self.wfile.write(page)

    def reply_lines(self, lines: Iterator[dict]) -> None:
        """Each as soon as it is there. The iterator is closed if the other side goes away."""
        self.begin(200, "application/x-ndjson")
        with closing(lines):
            for line in lines:
                self.wfile.write(to_json(line).encode() + b"\n")

    def refusal(self, query: str) -> str:
        """Why this request is not the page's; empty if it is."""
        address = self.server.address
        host = self.headers.get("Host", "")
        if not address.is_own_name(urlsplit(f"//{host}").hostname or ""):
            return "wrong Host"  # a foreign name that was made to point here
        if self.headers.get("Origin") not in (None, f"http://{host}", address.public_origin):
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
            self.reply(413, {"error": f"too long: a request holds up to {LARGEST_BODY} bytes"})
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):  # else the other side went away in the middle
            self.respond(body)

    def respond(self, body: bytes) -> None:
        self.server.arrived(self.connection)
        try:
            url = urlsplit(self.path)
            refusal = self.refusal(url.query)
            if refusal:
                self.reply(403, {"error": f"{refusal}: open the link that label.py printed"})
            elif f"{self.command} {url.path}" == "GET /":
                self.reply_page()
            else:
                content = json.loads(body) if self.command == "POST" else {}
                self.reply_with(self.server.app.respond(f"{self.command} {url.path}", content))
        except (ConnectionError, TimeoutError):  # the other side went away
            raise
        except OSError as error:
            problem = error.strerror or error
            self.reply(507, {"error": f"not saved ({problem}): make room, then confirm again"})
        except UserError as error:
            self.reply(400, {"error": str(error)})
        except (ValueError, TypeError, RecursionError):  # no URL, no JSON, unknown fields
            self.reply(400, {"error": "this is no answer"})

    def reply_with(self, answer: dict | Iterator[dict] | None) -> None:
        if answer is None:
            self.reply(404, {"error": "there is nothing here"})
        elif isinstance(answer, dict):
            self.reply(200, answer)
        else:
            self.reply_lines(answer)

    def log_message(self, *args) -> None:
        """Print nothing: the console belongs to the person."""


class Server(ThreadingHTTPServer):
    request_queue_size = 512
    allow_reuse_address = os.name != "nt"  # on Windows it would let two programs share a port
    daemon_threads = False  # server_close waits for the answers that are being written

    def __init__(self, app, address: Address, token: str = ""):
        self.app = app
        self.address = address
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.token = token or secrets.token_urlsafe(24)
        self.arriving: dict[socket.socket, float] = {}  # connection -> since when
        try:
            super().__init__((address.host, address.port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"the page cannot be served on {address.host}, port {address.port} ({error}): "
                "choose another --port (0: any that is free) or another --host"
            ) from None
        name = address.host
        self.local_url = self._url("localhost" if address.everywhere else name)
        self.url = self._url(socket.gethostname() if address.everywhere else name)
        if address.public_url:
            self.url = f"{address.public_url.removesuffix('/')}/?token={self.token}"

    def _url(self, name: str) -> str:
        if ":" in name:
            name = f"[{name}]"
        return f"http://{name}:{self.server_address[1]}/?token={self.token}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks up our name, which is slow

    def process_request(self, request, client_address) -> None:
        self.arriving[request] = time.monotonic()
        super().process_request(request, client_address)

    def arrived(self, request) -> None:
        self.arriving.pop(request, None)

    def shutdown_request(self, request) -> None:
        self.arrived(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Twice a second: hang up on requests that take too long, even if they keep sending."""
        self.hang_up(LONGEST_REQUEST)

    def server_close(self) -> None:
        self.hang_up()
        super().server_close()

    def hang_up(self, seconds: float = 0) -> None:
        """On requests that take longer than this to arrive."""
        for request, since in list(self.arriving.items()):
            if time.monotonic() - since >= seconds and self.arriving.pop(request, None):
                with suppress(OSError):  # gone already
                    request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # other than a hang-up
            super().handle_error(request, client_address)


# ---- a file that leads to the page: it survives a restart, so that an open page goes on


def write_link(path: Path, url: str) -> None:
    """Only this user can read it. A browser that opens it goes to the page, and the token stands
    in no command line. UserError if something that is no such link has its name."""
    if os.path.lexists(path):
        if not find_link(path):
            raise UserError(f"{path} is not label.py's: move it, or choose another --out")
        path.unlink()
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(LINK.format(escape(url)))


def find_link(path: Path) -> re.Match | None:
    """Port and token in what `write_link` wrote; None for anything else."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return None
        return OUR_LINK.fullmatch(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_link(path: Path) -> tuple[int, str]:
    """Port and token of the last time; (0, "") if there was none that is surely ours."""
    match = find_link(path)
    if match is None or not is_private(path.lstat()):
        return 0, ""
    return int(match[1]), match[2]


def is_private(status: os.stat_result) -> bool:
    """A regular file of this user's that nobody else can read. Windows says nothing of it."""
    if os.name == "nt":
        return True
    others_can_read = stat.S_IMODE(status.st_mode) & 0o077
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not others_can_read


def start_server(app, address: Address, link: Path) -> Server:
    """With the port and the token of the last time where that is possible."""
    port, token = read_link(link)
    if port and not address.port:
        with suppress(UserError):  # somebody else has it now
            return Server(app, Address(address.host, port, address.public_url), token)
    return Server(app, address, token)


def has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(app, address: Address, link: Path, what: str, open_browser: bool = True) -> None:
    """Serve a page until its app is finished. link: the file that leads to it."""
    with start_server(app, address, link) as server:
        write_link(link, server.local_url)
        print(f"{what} here: {server.url}")
        print("(Ctrl-C stops; what you confirmed is saved, repeat the command to go on)")
        if address.warning():
            print(address.warning())
        sys.stdout.flush()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if open_browser and has_display():
            file = link.resolve().as_uri()
            threading.Thread(target=webbrowser.open, args=(file,), daemon=True).start()
        try:
            while not app.finished.wait(0.5):  # an endless wait ignores Ctrl-C on Windows
                pass
            time.sleep(0.2)  # for the last requests of other tabs
        finally:
            app.finished.set()
            server.shutdown()
