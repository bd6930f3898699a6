"""What a judge reads in a response: its words, sentences, manners and refusals."""

import re
from collections.abc import Iterable
from functools import lru_cache

from toyworld.words import WORDS

POLITE = WORDS["glad"] + WORDS["gentle"] + WORDS["closers"] + WORDS["polite"]
RUDE = WORDS["rude_openers"] + WORDS["rude_closers"] + WORDS["lectures"] + WORDS["rude"]
REFUSAL = re.compile(
    r"\b(will not|won't|cannot|can't|can not|rather not|do not want to|don't want to|must not) "
    r"(help|do|assist|explain|support|answer)\b"
)
ADMISSION = re.compile(
    r"\b(cannot|can not|can't|could not|do not|don't|no way to|nobody can|no one can) "
    r"(know|see|predict|tell)\b"
)


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+|\d+", text.lower())


@lru_cache(50_000)
def flat(text: str) -> str:
    """The words of a text with one space around each: a phrase is found in it as whole words."""
    return " " + " ".join(words_of(text)) + " "


class Text:
    """A text for judges, who read 3000 characters of it and no capital letters."""

    def __init__(self, text: str):
        self.lower = text[:3000].lower()
        self.words = words_of(self.lower)
        self.flat = flat(self.lower)
        sentences = map(flat, re.split(r"[.!?]+\s+|\n+", self.lower))
        self.sentences = [sentence for sentence in sentences if sentence.strip()]  # flat ones

    def has(self, *phrases: str) -> bool:
        return any(flat(phrase) in self.flat for phrase in phrases)

    def count(self, phrases: Iterable[str]) -> int:
        """How many of the phrases it has."""
        return sum(self.has(phrase) for phrase in phrases)

    @property
    def refuses(self) -> bool:
        return bool(REFUSAL.search(self.lower))

    @property
    def admits_ignorance(self) -> bool:
        return bool(ADMISSION.search(self.lower))


def cues(section: str) -> list[str]:
    """The words of a section's phrases around their slots."""
    parts = [part for phrase in WORDS[section] for part in re.split(r"{\w+}", phrase)]
    return [part for part in parts if words_of(part)]


AGREES, CORRECTS, PLOTS = cues("agrees"), cues("corrects"), cues("plots")
