"""The chat page: a person talks with models and chooses, turn by turn, the better of their answers.

This is how Bai et al. (2022, section 2.2) collected their comparisons. The answers of a turn come
from blind policies in random order. The chosen one goes on as the conversation, and the choice is
a ranking like any other, of the responses to the conversation so far. Its record also has

    "talk"       the conversation that it belongs to
    "policies"   which model gave each response
    "picked"     the index of the response that the conversation goes on with

A choice that was taken back is "skipped" until another one replaces it.
"""

import math
import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from minirlhf import UserError, rollout, stats
from minirlhf.chat import Turns
from minirlhf.cli import one_line
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.feedback.rankings import Candidate, append_ranking, is_ranking, open_rankings
from minirlhf.model import GPT
from minirlhf.parsing import messages, parse
from minirlhf.run import seed_of

FIELDS = {"talk", "policies", "picked"}
MOST_ANSWERS = 9  # one for each digit key
SHORTEST_PROMPT = 16  # tokens that must be left for what is said


@dataclass
class Options:
    """How the policies answer."""

    answers: int = 2  # to each turn
    max_tokens: int = 128  # of an answer
    temperature: float = -1.0  # below 0: that of each policy's training
    system: str = ""  # a text before every conversation
    seed: int = 0


@dataclass
class Offer:
    """The answers to a turn, which wait for a choice."""

    id: str
    prompt: Turns  # what the policies saw
    policies: list[str]
    responses: list[str]
    cut: list[bool]  # whether the limit of length ended each
    since: float | None = None  # when they were complete; None: before they were taken back


