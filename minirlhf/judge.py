"""An AI that ranks responses by written principles, as in RLAIF and Constitutional AI (Bai et al. 2022, section 4.1).

A judge is a model folder of this project, or the URL of an OpenAI-compatible endpoint. Shown a principle and two responses A
and B, it prefers A by P(A) / (P(A) + P(B)) (an endpoint by its answer, 1 or 0). Each pair of responses is asked about in both
orders and averaged, against a liking for what stands first; a response ranks by its mean chance of winning. Its records add

    "preferences"   [i][j]: the chance that response i is better than j; null on the diagonal and without a usable answer
    "asked"         [[i, j, preference for A with i as A, the same with j as A], ...], for feedback.position_bias
    "principle"     what it judged by, drawn from the constitution by (seed, id)
"""
import http.client
import ipaddress
import json
import os
import random
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, islice
from pathlib import Path

import torch

from minirlhf import UserError, feedback, rollout
from minirlhf.data import micro_batches, pad
from minirlhf.labelserver import turns
from minirlhf.model import GPT
from minirlhf.questions import JUDGE, ask
from minirlhf.run import pick_autocast, pick_device, seed_of
from minirlhf.tokenizer import ASSISTANT

ROLES = {"human": "user", "assistant": "assistant", "text": "system"}
TRIES, BACK_OFF, TIMEOUT, AT_ONCE = 6, 0.5, 120.0, 8      # of requests to an endpoint: seconds twice; how many in parallel
HOPELESS = 20                                             # so many unusable answers, and no usable one before them, are an error


def read_constitution(path: str) -> list[str]:
    """The principles, one a paragraph (lines that begin with # are left out); "toy": those that the toy world's model learns."""
    if path == "toy":
        from minirlhf.toyjudge import PRINCIPLES
        return list(PRINCIPLES)
    try:
        text = re.sub(r"(?m)^#.*\n?", "", Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--constitution {path}: {getattr(error, 'strerror', None) or error}; give a UTF-8 text, or toy") from None
    if not (principles := [" ".join(p.split()) for p in re.split(r"\n\s*\n", text) if p.strip()]):
        raise UserError(f"--constitution {path} holds no principle: write them as paragraphs, a blank line between two")
    return principles


class LocalModel:
    """A model folder. What does not fit its context, or does not come to an end, is None."""

    def __init__(self, folder: str, seed: int = 0, device: str = "auto", dtype: str = "auto"):
        self.device, self.seed = pick_device(device), seed
        self.model = GPT.from_pretrained(folder).to(self.device).requires_grad_(False)
        self.model.autocast_dtype = pick_autocast(dtype, self.device)
        a, b = (self.model.tokenizer.encode_response(ASSISTANT, x) for x in "AB")
        at = next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)               # the token that tells them apart
        self.lead, self.choice = a[:at], [a[at], b[at]]

    @torch.no_grad()
    def prefer(self, questions: Iterable[str]) -> Iterator[float | None]:
        """P(A) / (P(A) + P(B)) for each; None also where the two have less than 5 % of the probability between them."""
        questions, limit = iter(questions), self.model.config.n_positions
        while some := list(islice(questions, 128)):
            rows = [self.model.tokenizer.encode_prompt(q) + self.lead for q in some]
            answers: list[float | None] = [None] * len(rows)
            for part in micro_batches([min(len(row), limit) for row in rows], rollout.TOKENS_AT_ONCE):
                tokens, lengths = (x.to(self.device) for x in pad([rows[i][:limit] for i in part]))          # (B, T), (B,)
                last = self.model.hidden(tokens)[torch.arange(len(part), device=self.device), lengths - 1]   # (B, D)
                logp = self.model.log_softmax(last)[:, self.choice]                                          # (B, 2)
                for i, p, mass in zip(part, logp.softmax(1)[:, 0].tolist(), logp.exp().sum(1).tolist()):
                    answers[i] = p if mass >= 0.05 and len(rows[i]) <= limit else None
            yield from answers

    def say(self, prompts: Iterable[str], max_tokens: int, temperature: float) -> Iterator[str | None]:
        prompts, room = iter(prompts), self.model.config.n_positions - max_tokens
        while some := list(islice(prompts, 64)):
            fit = [p for p in dict.fromkeys(some) if len(self.model.tokenizer.encode_prompt(p)) <= room]
            generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, "say", some[0]))
            batch = rollout.sample(self.model, fit, max_tokens, generator, temperature=temperature) if fit else None
            said = {p: r for p, r, whole in zip(fit, batch.responses, batch.finished) if whole} if fit else {}
            yield from map(said.get, some)


