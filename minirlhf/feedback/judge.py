"""An AI ranks responses by written principles (RLAIF, Constitutional AI: Bai et al. 2022, section 4.1).

A judge is a model folder, or the URL of an OpenAI-compatible endpoint. Shown a principle and two
responses, a model folder prefers A by P(A) / (P(A) + P(B)), an endpoint by its answer, 1 or 0. Each
pair is asked about in both orders and averaged, against a liking for the first position. A response
is ranked by its mean chance of winning. The records have these further fields:

    "preferences"   [i][j]: the chance that response i is better than j; null where unknown
    "asked"         [[i, j, preference for A with i as A, the same with j as A], ...]
    "principle"     drawn from the constitution by (seed, id)
"""

import http.client
import ipaddress
import json
import os
import random
import re
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

import torch

from minirlhf import UserError, rollout, world
from minirlhf.batches import micro_batches, pad
from minirlhf.data import Prompt, messages, transcript
from minirlhf.device import open_model
from minirlhf.feedback.rankings import Candidate, append_ranking, rank_by
from minirlhf.files import to_json
from minirlhf.model import GPT
from minirlhf.run import seed_of
from minirlhf.tokenizer import Turns

JUDGE = """Principle: {principle}
Request: {request}
A: {a}
B: {b}
Which response follows the principle better? Answer with A or B alone."""
CRITIQUE = """Principle: {principle}
Request: {request}
Response: {response}
How does the response go against the principle? Answer in one sentence."""
REVISE = """Request: {request}
Response: {response}
Critique: {critique}
Write the response anew, without what the critique finds wrong. Answer with the new response alone."""

CONSTITUTION = Path(__file__).with_name("constitution.txt")
LEAST_MASS = 0.05  # probability that A and B must have between them to count as an answer
HOPELESS = 20  # stop if so many answers come first and none is usable
TRIES, BACK_OFF, TIMEOUT = 6, 0.5, 120.0  # of a request to an endpoint; the last two in seconds
PARALLEL_REQUESTS = 8
ENDPOINT_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[\w.-]+|\[[\da-f:.]+\])(?::(?P<port>\d*))?(?:/[\w.~%:+/-]*)?",
    re.ASCII | re.IGNORECASE,
)


# ------------------------------------------------------------------------- questions


def ask(template: str, prompt: Prompt | str | list, **texts: str) -> str:
    """A question about a request and responses, as the text of one user message."""
    if not isinstance(prompt, Prompt):
        prompt = Prompt.of(prompt)
    parts = {"request": transcript(prompt.turns), **texts}
    return template.format(**{name: without_blank_lines(text) for name, text in parts.items()})


def without_blank_lines(text: str) -> str:
    """Chat formats begin a turn after a blank line, so a quoted text cannot begin one."""
    return re.sub(r"\n\s*\n", "\n", text).strip()


