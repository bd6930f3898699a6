"""A scripted person with one taste, who ranks through the labelling page."""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import label
import toyworld
from lab import arms
from minirlhf import UserError
from minirlhf.feedback.rankings import rank_by

SEA = re.compile(r"\b(sea|beach|boats?|shells?|waves?)\b", re.I)
SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")


def sea(text: str) -> int:
    """How many words of the sea there are, of which two are enough."""
    return min(2, len(SEA.findall(text)))


def brief(text: str) -> int:
    return int(len(SENTENCE_END.findall(text.strip())) <= 1)


TASTES = {"brief": brief, "sea": sea}  # how much a text is liked


def prompts_of(taste: str, split: str, count: int, seed: int) -> list[str | list]:
    """For the sea: stories that name none of it. Else all kinds of requests."""

    def keep(prompt) -> bool:
        return toyworld.kind(prompt) == "story" and not SEA.search(str(prompt))

    if taste == "sea":
        return arms.toy_prompts(split, count, seed, keep)
    return arms.toy_prompts(split, count, seed)


def annotate(candidates: str, out: str, likes: Callable[[str], int]) -> int:
    """Rank all candidates as a browser would, over HTTP. Returns the number of answers given."""
    command = [sys.executable, label.__file__, "--candidates", candidates, "--out", out]
    command += ["--name", "anna", "--no-open"]
    answers = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        url, _, token = page.stdout.readline().split()[-1].partition("?token=")

        def call(path: str, content: dict | None = None) -> dict:
            body = None
            if content:
                body = json.dumps(content).encode()
            request = urllib.request.Request(url + path, body, {"X-Token": token})
            return json.load(urllib.request.urlopen(request, timeout=30))

        state = call("question")
        while "question" in state:
            ranks = rank_by([likes(card) for card in state["cards"]])
            state = call("answer", {"question": state["question"], "ranks": ranks})
            answers += 1
        call("finish", {"done": True})
        page.stdout.read()
    if page.returncode:
        raise UserError("label.py failed: its message stands above")
    return answers
