"""An AI ranks responses by written principles (Bai et al. 2022, section 4.1).

A judge is a model folder, or the URL of an OpenAI-compatible endpoint. Shown a principle and two
responses, a model folder prefers A by P(A) / (P(A) + P(B)), an endpoint by its answer, 1 or 0. Each
pair is asked about in both orders and averaged, against a liking for the first position. A response
is ranked by its mean chance of winning. The records have these further fields:

    "preferences"   [i][j]: the chance that response i is better than j; null where unknown
    "asked"         [[i, j, preference for A with i as A, the same with j as A], ...]
    "principle"     drawn from the constitution by (seed, id)
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import torch

from minirlhf import UserError, rollout, world
from minirlhf.batches import micro_batches, pad
from minirlhf.data import Prompt, transcript
from minirlhf.device import open_model
from minirlhf.feedback.endpoint import Endpoint
from minirlhf.feedback.rankings import Candidate, append_ranking, rank_by
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
LEAST_MASS = 0.05  # probability that A and B must have between them to count as an answer
HOPELESS = 20  # stop if so many answers come first and none is usable


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
        limit = self.model.config.n_positions
        for start in range(0, len(questions), 128):
            prompts = [Prompt.of(question) for question in questions[start : start + 128]]
            rows = [self.model.tokenizer.encode_prompt(p.turns) + self.common for p in prompts]
            answers: list[float | None] = [None] * len(rows)
            lengths = [min(len(row), limit) for row in rows]
            for part in micro_batches(lengths, rollout.TOKENS_AT_ONCE):
                preferences = self._prefer_rows([rows[i][:limit] for i in part])
                for i, preference in zip(part, preferences):
                    if len(rows[i]) <= limit:
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
    principle_of, questions = {}, []
    for candidate in candidates:
        principle = random.Random(repr((seed, candidate.id))).choice(principles)
        principle_of[candidate.id] = principle
        for a, b in combinations(candidate.responses, 2):
            if a != b:
                questions.append(ask(JUDGE, candidate.prompt, principle=principle, a=a, b=b))
                questions.append(ask(JUDGE, candidate.prompt, principle=principle, a=b, b=a))
    count, ranked = Counter(), 0
    answers = counted(judge.prefer(questions), count)
    for candidate in candidates:
        preferences, asked = compare_pairs(candidate.responses, answers)
        known = [[p for p in row if p is not None] for row in preferences]
        if all(known):
            append_ranking(
                out,
                candidate,
                rank_by([sum(row) / len(row) for row in known]),
                name,
                sync=False,
                principle=principle_of[candidate.id],
                preferences=preferences,
                asked=asked,
            )
            ranked += 1
    print(
        f"{ranked} of {len(candidates)} prompts ranked, "
        f"{count['unusable']} of {count['all']} answers unusable"
    )


def compare_pairs(responses: list[str], answers: Iterator) -> tuple[list[list], list[list]]:
    """The record's "preferences" and "asked", from the next answers: two for each pair."""
    preferences = [[None] * len(responses) for _ in responses]
    asked = []
    for i, j in combinations(range(len(responses)), 2):
        once = swapped = 0.5
        if responses[i] != responses[j]:
            once, swapped = next(answers), next(answers)
            asked.append([i, j, once, swapped])
        if None not in (once, swapped):
            preferences[i][j] = (once + 1 - swapped) / 2
            preferences[j][i] = (swapped + 1 - once) / 2
    return preferences, asked
