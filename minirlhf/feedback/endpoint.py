"""A chat endpoint as a judge: Ollama, llama.cpp, vLLM or any other OpenAI-compatible API.

The key in the environment variable OPENAI_API_KEY goes to the host of the URL and to no other.
"""

import http.client
import ipaddress
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from minirlhf import UserError
from minirlhf.chat import Turns
from minirlhf.data import Prompt, messages
from minirlhf.files import to_json

TRIES = 6  # of a request
BACK_OFF = 0.5  # seconds before the second try; doubled before each further one
TIMEOUT = 120.0  # seconds
PARALLEL_REQUESTS = 8
URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[\w.-]+|\[[\da-f:.]+\])(:(?P<port>\d*))?(/[\w.~%:+/-]*)?",
    re.ASCII | re.IGNORECASE,
)
LETTER = re.compile(r"\W*(?:(?:the )?(?:answer|response|option)(?: is)?\W+)?([ab])\W*")


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to whatever host a server names."""

    def redirect_request(self, request, file, code, message, headers, target):
        parts = urlsplit(target)
        host = parts.netloc.rpartition("@")[2]
        raise UserError(
            f"{request.full_url} redirects to {parts.scheme}://{host}, and no redirect is "
            "followed: give the URL that the endpoint has now, if you trust that host"
        )


class Endpoint:
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
        self.stop = threading.Event()
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

    def chat(self, turns: Turns, **options) -> str | None:
        """The answer, or None if it was cut short. A busy or broken server is tried again."""
        body = {"model": self.model, "messages": messages(turns), "seed": self.seed, **options}
        content = to_json(body).encode()
        check = f"check the URL (it often ends in /v1), the model's name {self.model} and the key"
        wait, problem = 0.0, "stopped"
        for attempt in range(TRIES):
            if self.stop.wait(wait):
                break
            wait = BACK_OFF * 2**attempt
            request = urllib.request.Request(self.url, content, self.headers)
            reply = b""
            try:
                with self.opener.open(request, timeout=TIMEOUT) as response:
                    reply = response.read()
                return answer_in(reply)
            except urllib.error.HTTPError as error:
                problem = f"{error.code}: {self._quote(error.read(2000))}"
                if error.code < 500 and error.code not in (408, 429):
                    raise UserError(f"{self.url} refuses ({problem}): {check}") from None
                retry_after = error.headers.get("Retry-After", "")
                if retry_after.isdigit():
                    wait = max(wait, min(float(retry_after), 60.0))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise UserError(
                    f"{self.url} does not answer as an OpenAI-compatible API "
                    f"({self._quote(reply)!r}): {check}"
                ) from None
            except (OSError, http.client.HTTPException) as error:  # down, cut off, too slow
                reason = str(getattr(error, "reason", error))
                problem = self._quote(reason) or type(error).__name__
        raise UserError(
            f"{self.url} failed {TRIES} times ({problem}): is the server running? "
            "The same command goes on from here"
        )

    def _quote(self, reply: bytes | str) -> str:
        """The beginning of a server's reply. Some servers repeat the key that they refuse."""
        text = reply if isinstance(reply, str) else reply.decode(errors="replace")
        if self.key:
            text = text.replace(self.key, "(the key)")
        return text[:100].strip()

    def _in_order(self, function: Callable, items: Iterable) -> Iterator:
        pool = ThreadPoolExecutor(PARALLEL_REQUESTS)
        try:
            yield from pool.map(function, items)
        finally:  # after an error or Ctrl-C do not wait for the rest
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            self.stop.clear()

    def prefer(self, questions: list[str]) -> Iterator[float | None]:
        """1 for A, 0 for B, None for any other answer."""

        def prefer_one(question: str) -> float | None:
            answer = self.chat(Prompt.of(question).turns, temperature=0, max_tokens=1024) or ""
            letter = LETTER.fullmatch(answer.lower())
            return float(letter[1] == "a") if letter else None

        return self._in_order(prefer_one, questions)

    def say(self, prompts: list[Prompt], max_tokens: int, temperature: float) -> Iterator:
        """A response to each prompt, or None."""

        def say_one(prompt: Prompt) -> str | None:
            return self.chat(prompt.turns, max_tokens=max_tokens, temperature=temperature) or None

        return self._in_order(say_one, prompts)


def answer_in(reply: bytes) -> str | None:
    choice = json.loads(reply)["choices"][0]
    text = re.sub(r"(?s)^\s*<think>.*?</think>", "", choice["message"]["content"])
    return None if choice.get("finish_reason") == "length" else text.strip()


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
