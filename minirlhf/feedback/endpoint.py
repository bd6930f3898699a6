"""A chat endpoint: Ollama, llama.cpp, vLLM or any other OpenAI-compatible API.

The key in the environment variable OPENAI_API_KEY goes to the host of the URL and to no other.
"""

import http.client
import ipaddress
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from email.message import Message
from itertools import islice

from minirlhf import UserError
from minirlhf.chat import Turns
from minirlhf.cli import printable
from minirlhf.data import Prompt, messages
from minirlhf.feedback.replies import Reply, TryAgain, read_preference, read_reply
from minirlhf.files import to_json

TRIES = 6  # of a request
BACK_OFF = 0.5  # seconds before the second try; doubled before each further one
LONGEST_WAIT = 12.0  # seconds before a try, whatever the server asks for; a minute for five
TIMEOUT = 120.0  # seconds for a whole reply
PATIENCE = 180.0  # seconds after which a request is not tried again
LARGEST_REPLY = 2**23  # bytes
PARALLEL_REQUESTS = 8  # at most: see _at_once
AHEAD = 32  # questions that are made before the first of them is answered
MOST_LOST = 32  # answers in a row that never came

VERDICT_TOKENS = 32  # of a verdict in words
THINKING_TOKENS = 1024  # of a verdict with thoughts before it
LOGPROBS = {"logprobs": True, "top_logprobs": 5}  # some servers give no more than 5
OTHER_NAMES = {"max_tokens": "max_completion_tokens"}  # tried where the first name is refused
BUSY = (408, 409, 425, 429)  # statuses that pass, like all from 500 on
REJECTED = (400, 403, 413, 422)  # statuses of one prompt, too long or forbidden

URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[\w.-]+|\[[\da-f:.]+\])(:(?P<port>\d*))?(/[\w.~%:+/-]*)?",
    re.ASCII | re.IGNORECASE,
)


