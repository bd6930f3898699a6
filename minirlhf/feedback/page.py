"""The ranking page: the questions of one sitting, asked by page.html.

Every answer is on the disk before the next question goes out. An answer given twice counts once:
double clicks, second tabs, reloads and restarts neither lose a ranking nor write it twice. Who
takes an answer back gives another one, whose record replaces the first; nothing is deleted.
"""

import hashlib
import random
import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from minirlhf import UserError
from minirlhf.feedback.rankings import Candidate, append_ranking, open_rankings
from minirlhf.files import to_json

REPEATS = 0.1  # share of prompts that come twice


@dataclass(frozen=True)
class Question:
    candidate: Candidate
    repeat: bool  # the prompt comes the second time
    cards: list[str]  # the different responses in blind order

    @property
    def id(self) -> tuple[str | int, bool]:
        return self.candidate.id, self.repeat

    def key(self) -> str:
        """Its name on the page. It stands for all that is shown, so that an answer from a page
        which an earlier label.py served is either to this question or to none."""
        shown = [*self.id, self.candidate.prompt.source, self.cards]
        return hashlib.blake2b(to_json(shown).encode(), digest_size=12).hexdigest()


def plan(candidates: list[Candidate], rng: random.Random) -> list[Question]:
    """Prompts whose responses are all equal are left out. A tenth of the prompts come a second
    time, about a dozen questions later, in another order."""
    different = [c for c in candidates if len(set(c.responses)) > 1]
    repeated = set(rng.sample(range(len(different)), round(REPEATS * len(different))))
    questions = []  # (when, question)
    for i, candidate in enumerate(different):
        texts = list(dict.fromkeys(candidate.responses))
        cards = again = rng.sample(texts, len(texts))
        questions.append((i, Question(candidate, False, cards)))
        if i in repeated:
            while again == cards:
                again = rng.sample(texts, len(texts))
            questions.append((i + 8 + 8 * rng.random(), Question(candidate, True, again)))
    questions.sort(key=lambda question: question[0])
    return [question for _, question in questions]


class Sitting:
    """The questions for one annotator, in an order fixed by (seed, name). Thread-safe.

    Nothing else writes to the file of rankings as long as the sitting lasts.
    guidelines: a text that the page shows. next_step: what to do after the last answer.
    """

    page = "page.html"

    def __init__(
        self,
        candidates: list[Candidate],
        out: str | Path,
        name: str = "person",
        seed: int = 0,
        guidelines: str = "",
        next_step: str = "",
    ):
        self.out = Path(out)
        self.name = name
        self.guidelines = guidelines
        self.next_step = next_step
        self.lock = threading.RLock()
        self.finished = threading.Event()
        questions = plan(candidates, random.Random(f"{seed}/{name}"))
        self.questions = {question.key(): question for question in questions}
        self.records = {}  # what was asked -> the last record, in the order of the first answers
        for record in open_rankings(self.out, candidates):
            if record.get("annotator") == name:
                self.records[record["id"], record.get("repeat", False)] = record
        self.shown: dict[str, float] = {}  # question -> when it was shown in this sitting

    def respond(self, request: str, content: dict) -> dict | None:
        if request == "GET /guidelines":
            return {"guidelines": self.guidelines}
        if request == "GET /question":
            return self.question()
        if request == "POST /back":
            return self.back(**content)
        if request == "POST /answer":
            saved = self.answer(**content)
            return self.question() | {"saved": saved}
        if request == "POST /finish":
            self.finished.set()
            return self.progress(self._left()) | {"next": self.next_step}
        return None

    def _left(self) -> list[str]:
        """The questions that are left. A skipped prompt does not come a second time."""
        left = []
        for key, question in self.questions.items():
            if question.id in self.records:
                continue
            first = self.records.get((question.candidate.id, False), {})
            if not (question.repeat and first.get("skipped")):
                left.append(key)
        return left

    def progress(self, left: list[str]) -> dict:
        """rate: answers a minute, by the last twenty."""
        newest_first = (record.get("seconds") for record in reversed(self.records.values()))
        seconds = list(islice((time for time in newest_first if type(time) is float), 20))
        rate = round(60 / max(0.1, median(seconds)), 1) if seconds else None
        return {"done": len(self.records), "left": len(left), "rate": rate}

    def question(self) -> dict:
        """Progress, and unless all are answered the next question with its turns and cards."""
        with self.lock:
            left = self._left()
            state = self.progress(left)
            if not left:
                return state
            self.shown.setdefault(left[0], time.monotonic())
            return state | self._show(left[0])

    def _show(self, key: str) -> dict:
        question = self.questions[key]
        turns = [{"role": role, "text": text} for role, text in question.candidate.prompt.turns]
        return {"question": key, "turns": turns, "cards": question.cards}

    def back(self, question: str | None = None) -> dict:
        """The question that was answered before this one, with its answer."""
        with self.lock:
            keys = {self.questions[key].id: key for key in self.questions}
            answered = [keys[id] for id in self.records if id in keys]
            if question in answered:
                answered = answered[: answered.index(question)]
            if not answered:
                raise UserError("there is no earlier answer to take back")
            key = answered[-1]
            self.shown[key] = time.monotonic()
            record = self.records[self.questions[key].id]
            at = [record["responses"].index(card) for card in self.questions[key].cards]
            answer = {
                "ranks": [record["ranks"][i] for i in at],
                "harmful": [card for card, i in enumerate(at) if i in record.get("harmful", ())],
                "all_bad": record.get("all_bad", False),
                "skip": record.get("skipped", False),
            }
            return self.progress(self._left()) | self._show(key) | {"answer": answer}

    def answer(
        self, question: str, ranks=(), harmful=(), all_bad=False, skip=False, replaces=False
    ) -> bool:
        """Write the record; False if this question was answered before, unless it `replaces`.

        ranks, harmful: lists of whole numbers, about the cards in the order they were shown.
        """
        with self.lock:
            if question not in self.questions:
                raise UserError("this question was not asked: reload the page")
            asked = self.questions[question]
            if skip is True:
                ranks = [1] * len(asked.cards)
            check_answer(ranks, harmful, len(asked.cards))
            is_answered = asked.id in self.records
            if is_answered and replaces is not True:
                return False
            cards = [asked.cards.index(text) for text in asked.candidate.responses]
            notes = {
                "harmful": [i for i, card in enumerate(cards) if card in harmful],
                "all_bad": all_bad is True,
                "skipped": skip is True,
                "repeat": asked.repeat,
                "replaces": is_answered,
            }
            if question in self.shown:  # by this label.py, not by an earlier one
                notes["seconds"] = round(time.monotonic() - self.shown[question], 1)
            self.records[asked.id] = append_ranking(
                self.out,
                asked.candidate,
                [ranks[card] for card in cards],
                self.name,
                **{name: value for name, value in notes.items() if value},
            )
            return True


def check_answer(ranks: list[int], harmful: list[int], count: int) -> None:
    if not all(type(number) is int for number in (*ranks, *harmful)):
        raise UserError("ranks and harmful must be lists of whole numbers")
    if len(ranks) != count or set(ranks) != set(range(1, len(set(ranks)) + 1)):
        raise UserError(f"ranks must be {count} numbers, 1 for the best, without gaps")
    if not set(harmful) <= set(range(count)):
        raise UserError(f"harmful must hold numbers of responses, 0 to {count - 1}")