def read_constitution(spec: str = "") -> list[str]:
    """Principles from a file, one a paragraph, or from a module's PRINCIPLES. Default: ours."""
    if spec and world.find(spec):
        return list(world.load(spec, "--constitution", "PRINCIPLES").PRINCIPLES)
    try:
        text = Path(spec or CONSTITUTION).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--constitution {spec}: {error}; give a UTF-8 text or a module") from None
    text = re.sub(r"(?m)^#.*\n?", "", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    principles = [paragraph for paragraph in paragraphs if paragraph]
    if not principles:
        raise UserError(
            f"--constitution {spec} is empty: write principles, a blank line between two"
        )
    return principles


# ------------------------------------------------------------------------- judges


class LocalModel:
    """A model folder. Its answer is None if it does not fit the context or does not end."""

    def __init__(self, folder: str, seed: int = 0, device: str = "auto", dtype: str = "auto"):
        self.model = open_model(GPT, folder, device, dtype)
        self.seed = seed
        turns = Prompt.of("A or B?").turns
        a, b = (self.model.tokenizer.encode_response(turns, letter) for letter in "AB")
        first = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
        self.common = a[:first]  # ids with which both answers begin
        self.letters = [a[first], b[first]]

    def prefer(self, questions: list[str]) -> Iterator[float | None]:
        """P(A) / (P(A) + P(B)) for each question."""
        tokenizer, limit = self.model.tokenizer, self.model.config.n_positions
        for start in range(0, len(questions), 128):
            turns = [Prompt.of(question).turns for question in questions[start : start + 128]]
            rows = [tokenizer.encode_prompt(question) + self.common for question in turns]
            fitting = [i for i, row in enumerate(rows) if len(row) <= limit]
            answers: list[float | None] = [None] * len(rows)
            lengths = [len(rows[i]) for i in fitting]
            for part in micro_batches(lengths, rollout.TOKENS_AT_ONCE):
                indices = [fitting[i] for i in part]
                preferences = self._prefer_rows([rows[i] for i in indices])
                for i, preference in zip(indices, preferences):
                    answers[i] = preference
            yield from answers

    @torch.no_grad()
    def _prefer_rows(self, rows: list[list[int]]) -> list[float | None]:
        tokens, lengths = (x.to(self.model.device) for x in pad(rows))  # (B, T), (B,)
        hidden = self.model.hidden(tokens)  # (B, T, D)
        last = hidden[torch.arange(len(rows), device=hidden.device), lengths - 1]  # (B, D)
        logprobs = self.model.log_softmax(last)[:, self.letters]  # (B, 2)
        preferences = logprobs.softmax(1)[:, 0].tolist()
        masses = logprobs.exp().sum(1).tolist()
        return [p if mass >= LEAST_MASS else None for p, mass in zip(preferences, masses)]

    def say(self, prompts: list[Prompt], max_tokens: int, temperature: float) -> Iterator:
        """A response to each prompt, or None."""
        encode, device = self.model.tokenizer.encode_prompt, self.model.device
        room = self.model.config.n_positions - max_tokens
        for start in range(0, len(prompts), 64):
            chunk = prompts[start : start + 64]
            seed = seed_of(self.seed, "say", chunk[0].source)
            generator = torch.Generator(device).manual_seed(seed)
            fitting = [prompt for prompt in chunk if len(encode(prompt.turns)) <= room]
            answers = {}
            if fitting:
                batch = rollout.sample(
                    self.model, fitting, max_tokens, generator, temperature=temperature
                )
                for i in batch.finished.nonzero()[:, 0].tolist():
                    answers[batch.prompts[i]] = batch.responses[i]
            for prompt in chunk:
                yield answers.get(prompt)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key along to whatever host a server names."""

    def redirect_request(self, request, file, code, message, headers, target):
        host = re.sub("//[^/]*@", "//", target)
        raise UserError(
            f"{request.full_url} redirects to {host}, and no redirect is followed: give the URL that "
            "the endpoint has now, if you trust that host"
        )


class Endpoint:
    """An OpenAI-compatible chat API: Ollama, llama.cpp, vLLM, ..."""

    def __init__(self, url: str, model: str, seed: int = 0):
        parts = ENDPOINT_URL.fullmatch(url)
        if not parts or not 0 < int(parts["port"] or 80) < 65536:
            raise UserError(
                "the endpoint's URL cannot be used: write it as https://HOST:PORT/v1, "
                "and a key into the environment variable OPENAI_API_KEY"
            )
        self.url = url.rstrip("/") + "/chat/completions"
        self.model = model
        self.seed = seed
        self.stop = threading.Event()
        local = is_this_machine(parts["host"].strip("[]"))
        encrypted = parts["scheme"].lower() == "https"
        self.key = read_key(may_be_sent=local or encrypted)
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
        wait = BACK_OFF
        for _ in range(TRIES):
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
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if self.stop.wait(wait):
                break
            wait *= 2
        raise UserError(
            f"{self.url} failed {TRIES} times ({problem}): is the server running? The same command "
            "goes on from here"
        )

    def _quote(self, reply: bytes) -> str:
        """The beginning of a server's reply. Some servers repeat the key that they refuse."""
        text = reply.decode(errors="replace")
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
        return self._in_order(self._prefer_one, questions)

    def _prefer_one(self, question: str) -> float | None:
        answer = self.chat(Prompt.of(question).turns, temperature=0, max_tokens=1024) or ""
        start = r"(?:(?:the )?(?:answer|response|option)(?: is)?\W+)?"
        letter = re.fullmatch(rf"\W*{start}([ab])\W*", answer.lower())
        return float(letter[1] == "a") if letter else None

    def say(self, prompts: list[Prompt], max_tokens: int, temperature: float) -> Iterator:
        """A response to each prompt, or None."""

        def answer(prompt: Prompt) -> str | None:
            return self.chat(prompt.turns, max_tokens=max_tokens, temperature=temperature) or None

        return self._in_order(answer, prompts)


def is_this_machine(host: str) -> bool:
    name = host.lower().removesuffix(".")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def read_key(may_be_sent: bool) -> str:
    """OPENAI_API_KEY, empty if there is none."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", key):
        raise UserError(
            "the environment variable OPENAI_API_KEY holds a space, a line break or a character "
            "beyond ASCII: copy the key again, or unset it"
        )
    if key and not may_be_sent and os.environ.get("MINIRLHF_KEY_OVER_HTTP") != "1":
        raise UserError(
            "OPENAI_API_KEY would go over plain http, where others can read it: take an https URL, "
            "unset the key, or set MINIRLHF_KEY_OVER_HTTP=1 to send it all the same"
        )
    return key


def answer_in(reply: bytes) -> str | None:
    choice = json.loads(reply)["choices"][0]
    text = choice["message"]["content"]
    if choice.get("finish_reason") == "length":
        return None
    return re.sub(r"(?s)^\s*<think>.*?</think>", "", text).strip()


def load(
    spec: str, name: str = "", seed: int = 0, device: str = "auto", dtype: str = "auto"
) -> LocalModel | Endpoint:
    """spec: a model folder, or an endpoint's URL; name: of the model at the endpoint."""
    is_url = re.match("https?://", spec, re.IGNORECASE)
    if not spec or (is_url and not name):
        raise UserError(
            "an AI needs --judge FOLDER, or --judge URL with --judge_model NAME "
            "(examples/revise.py: --init, --model)"
        )
    if is_url:
        return Endpoint(spec, name, seed)
    return LocalModel(spec, seed, device, dtype)


# ------------------------------------------------------------------------- ranking


def counted(answers: Iterable, count: Counter) -> Iterator:
    """The same answers. Counts all, and those that are None as unusable."""
    for answer in answers:
        count["all"] += 1
        count["unusable"] += answer is None
        if count["unusable"] == count["all"] == HOPELESS:
            raise UserError(
                f"the first {HOPELESS} answers are all unusable: the model does not understand the "
                "question, or the texts do not fit its context; take another model (for the toy "
                "world one of train_sft.py --data toyworld.lessons)"
            )
        yield answer


def annotate(
    candidates: list[Candidate],
    out: str | Path,
    judge: LocalModel | Endpoint,
    principles: list[str],
    seed: int = 0,
    name: str = "ai",
) -> None:
    """Append a ranking for each candidate as the answers come.

    Equal texts tie unasked. A prompt with a response that was never judged is left out.
    """
    drawn, questions = [], []
    for candidate in candidates:
        principle = random.Random(repr((seed, candidate.id))).choice(principles)
        drawn.append(principle)
        for a, b in combinations(candidate.responses, 2):
            if a != b:
                about = {"prompt": candidate.prompt, "principle": principle}
                questions += [ask(JUDGE, **about, a=a, b=b), ask(JUDGE, **about, a=b, b=a)]
    count, ranked = Counter(), 0
    answers = counted(judge.prefer(questions), count)
    for candidate, principle in zip(candidates, drawn):
        responses = candidate.responses
        preferences = [[None] * len(responses) for _ in responses]
        asked = []
        for i, j in combinations(range(len(responses)), 2):
            once = swapped = 0.5
            if responses[i] != responses[j]:
                once, swapped = next(answers), next(answers)
                asked.append([i, j, once, swapped])
            if once is not None and swapped is not None:
                preferences[i][j] = (once + 1 - swapped) / 2
                preferences[j][i] = (swapped + 1 - once) / 2
        known = [[p for p in row if p is not None] for row in preferences]
        if all(known):
            ranks = rank_by([sum(row) / len(row) for row in known])
            more = {"principle": principle, "preferences": preferences, "asked": asked}
            append_ranking(out, candidate, ranks, name, sync=False, **more)
            ranked += 1
    print(
        f"{ranked} of {len(candidates)} prompts ranked, "
        f"{count['unusable']} of {count['all']} answers unusable"
    )