def is_this_machine(host: str) -> bool:
    """Whether the name or address of a host is this machine's own."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:                                    # any other name
        return False


def checked_url(url: str) -> urllib.parse.SplitResult:
    """The parts of an endpoint's URL. UserError for secrets in it, and for what could be read as another host."""
    if re.search("[@?#]", url):                           # not shown: a password or a key may stand there
        raise UserError("the endpoint's URL holds one of @ ? #: write it as https://HOST:PORT/v1, without user name, password "
                        "and query; a key goes into the environment variable OPENAI_API_KEY")
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.port != 0                          # a port that is none raises ValueError
    except ValueError:
        usable = False
    host = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"
    if not usable or not re.fullmatch(rf"(?i:https?)://({host})(:\d+)?(/[!-\[\]-~]*)?", url):
        raise UserError(f"the endpoint's URL {url!r} cannot be used: write it as https://HOST:PORT/v1, without spaces, "
                        "backslashes and letters beyond ASCII")
    return parts


def api_key(parts: urllib.parse.SplitResult) -> str:
    """OPENAI_API_KEY, "" where there is none. UserError if it cannot be sent, or could be read on its way to the endpoint."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key and not re.fullmatch("[!-~]+", key):
        raise UserError("the environment variable OPENAI_API_KEY holds a line break, a space or a character beyond ASCII: "
                        "copy the key again, or unset it if the endpoint needs none")
    in_the_open = parts.scheme == "http" and not is_this_machine(parts.hostname)
    if key and in_the_open and os.environ.get("MINIRLHF_KEY_OVER_HTTP") != "1":
        raise UserError(f"OPENAI_API_KEY would go to {parts.hostname} over plain http, where others can read it: take an "
                        "https URL, unset the key if the endpoint needs none, or set the environment variable "
                        "MINIRLHF_KEY_OVER_HTTP=1 to send it all the same")
    return key


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would take the key along to whatever host a server names, and turn the question into a GET."""

    def redirect_request(self, request, file, code, message, headers, target):
        parts = urllib.parse.urlsplit(target)
        host = parts.netloc.rpartition("@")[2]
        raise UserError(f"{request.full_url} redirects to {parts.scheme}://{host}, and no redirect is followed, as the key "
                        "would go along: if you trust that host, give its URL instead")


class Endpoint:
    """An OpenAI-compatible chat API (Ollama, llama.cpp, vLLM, ...), AT_ONCE requests in parallel, answers in order."""

    def __init__(self, url: str, model: str, seed: int = 0):
        parts = checked_url(url)
        self.url, self.model, self.seed, self.stop = url.rstrip("/") + "/chat/completions", model, seed, threading.Event()
        self.key = api_key(parts)
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key or 'none'}"}
        handlers = [NoRedirects()]
        if is_this_machine(parts.hostname):               # no proxy stands before it
            handlers.append(urllib.request.ProxyHandler({}))
        self.opener = urllib.request.build_opener(*handlers)

    def without_key(self, text: str) -> str:
        """What a server said, for a message: some repeat the key that they refuse."""
        if self.key:
            text = text.replace(self.key, "(the key)")
        return text[:200].strip()

    def chat(self, prompt: str, **options) -> str | None:
        """The answer; None if cut short. A busy server, its errors and broken connections are tried again, ever later."""
        messages = [{"role": ROLES[turn["role"]], "content": turn["text"]} for turn in turns(prompt)]
        body, wait, raw = {"model": self.model, "messages": messages, "seed": self.seed, **options}, BACK_OFF, b""
        check = f"check the URL, which often ends in /v1, the name of the model ({self.model}) and OPENAI_API_KEY"
        for left in reversed(range(TRIES)):
            try:
                request = urllib.request.Request(self.url, json.dumps(body).encode(), self.headers)
                with self.opener.open(request, timeout=TIMEOUT) as reply:
                    raw = reply.read()
                choice = json.loads(raw)["choices"][0]
                text = re.sub(r"(?s)^\s*<think>.*?</think>", "", choice["message"]["content"]).strip()
                return None if choice.get("finish_reason") == "length" else text
            except urllib.error.HTTPError as error:
                said = error.read(2000).decode(errors="replace").strip()
                problem = self.without_key(f"{error.code} {error.reason}: {said}")
                if error.code not in (408, 429) and error.code < 500:
                    raise UserError(f"{self.url} refuses ({problem}): {check}") from None
                later = error.headers.get("Retry-After") or ""
                wait = max(wait, min(float(later), 60.0)) if later.isdigit() else wait
            except (ValueError, LookupError, TypeError, AttributeError):
                said = self.without_key(raw.decode(errors="replace"))[:100]
                raise UserError(f"{self.url} does not answer as an OpenAI-compatible API, but {said!r}: {check}") from None
            except (OSError, http.client.HTTPException) as error:           # down, reset, cut off, too slow
                problem = self.without_key(str(getattr(error, "reason", "") or error or type(error).__name__))
            if not left or self.stop.wait(wait):
                break
            wait *= 2
        raise UserError(f"{self.url} failed {TRIES} times ({problem}): is the server running? The same command goes on from here")

    def in_order(self, function, items: Iterable) -> Iterator:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            yield from pool.map(function, items)
        finally:                                         # after an error, or Ctrl-C: do not wait through all the others
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            self.stop.clear()

    def prefer(self, questions: Iterable[str]) -> Iterator[float | None]:
        """1 for A, 0 for B, None for any other answer."""
        def one(question: str) -> float | None:
            answer = (self.chat(question, temperature=0, max_tokens=1024) or "").lower()
            letter = re.fullmatch(r"\W*(?:(?:the )?(?:answer|response|option)(?: is)?\W+)?([ab])\W*", answer)
            return float(letter[1] == "a") if letter else None
        return self.in_order(one, questions)

    def say(self, prompts: Iterable[str], max_tokens: int, temperature: float) -> Iterator[str | None]:
        return self.in_order(lambda p: self.chat(p, temperature=temperature, max_tokens=max_tokens) or None, prompts)


