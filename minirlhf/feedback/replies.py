"""What a chat server's reply says: its text without thoughts, and which response it prefers.

Models think aloud before they answer: in tags, in channels, in a field of their own. Thoughts are
no answer. A verdict is read where the model gave one, and never guessed.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

LEAST_MASS = 0.05  # probability that A and B must have between them to count as an answer

# Tags, Mistral's brackets, Kimi's triangles, Cohere's tokens, harmony's channels, and what those
# channels leave behind where a server drops special tokens.
TAG = "(?:seed:)?(?:think|thinking|thought|reasoning)"
THOUGHTS_BEGIN = re.compile(
    rf"(?i:<{TAG}>)|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|channel\|>|\Aanalysis[A-Z]"
)
THOUGHTS_END = re.compile(
    rf"(?i:</{TAG}>)|\[/THINK\]|◁/think▷|<\|END_THINKING\|>"
    r"|<\|channel\|>final[^<]*<\|message\|>|\Aanalysis(?s:.*)assistantfinal"
)
THOUGHT_FIELDS = ("reasoning_content", "reasoning")  # of a message
AROUND_AN_ANSWER = re.compile(r"<\|(?:return|end|START_RESPONSE|END_RESPONSE)\|>")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

# A verdict's words, without punctuation, in lower case but for the letter.
LETTER = "(?:response |answer |option )?([AB])"
CHOICE = "(?:answer|response|option|choice|verdict|one)"
SHORT_VERDICTS = [
    f"(?:boxed |text )*{LETTER}",
    f"(?:so )?(?:my |the )?(?:final |better |best )?{CHOICE} (?:is )?{LETTER}",
]
VERDICTS = [
    *SHORT_VERDICTS,
    f"(?:so )?i (?:would |d )?(?:choose|pick|prefer|select) {LETTER}",
    f"(?:so )?{LETTER} (?:is|would be|seems) (?:the )?(?:better|best)(?: {CHOICE})?",
    f"(?:so )?{LETTER} follows the principle better",
]
EXPLAINED_VERDICTS = [f"{verdict}(?: (?:because|since|as|for) .*)?" for verdict in VERDICTS]


class TryAgain(Exception):
    """A reply without an answer; the next one may hold it. wait: seconds that the server asks."""

    def __init__(self, problem: str, wait: float = 0.0):
        super().__init__(problem)
        self.wait = wait


@dataclass
class Reply:
    text: str = ""  # the answer, without thoughts
    problem: str = ""  # why the text cannot be used
    is_cut: bool = False  # the model had more to say
    is_rejected: bool = False  # by the server, which never asked the model
    thinks: bool = False  # the model thought before it answered, or instead
    # the likeliest first tokens and their log-probs; none where the server does not tell them
    first_tokens: list[tuple[str, float]] = field(default_factory=list)


def read_reply(body: dict) -> Reply:
    """From the JSON of a chat completion. TryAgain if it holds no message."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise TryAgain("a reply without a message")
    end = choice.get("finish_reason")
    if end == "error":
        raise TryAgain("a reply that ends with an error")
    content, thinks = read_content(message)
    reply = Reply(without_thoughts(content), is_cut=end == "length", thinks=thinks)
    reply.first_tokens = read_first_tokens(choice.get("logprobs"))
    if end == "content_filter":
        reply.problem = "filtered"
    elif message.get("refusal"):
        reply.problem = "refused"
    elif reply.is_cut:
        reply.problem = "cut off"
    elif not reply.text:
        reply.problem = "thoughts alone" if thinks else "empty"
    return reply


def read_content(message: dict) -> tuple[str, bool]:
    """A message's whole text, and whether there are thoughts in it or beside it."""
    thinks = any(message.get(name) for name in THOUGHT_FIELDS)
    content = message.get("content")
    text = ""
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):
            if part.get("type") in ("thinking", "reasoning"):
                thinks = True
                continue
            part = part.get("text")
        if isinstance(part, str):
            text += part
    text = LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
    in_text = THOUGHTS_BEGIN.search(text) or THOUGHTS_END.search(text)
    return text, thinks or in_text is not None


def without_thoughts(text: str) -> str:
    """What follows the last thoughts; "" if they never end."""
    answer = THOUGHTS_END.split(text)[-1]
    if THOUGHTS_BEGIN.search(answer):
        return ""
    return AROUND_AN_ANSWER.sub("", answer).strip()


def read_first_tokens(logprobs: Any) -> list[tuple[str, float]]:
    """[(token, log-prob), ...] for the answer's first position, likeliest first; [] if unknown."""
    try:
        entries = logprobs["content"][0]["top_logprobs"]
        return [(str(entry["token"]), float(entry["logprob"])) for entry in entries]
    except (LookupError, TypeError, ValueError, OverflowError):
        return []


# ------------------------------------------------------------------------- verdicts


def read_preference(reply: Reply) -> float | None:
    """The chance that A is better: from log-probs or, where there are none, from words (1 or 0)."""
    if reply.problem and not reply.is_cut:
        return None
    preference = None
    if not reply.thinks:  # the first tokens of thoughts say nothing
        preference = read_logprobs(reply.first_tokens)
    if preference is None:
        preference = read_verdict(reply.text, reply.is_cut)
    return preference


def read_logprobs(first_tokens: list[tuple[str, float]]) -> float | None:
    """P(A) / (P(A) + P(B)); None if an answer hardly begins with either."""
    chances = {"A": 0.0, "B": 0.0}
    for token, logprob in first_tokens:
        letter = token.strip(" \nĠ▁")  # some servers show a blank as their vocabulary has it
        if letter in chances and logprob < 0.01:  # NaN is not; 0 may be rounded up
            chances[letter] += math.exp(logprob)
    mass = sum(chances.values())
    return chances["A"] / mass if mass >= LEAST_MASS else None


def read_verdict(text: str, is_cut: bool = False) -> float | None:
    """1 for A, 0 for B; None for any other text.

    The verdict is the whole text, with a reason or without, or its first or its last line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if is_cut:
        lines = lines[:-1]  # that line could go on
    if not lines:
        return None
    letters = {find_letter(lines[0], SHORT_VERDICTS)}
    if not is_cut:
        letters.add(find_letter(lines[-1], VERDICTS))
        letters.add(find_letter(text, EXPLAINED_VERDICTS))
    letters.discard(None)
    if len(letters) != 1:
        return None
    return float(letters == {"A"})


def find_letter(text: str, patterns: list[str]) -> str | None:
    """A or B, if it is the only one in the text and the text is one of the patterns."""
    words = re.findall(r"[^\W_]+", text)
    if len(words) == 1:
        words = [words[0].upper()]
    letters = [word for word in words if word in ("A", "B")]
    if len(letters) != 1 or "?" in text:
        return None
    plain = " ".join(word if word in letters else word.lower() for word in words)
    if any(re.fullmatch(pattern, plain) for pattern in patterns):
        return letters[0]
    return None