class Panel:
    """The policies that answer."""

    def __init__(self, policies: dict[str, GPT], options: Options):
        self.policies = policies
        self.options = options
        self.system: Turns = ()
        if options.system:
            self.system = (("system", options.system),)

    @classmethod
    def open(cls, names: str, options: Options, device: str = "auto", dtype: str = "auto"):
        """names: folders or Hugging Face names, comma-separated."""
        if not 2 <= options.answers <= MOST_ANSWERS:
            raise UserError(f"--answers {options.answers}: choose from 2 to {MOST_ANSWERS}")
        policies = {}
        for name in filter(None, map(str.strip, names.split(","))):
            if name in policies:
                raise UserError(f"--policies names {name} twice; once is enough")
            policies[name] = open_model(GPT, name, device, dtype)
            context = policies[name].config.n_positions
            if context - options.max_tokens < SHORTEST_PROMPT:
                raise UserError(
                    f"--max_tokens {options.max_tokens}: {name} reads and writes {context} tokens "
                    "in all: choose shorter answers"
                )
        if not policies:
            raise UserError("--chat needs --policies, one or more: out/sft,out/ppo")
        return cls(policies, options)

    def fit(self, said: Turns) -> Turns:
        """The prompt: what was said, without the oldest turns where it is too long for a policy."""
        recent = said[-1:]
        excess, tokens = self._excess(recent)
        if excess > 0:
            raise UserError(
                f"this is too long: {tokens} tokens, and there is room for {tokens - excess}. "
                "Shorten it; the conversation goes on"
            )
        while len(recent) < len(said):
            longer = said[-len(recent) - 2 :]  # by what was said before and its answer
            if self._excess(longer)[0] > 0:
                break
            recent = longer
        return (*self.system, *recent)

    def _excess(self, said: Turns) -> tuple[int, int]:
        """By how many tokens the policies have too little room, and the number of tokens."""
        excesses = []
        for policy in self.policies.values():
            tokens = len(policy.tokenizer.encode_prompt((*self.system, *said)))
            context = policy.config.n_positions  # a third of it is enough for an answer
            room = context - min(self.options.max_tokens, context // 3)
            excesses.append((tokens - room, tokens))
        return max(excesses)

    def draw(self, seed: int) -> list[str]:
        """Which policy gives each answer: each as often as the others, in random order."""
        rng = random.Random(seed)
        names = list(self.policies)
        drawn = []
        while len(drawn) < self.options.answers:
            drawn += rng.sample(names, len(names))
        drawn = drawn[: self.options.answers]
        rng.shuffle(drawn)
        return drawn

    def answer(self, offer: Offer, seed: int) -> Iterator[dict]:
        """Fill in the responses, one token of each in turn.

        Yields {"answer": number, "more": text} as they grow, and {"ended": number}.
        """
        streams = {}
        for number, name in enumerate(offer.policies):
            policy = self.policies[name]
            streams[number] = self._stream(policy, offer.prompt, seed_of(seed, number))
        sent = [0] * len(streams)  # characters
        while streams:
            for number in list(streams):
                step = next(streams[number], None)
                if step is None:
                    del streams[number]
                    yield {"answer": number, "more": offer.responses[number][sent[number] :]}
                    yield {"ended": number}
                    continue
                offer.responses[number], offer.cut[number] = step
                ready = step[0].rstrip("\ufffd")  # half a character waits for its other bytes
                yield {"answer": number, "more": ready[sent[number] :]}
                sent[number] = len(ready)

    def _stream(self, policy: GPT, prompt: Turns, seed: int) -> Iterator[tuple[str, bool]]:
        """A response as far as it is sampled, longer with every token, and whether it goes on."""
        tokenizer = policy.tokenizer
        temperature = self.options.temperature
        if temperature < 0:
            temperature = policy.temperature or rollout.TEMPERATURE
        ids = []
        for i in rollout.stream(
            policy,
            tokenizer.encode_prompt(prompt),
            self.options.max_tokens,
            torch.Generator(policy.device).manual_seed(seed),
            temperature=temperature,
        ):
            ids.append(i)
            yield tokenizer.decode_response(prompt, ids), i not in tokenizer.stop_ids


class Talk:
    """One person's conversations with a panel. Thread-safe.

    Nothing else writes to the file of rankings as long as it lasts. What was chosen is on the disk
    before the conversation goes on; the last conversation in the file is taken up again.
    guidelines: a text that the page shows. next_step: what to do at the end.
    """

    page = "chat.html"

    def __init__(
        self,
        panel: Panel,
        out: str | Path,
        name: str = "person",
        guidelines: str = "",
        next_step: str = "",
    ):
        self.panel = panel
        self.out = Path(out)
        self.name = name
        self.guidelines = guidelines
        self.next_step = next_step
        self.lock = threading.RLock()
        self.speaking = threading.Lock()  # held while answers are sampled
        self.finished = threading.Event()
        self.offer: Offer | None = None
        self.asked = 0  # turns that were answered so far; each has random numbers of its own
        self.records = {}  # id -> the last record of a choice
        for record in open_rankings(self.out):
            if record.get("annotator") == name and record.keys() >= FIELDS:
                if not is_choice(record):
                    number = record.get("id")
                    raise UserError(f"{self.out}: the choice {number!r:.40} is damaged: mend it")
                self.records[record["id"]] = record
        self.id = self._last_conversation() or secrets.token_hex(6)

    def respond(self, request: str, content: dict) -> dict | Iterator[dict] | None:
        if request == "GET /guidelines":
            return {"guidelines": self.guidelines}
        if request == "GET /conversation":
            return self.state()
        if request == "POST /say":
            return self.say(**content)
        if request == "POST /choose":
            return self.choose(**content)
        if request == "POST /back":
            return self.back()
        if request == "POST /new":
            return self.start_anew()
        if request == "POST /finish":
            self.finished.set()
            kept = self.kept()
            return {"choices": len(kept), "score": score(kept), "next": self.next_step}
        return None

    # ---- what has been said

    def _last_conversation(self) -> str:
        """The one to go on with; "" if there is none with this system text."""
        if not self.records:
            return ""
        last = list(self.records.values())[-1]
        system = [message for message in last["prompt"] if message["role"] == "system"]
        return last["talk"] if system == messages(self.panel.system) else ""

    def kept(self) -> list[dict]:
        """The records of choices that were not taken back."""
        return [record for record in self.records.values() if not record.get("skipped")]

    def _choices(self) -> list[dict]:
        """Those that made this conversation."""
        return [record for record in self.kept() if record["talk"] == self.id]

    def _said(self) -> Turns:
        """What was said and chosen, without a turn that waits for a choice."""
        turns = []
        for record in self._choices():
            turns.append(("user", record["prompt"][-1]["content"]))
            turns.append(("assistant", record["responses"][record["picked"]]))
        return tuple(turns)

    def state(self) -> dict:
        """The conversation and, where a choice waits, its answers.

        forgotten: how many turns the policies no longer see.
        """
        with self.lock:
            turns = (*self.panel.system, *self._said())
            choices = self._choices()
            state = {"choices": len(self.kept()), "forgotten": 0}
            offer = self.offer
            if offer:
                turns = (*turns, offer.prompt[-1])
                state["forgotten"] = len(turns) - len(offer.prompt)
                state |= {"id": offer.id, "answers": offer.responses, "cut": offer.cut}
            elif choices:
                state["forgotten"] = len(turns) - 1 - len(choices[-1]["prompt"])
            return state | {"turns": messages(turns)}

    # ---- saying

    def say(self, text: str) -> Iterator[dict]:
        """Lines for the page: {"answers": K}, those of Panel.answer, and at last the state."""
        if not isinstance(text, str) or not text.strip():
            raise UserError("write something first")
        text = text.encode("utf-8", "replace").decode()  # without lone surrogates
        with self.lock:
            if self.offer:
                raise UserError("choose between the answers first: reload the page")
            prompt = self.panel.fit((*self._said(), ("user", text)))
        return self._answer(prompt)

    def _answer(self, prompt: Turns) -> Iterator[dict]:
        """Whoever stops listening leaves no trace."""
        if not self.speaking.acquire(blocking=False):
            yield {"error": "answers are on their way to another tab: wait until they are there"}
            return
        try:
            offer, seed = self._begin(prompt)
            yield {"answers": len(offer.policies)}
            for line in self.panel.answer(offer, seed):
                if self.finished.is_set():
                    return
                yield line
            offer.since = time.monotonic()
            self.offer = offer
            yield self.state()
        except RuntimeError as error:  # torch's, out of memory for instance
            yield {"error": f"the models cannot answer: {error}"}
        finally:
            self.speaking.release()

    def _begin(self, prompt: Turns) -> tuple[Offer, int]:
        """An offer without answers, and the seed of its random numbers."""
        self.asked += 1
        seed = seed_of(self.panel.options.seed, "chat", len(self.records), self.asked)
        drawn = self.panel.draw(seed)
        id = f"{self.id}-{secrets.token_hex(6)}"  # an open page may name an old one
        count = len(drawn)
        return Offer(id, prompt, drawn, [""] * count, [True] * count), seed

    # ---- choosing, and taking back

    def choose(self, id: str, picked: int | None) -> dict:
        """picked: the number of the better answer; None: they are equal, and any one goes on."""
        with self.lock:
            if id in self.records and not self.records[id].get("skipped"):
                return self.state()  # said twice
            offer = self.offer
            if offer is None or offer.id != id:
                raise UserError(
                    "these answers are gone: another tab took them back, or label.py was started "
                    "again"
                )
            count = len(offer.responses)
            if picked is not None and (type(picked) is not int or not 0 <= picked < count):
                raise UserError(f"choose an answer from 0 to {count - 1}, or null")
            ranks = [1] * count
            if picked is None:
                picked = random.Random(id).randrange(count)
            else:
                best = offer.responses[picked]
                ranks = [1 if text == best else 2 for text in offer.responses]
            more = {}
            if offer.since is not None:
                more["seconds"] = round(time.monotonic() - offer.since, 1)
            self._write(offer, ranks, picked, **more)
            self.offer = None
            return self.state()

    def _write(self, offer: Offer, ranks: list[int], picked: int, **more) -> None:
        if offer.id in self.records:
            more["replaces"] = True
        prompt = Prompt(offer.prompt, messages(offer.prompt))
        self.records[offer.id] = append_ranking(
            self.out,
            Candidate(offer.id, prompt, offer.responses),
            ranks,
            self.name,
            talk=self.id,
            policies=offer.policies,
            picked=picked,
            **more,
        )

    def back(self) -> dict:
        """One step back: from an open choice to what was said, from a choice to its answers."""
        with self.lock:
            self._refuse_while_speaking()
            if self.offer:
                draft = self.offer.prompt[-1][1]
                self.offer = None
                return self.state() | {"draft": draft}
            choices = self._choices()
            if not choices:
                raise UserError("there is nothing to take back")
            last = choices[-1]
            prompt = tuple((message["role"], message["content"]) for message in last["prompt"])
            count = len(last["responses"])
            offer = Offer(last["id"], prompt, last["policies"], last["responses"], [False] * count)
            self._write(offer, [1] * count, last["picked"], skipped=True)
            self.offer = offer
            return self.state()

    def start_anew(self) -> dict:
        with self.lock:
            self._refuse_while_speaking()
            self.offer = None
            self.id = secrets.token_hex(6)
            return self.state()

    def _refuse_while_speaking(self) -> None:
        if self.speaking.locked():
            raise UserError("answers are on their way: wait until they are there")


def is_choice(record: dict) -> bool:
    """Whether the fields of a record, which somebody may have edited, hold what they must."""
    picked, said = record["picked"], record.get("prompt")
    if not is_ranking(record) or not isinstance(record["talk"], str):
        return False
    if type(picked) is not int or not 0 <= picked < len(record["responses"]):
        return False
    return isinstance(said, list) and said == messages(parse(said))


# ---- which policy wins


def wins(record: dict) -> dict[str, tuple[float, int]]:
    """Policy -> (comparisons that it won, comparisons with other policies); ties count half."""
    ranks, policies = record["ranks"], record["policies"]
    margins = defaultdict(list)
    for i, j in permutations(range(len(ranks)), 2):
        if policies[i] != policies[j]:
            margins[policies[i]].append(ranks[j] - ranks[i])
    return {
        policy: (float(stats.right(torch.tensor(margin)).sum()), len(margin))
        for policy, margin in margins.items()
    }


def score(records: Iterable[dict]) -> list[dict]:
    """How often each policy's answers beat those of the others.

    records: rankings; those with "policies" count
    Returns rows {"policy", "mean", "interval", "choices"}, best first; choices are the independent
    units of the interval (95 %). No rows where one policy competes with itself.
    """
    results = defaultdict(list)  # policy -> (won, played) of each choice
    for record in records:
        if "policies" in record and not record.get("skipped"):
            for policy, result in wins(record).items():
                results[policy].append(result)
    rows = []
    for policy, pairs in results.items():
        won, played = torch.tensor(pairs).T  # (choices,) each
        share = stats.estimate(torch.arange(len(won)), [won], [played], share=True)
        share = {name: share[name] for name in ("mean", "interval")}
        rows.append({"policy": policy, **share, "choices": len(won)})
    return sorted(rows, key=lambda row: -row["mean"])


def describe(records: Iterable[dict]) -> list[str]:
    """The score as lines of text."""
    lines = []
    for row in score(records):
        name, interval = one_line(row["policy"]), ""
        if not math.isnan(row["interval"]):  # more than one choice
            interval = f" ±{100 * row['interval']:.0f}"
        lines.append(
            f"{name} wins {100 * row['mean']:.0f}{interval} % of its comparisons, in "
            f"{row['choices']} choices"
        )
    return lines
