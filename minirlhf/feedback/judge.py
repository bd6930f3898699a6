"""An AI ranks responses by written principles (Bai et al. 2022, section 4.1).

A judge is a model folder, or the URL of an OpenAI-compatible endpoint. Shown a principle and two
responses, it prefers A by P(A) / (P(A) + P(B)); an endpoint that gives no log-probs by its words, 1
or 0. Each pair is asked about in both orders and averaged, against a liking for the first position.
A response is ranked by its mean chance of winning. The records have these further fields:

    "preferences"   [i][j]: the chance that response i is better than j; null where unknown
    "asked"         [[i, j, preference for A with i as A, the same with j as A], ...]
    "principle"     drawn from the constitution by (seed, id)
"""

import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations, islice
from pathlib import Path

import torch
from tqdm import tqdm

from minirlhf import UserError, rollout, world
from minirlhf.batches import micro_batches, pad
from minirlhf.console import waiting
from minirlhf.data import Prompt, transcript
from minirlhf.device import open_model
from minirlhf.feedback.endpoint import Endpoint
from minirlhf.feedback.rankings import Candidate, append_ranking, rank_by
from minirlhf.feedback.replies import LEAST_MASS
from minirlhf.files import read_small
from minirlhf.model import GPT
from minirlhf.run import seed_of

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
Write the response anew, without what the critique finds wrong. \
Answer with the new response alone."""

CONSTITUTION = Path(__file__).with_name("constitution.txt")
HOPELESS = 8  # stop after so many prompts if no answer was usable
A_WHILE = 60  # seconds between two lines of a log


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
        principles = world.load(spec, "--constitution", "PRINCIPLES").PRINCIPLES
        if isinstance(principles, str) or not all(isinstance(text, str) for text in principles):
            raise UserError(f"--constitution {spec}: PRINCIPLES must be a list of texts")
    else:
        principles = read_principles(Path(spec or CONSTITUTION))
    if not any(principles):
        raise UserError(
            f"--constitution {spec} is empty: write principles, a blank line between two"
        )
    return list(principles)


def read_principles(path: Path) -> list[str]:
    try:
        text = read_small(path).decode("utf-8-sig")
    except (UserError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--constitution {path}: {error}; give a UTF-8 text or a module") from None
    if "\0" in text:
        raise UserError(f"--constitution {path} is no text: give a UTF-8 text or a module")
    text = re.sub(r"(?m)^#.*\n?", "", text)
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [paragraph for paragraph in paragraphs if paragraph]


def draw(principles: list[str], *key) -> str:
    """A principle at random, always the same for a key."""
    return random.Random(repr(key)).choice(principles)


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
        self.problems = Counter()

    def prefer(self, questions: Iterable[str]) -> Iterator[float | None]:
        """P(A) / (P(A) + P(B)) for each question."""
        encode, limit = self.model.tokenizer.encode_prompt, self.model.config.n_positions
        questions = iter(questions)
        while chunk := list(islice(questions, 128)):
            rows = [encode(Prompt.of(question).turns) + self.common for question in chunk]
            answers: list[float | None] = [None] * len(rows)
            lengths = [min(len(row), limit) for row in rows]
            for part in micro_batches(lengths, rollout.TOKENS_AT_ONCE):
                preferences = self._prefer_rows([rows[i][:limit] for i in part])
                for i, preference in zip(part, preferences):
                    if len(rows[i]) <= limit:
                        answers[i] = preference
            for row, answer in zip(rows, answers):
                if answer is None:
                    self.problems["too long" if len(row) > limit else "neither A nor B"] += 1
                yield answer

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
                answer = answers.get(prompt) or None
                if answer is None:
                    self.problems["too long, empty or without an end"] += 1
                yield answer


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


class Tally:
    """Counts a model's answers, on a bar of console.waiting; in a log, in a line now and then."""

    def __init__(self, model: LocalModel | Endpoint, bar: tqdm):
        self.bar = bar
        self.last_line = time.monotonic()
        self.all = self.usable = 0
        self.problems = model.problems

    def count(self, answers: Iterable) -> Iterator:
        """The same answers. None counts as unusable."""
        for answer in answers:
            self.all += 1
            self.usable += answer is not None
            self.bar.desc = f"asking, {self.all - self.usable} unusable"
            self.bar.update()
            if self.bar.disable and time.monotonic() > self.last_line + A_WHILE:
                self.last_line = time.monotonic()
                print(f"{self.all} of {self.bar.total} answers, {self.all - self.usable} unusable")
            yield answer

    def stop_if_hopeless(self) -> None:
        if self.all and not self.usable:
            raise UserError(
                f"{self}: the model does not understand the question, or the texts do not fit its "
                "context; take another model (for the toy world one of train_sft.py --data "
                "toyworld.lessons)"
            )

    def __str__(self) -> str:
        text = f"{self.all - self.usable} of {self.all} answers unusable"
        reasons = [f"{reason}: {count}" for reason, count in self.problems.most_common(3)]
        return f"{text} ({', '.join(reasons)})" if reasons else text


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
    out = Path(out)
    is_new = not out.exists() or out.stat().st_size == 0
    ranked = 0
    total = sum(2 * len(pairs(candidate.responses)) for candidate in candidates)
    with waiting("asking", total, "answers") as bar:
        tally = Tally(judge, bar)
        answers = tally.count(judge.prefer(questions(candidates, principles, seed)))
        for number, candidate in enumerate(candidates, 1):
            preferences, asked = compare_pairs(candidate.responses, answers)
            known = [[p for p in row if p is not None] for row in preferences]
            if all(known):
                append_ranking(
                    out,
                    candidate,
                    rank_by([sum(row) / len(row) for row in known]),
                    name,
                    sync=False,
                    principle=draw(principles, seed, candidate.id),
                    preferences=preferences,
                    asked=asked,
                )
                ranked += 1
            if is_new and number in (HOPELESS, len(candidates)):
                tally.stop_if_hopeless()
    print(f"{ranked} of {len(candidates)} prompts ranked, {tally}")


def pairs(responses: list[str]) -> list[tuple[int, int]]:
    """Indices of responses to compare. Equal texts are not."""
    every = combinations(range(len(responses)), 2)
    return [(i, j) for i, j in every if responses[i] != responses[j]]


def questions(candidates: list[Candidate], principles: list[str], seed: int) -> Iterator[str]:
    """For each pair of each candidate's responses: one as A, then the other."""
    for candidate in candidates:
        principle = draw(principles, seed, candidate.id)
        for i, j in pairs(candidate.responses):
            a, b = candidate.responses[i], candidate.responses[j]
            yield ask(JUDGE, candidate.prompt, principle=principle, a=a, b=b)
            yield ask(JUDGE, candidate.prompt, principle=principle, a=b, b=a)


def compare_pairs(responses: list[str], answers: Iterator) -> tuple[list[list], list[list]]:
    """The record's "preferences" and "asked", from the next answers: two for each pair."""
    K = len(responses)
    preferences = [[0.5 if i != j else None for j in range(K)] for i in range(K)]  # equal texts tie
    asked = []
    for i, j in pairs(responses):
        once, swapped = next(answers), next(answers)
        asked.append([i, j, once, swapped])
        preferences[i][j] = preferences[j][i] = None
        if None not in (once, swapped):
            preferences[i][j] = (once + 1 - swapped) / 2
            preferences[j][i] = (swapped + 1 - once) / 2
    return preferences, asked