class Endpoint:
    """One model at one URL.

    Learns from its first replies which parameters the server refuses, whether it gives log-probs
    and whether the model thinks aloud. `problems` counts why answers could not be used.
    """

    def __init__(self, url: str, model: str, seed: int = 0):
        parts = URL.fullmatch(url)
        if not parts or not 0 < int(parts["port"] or 80) < 65536:
            raise UserError(
                "the endpoint's URL cannot be used: write it as https://HOST:PORT/v1, "
                "and a key into the environment variable OPENAI_API_KEY"
            )
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.seed = seed
        self.problems = Counter()
        self.is_api = False  # whether it has ever replied as such an API does
        self.lost = 0  # answers in a row that never came
        self.slowest = 0.0  # seconds of a reply
        self.accepted = set()  # parameters that it has taken
        self.refused = set()  # parameters that it does not take
        self.gives_logprobs: bool | None = None  # None: not known yet
        self.thinks = False
        host = parts["host"].strip("[]")
        local = is_this_machine(host)
        self.key = read_key(host, safe=local or parts["scheme"].lower() == "https")
        self.headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {self.key or 'none'}",
        }
        handlers = [NoRedirects()]
        if local:
            handlers.append(urllib.request.ProxyHandler({}))  # no proxy stands before this machine
        self.opener = urllib.request.build_opener(*handlers)

    # ---- many questions

    def prefer(self, questions: Iterable[str]) -> Iterator[float | None]:
        """For each question the chance that A is the answer and not B; None if it is neither."""

        def prefer_one(question: str, stopped: threading.Event) -> tuple[float | None, str]:
            return self._preference(Prompt.of(question).turns, stopped)

        return self._in_order(prefer_one, questions)

    def say(
        self, prompts: Iterable[Prompt], max_tokens: int, temperature: float
    ) -> Iterator[str | None]:
        """A response to each prompt, or None."""
        sampling = {"max_tokens": max_tokens, "temperature": temperature}

        def say_one(prompt: Prompt, stopped: threading.Event) -> tuple[str | None, str]:
            reply = self.ask(prompt.turns, stopped, **sampling)
            return (None if reply.problem else reply.text), reply.problem

        return self._in_order(say_one, prompts)

    def _in_order(self, ask: Callable, items: Iterable) -> Iterator:
        """The answers in ask(item, stopped) -> (answer, problem), several asked for at once.

        Items are made as they are needed.
        """
        stopped = threading.Event()
        pending = deque()  # in the order of the items
        items = iter(items)

        def next_answer():
            answer, problem = result(pending.popleft())
            if answer is None:
                self.problems[problem] += 1
            return answer

        def ask_one(item):
            with slots:
                return ask(item, stopped)

        try:
            for first in islice(items, 1):  # shows what the server refuses, and how slow it is
                pending.append(in_background(ask, first, stopped))
                yield next_answer()
            slots = threading.Semaphore(self._at_once())
            for item in items:
                pending.append(in_background(ask_one, item))
                if len(pending) == AHEAD:
                    yield next_answer()
            while pending:
                yield next_answer()
        finally:  # after an error or Ctrl-C nothing more is asked
            stopped.set()

    def _at_once(self) -> int:
        """So many requests that the last is in time where a server takes one after the other."""
        in_time = int(TIMEOUT / 2 / max(self.slowest, 0.01))
        return min(max(1, in_time), PARALLEL_REQUESTS)

    # ---- one question

    def _preference(self, turns: Turns, stopped: threading.Event) -> tuple[float | None, str]:
        """(chance of A, "") or (None, why not): by one token's log-probs, otherwise in words."""

        def ask(max_tokens: int, **more) -> Reply:
            return self.ask(turns, stopped, temperature=0, max_tokens=max_tokens, **more)

        if self.gives_logprobs is not False and not self.thinks:
            reply = ask(1, **LOGPROBS)
            preference = read_preference(reply)
            if self.gives_logprobs is None and reply.text:
                self.gives_logprobs = bool(reply.first_tokens)
            more_may_help = reply.is_cut or reply.is_rejected  # more tokens, or no log-probs
            if preference is not None or not more_may_help:
                return preference, reply.problem or "no verdict"
        thinks = self.thinks  # another question may find it out meanwhile
        reply = ask(THINKING_TOKENS if thinks else VERDICT_TOKENS)
        if reply.is_cut and not reply.text and not thinks:  # nothing but thoughts, shown or not
            self.thinks = True
            reply = ask(THINKING_TOKENS)
        return read_preference(reply), reply.problem or "no verdict"

    def ask(self, turns: Turns, stopped: threading.Event | None = None, **parameters) -> Reply:
        """The model's answer, perhaps one that cannot be used. Broken replies are asked for again.

        parameters: as in the API (temperature=0); without those that the server refuses.
        UserError if the server cannot be used at all.
        """
        stopped = stopped or threading.Event()
        began = time.monotonic()
        pause, problem = 0.0, "stopped"
        for attempt in range(TRIES):
            if time.monotonic() - began > PATIENCE or stopped.wait(pause):
                break
            pause = BACK_OFF * 2**attempt
            try:
                asked = time.monotonic()
                reply = in_background(self._request, turns, parameters).result(TIMEOUT)
                self.slowest = max(self.slowest, time.monotonic() - asked)
                self.lost = 0
                return reply
            except TryAgain as error:
                problem = str(error)
                pause = max(pause, error.wait)
            except TimeoutError:
                problem = f"no reply within {TIMEOUT:g} seconds"
            except (OSError, http.client.HTTPException, UnicodeError) as error:  # no such host
                reason = str(getattr(error, "reason", error))
                problem = self._quote(reason.encode()) or type(error).__name__
            pause = min(pause, LONGEST_WAIT)
        self.lost += 1
        if stopped.is_set() or (self.is_api and self.lost < MOST_LOST):
            return Reply(problem=problem)
        raise UserError(
            f"{self.url} failed {attempt + 1} times ({problem}): is the server running, and is the "
            "URL right (it often ends in /v1)? The same command goes on from here"
        )

    def _request(self, turns: Turns, parameters: dict) -> Reply:
        """One try. Parameters that the server refuses get their other name or are left out."""
        while True:
            sent = self._known_to_server(parameters | {"seed": self.seed})
            body = {"model": self.model, "messages": messages(turns), **sent}
            status, headers, content = self._send(body)
            refused = set()
            if status in (400, 422):
                refused = {name for name in sent if names(content, name)} - self.accepted
            if not refused:
                break
            self.refused |= refused
        reply = self._read(status, headers, content)
        if status == 200:
            self.accepted |= sent.keys()
        return reply

    def _known_to_server(self, parameters: dict) -> dict:
        sent = {}
        for name, value in parameters.items():
            if name in self.refused:
                name = OTHER_NAMES.get(name)
            if name and name not in self.refused:
                sent[name] = value
        return sent

    def _send(self, body: dict) -> tuple[int, Message, bytes]:
        """Status, headers and content of the reply to one request."""
        deadline = time.monotonic() + TIMEOUT
        request = urllib.request.Request(self.url, to_json(body).encode(), self.headers)
        try:
            response = self.opener.open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            response = error  # a reply like any other
        content = b""
        with response:
            while len(content) < LARGEST_REPLY and time.monotonic() < deadline:
                chunk = response.read1(2**16)
                if not chunk:
                    break
                content += chunk
        return response.status, response.headers, content

    def _read(self, status: int, headers: Message, content: bytes) -> Reply:
        """TryAgain for a busy or broken server, UserError for one that refuses everything."""
        said = self._quote(content)
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict):
            self.is_api = True
        elif status == 200:
            raise TryAgain(f"no answer of an OpenAI-compatible API: {said}")
        if status == 200:
            if not body.get("error"):
                return read_reply(body)
            status = error_code(body["error"])
        if 300 <= status < 400:
            target = self._quote(re.sub("//[^/]*@", "//", headers.get("Location", "")).encode())
            raise UserError(
                f"{self.url} redirects to {target}, and no redirect is followed: give the URL that "
                "the endpoint has now, if you trust that host"
            )
        if status >= 500 or status in BUSY:
            raise TryAgain(f"{status}: {said}", seconds(headers.get("Retry-After", "")))
        if status in REJECTED:
            return Reply(problem=f"{status}: {said}", is_rejected=True)
        raise UserError(
            f"{self.url} refuses ({status}: {said}): check the URL (it often ends in /v1), the "
            f"model's name {self.model} and the key in the environment variable OPENAI_API_KEY"
        )

    def _quote(self, content: bytes) -> str:
        """The beginning of what a server said. Some repeat the key that they refuse."""
        text = content.decode(errors="replace")
        if self.key:
            text = text.replace(self.key, "(the key)")
        return printable(text[:100].strip())


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to whatever host a server names."""

    def redirect_request(self, *args) -> None:
        return None


def in_background(function: Callable, *arguments) -> Future:
    """A call in a thread of its own, which does not keep the program from ending."""
    future = Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def result(future: Future):
    while not future.done():
        wait([future], timeout=0.5)  # on Windows Ctrl-C interrupts no endless wait
    return future.result()


def names(content: bytes, parameter: str) -> bool:
    """Whether a server's complaint is about this parameter."""
    return re.search(rf"\b{parameter}\b".encode(), content) is not None


def error_code(error) -> int:
    """The HTTP status that an error inside a reply stands for."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def seconds(retry_after: str) -> float:
    """A header's value; 0 if it is a date or nonsense."""
    return float(retry_after) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", retry_after) else 0.0


def is_this_machine(host: str) -> bool:
    name = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def read_key(host: str, safe: bool) -> str:
    """OPENAI_API_KEY, empty if there is none. safe: nobody on the way to the host can read it."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UserError(
            "the environment variable OPENAI_API_KEY holds a space, a line break or a character "
            "beyond ASCII: copy the key again, or unset it"
        )
    if key and not safe and os.environ.get("MINIRLHF_KEY_OVER_HTTP") != "1":
        raise UserError(
            f"OPENAI_API_KEY would go to {host} over plain http, where others can read it: take an "
            "https URL, unset the key, or set MINIRLHF_KEY_OVER_HTTP=1 to send it all the same"
        )
    return key