def load(spec: str, name: str = "", seed: int = 0, device: str = "auto", dtype: str = "auto") -> LocalModel | Endpoint:
    """A model folder, or an endpoint's URL and the model's name there -> what can `prefer` and `say`."""
    remote = re.match("https?://", spec, re.IGNORECASE)
    if not spec or (remote and not name):
        raise UserError("an AI needs --judge FOLDER, or --judge URL with --judge_model NAME (revise.py: --init, --model)")
    return Endpoint(spec, name, seed) if remote else LocalModel(spec, seed, device, dtype)


def counted(answers: Iterable, count: Counter) -> Iterator:
    """The answers, None among them counted; UserError if the first HOPELESS are all None."""
    for answer in answers:
        count.update(all=1, unusable=answer is None)
        if count["unusable"] == count["all"] == HOPELESS:
            raise UserError(f"the first {HOPELESS} answers are all unusable: the model does not understand the question, or the "
                            "texts do not fit its context; take another (in the toy world one of train_sft.py --data toy+judge)")
        yield answer


def annotate(candidates: list[dict], out: str | Path, judge, principles: list[str], seed: int = 0, name: str = "ai") -> None:
    """Candidates -> rankings, appended to `out` as they come; a prompt with a response that was never judged is left out."""
    plan = [(c, random.Random(repr((seed, c["id"]))).choice(principles), c["responses"]) for c in candidates]
    questions = (ask(JUDGE, c["prompt"], principle=principle, a=a, b=b) for c, principle, texts in plan
                 for x, y in combinations(texts, 2) if x != y for a, b in ((x, y), (y, x)))        # equal texts tie unasked
    count, ranked = Counter(), 0
    answers = counted(judge.prefer(questions), count)
    for c, principle, texts in plan:
        asked, matrix = [], [[None] * len(texts) for _ in texts]
        for i, j in combinations(range(len(texts)), 2):
            p, q = (next(answers), next(answers)) if texts[i] != texts[j] else (0.5, 0.5)
            asked.append([i, j, p, q])
            if None not in (p, q):
                matrix[i][j], matrix[j][i] = (p + 1 - q) / 2, (q + 1 - p) / 2
        if all(known := [[p for p in row if p is not None] for row in matrix]):
            ranks = feedback.rank_by([sum(row) / len(row) for row in known])
            feedback.append_ranking(out, c, ranks, name, sync=False, principle=principle, preferences=matrix, asked=asked)
            ranked += 1
    print(f"{ranked} of {len(candidates)} prompts ranked, {count['unusable']} of {count['all']} answers unusable")
