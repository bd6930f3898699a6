"""The chat page: a person talks with models and chooses, turn by turn, the better of their answers.

This is how Bai et al. (2022, section 2.2) collected their comparisons. The answers of a turn come
from blind policies in random order. The chosen one goes on as the conversation, and the choice is
a ranking like any other, of the responses to the conversation so far. Its record also has

    "talk"       the conversation that it belongs to
    "policies"   which model gave each response
    "picked"     the index of the response that the conversation goes on with

A choice that was taken back is "skipped" until another one replaces it.
"""

import random
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import torch

from minirlhf import UserError, rollout, stats
from minirlhf.chat import Turns
from minirlhf.data import Prompt
from minirlhf.device import open_model
from minirlhf.feedback.rankings import Candidate, append_ranking, open_rankings
from minirlhf.model import GPT
from minirlhf.parsing import messages
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
    responses: list[str]
    policies: list[str]
    cut: list[bool]  # whether the limit of length ended each
    since: float | None = None  # when they were complete; None: before they were taken back


def open_policies(names: str, options: Options, device: str, dtype: str) -> dict[str, GPT]:
    """Folders or names, comma-separated -> models."""
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
                f"--max_tokens {options.max_tokens}: {name} reads and writes {context} tokens in "
                "all: choose shorter answers"
            )
    if not policies:
        raise UserError("--chat needs --policies, one or more: out/sft,out/ppo")
    return policies


class Talk:
    """One person's conversations with some policies. Thread-safe.

    Nothing else writes to the file of rankings as long as it lasts. What was chosen is on the disk
    before the conversation goes on; the last conversation in the file is taken up again.
    """

    page = "chat.html"

    def __init__(
        self,
        policies: dict[str, GPT],
        out: str | Path,
        name: str = "person",
        options: Options | None = None,
        guidelines: str = "",
        next_step: str = "",
    ):
        self.policies = policies
        self.out = Path(out)
        self.name = name
        self.options = options or Options()
        self.guidelines = guidelines
        self.next_step = next_step
        self.lock = threading.RLock()
        self.speaking = threading.Lock()  # held while answers are sampled
        self.finished = threading.Event()
        self.system: Turns = ()
        if self.options.system:
            self.system = (("system", self.options.system),)
        self.offer: Offer | None = None
        self.asked = 0  # turns that were answered so far; each has random numbers of its own
        self.records = {}  # id -> the last record of a choice
        for record in open_rankings(self.out):
            if record.get("annotator") == name and record.keys() >= FIELDS:
                self.records[record["id"]] = record
        self.conversation = self._last_conversation() or secrets.token_hex(6)

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
            rows = score(self.records.values())
            return {"choices": self._count(), "score": rows, "next": self.next_step}
        return None

    # ---- what has been said

    def _last_conversation(self) -> str:
        """The one to go on with; "" if there is none with this system text."""
        for record in reversed(self.records.values()):
            begin = [message for message in record["prompt"] if message["role"] == "system"]
            return record["talk"] if begin == messages(self.system) else ""
        return ""

    def _choices(self) -> list[dict]:
        """The records that made this conversation."""
        return [
            record
            for record in self.records.values()
            if record["talk"] == self.conversation and not record.get("skipped")
        ]

    def _count(self) -> int:
        return sum(not record.get("skipped") for record in self.records.values())

    def _turns(self) -> Turns:
        """What was said and chosen, without a turn that waits for a choice."""
        turns = []
        for record in self._choices():
            turns.append(("user", record["prompt"][-1]["content"]))
            turns.append(("assistant", record["responses"][record["picked"]]))
        return (*self.system, *turns)

    def state(self) -> dict:
        """The conversation and, where a choice waits, its answers."""
        with self.lock:
            turns = self._turns()
            state = {"choices": self._count(), "forgotten": 0}
            choices = self._choices()
            if self.offer:
                turns = (*turns, self.offer.prompt[-1])
                offer = self.offer
                state |= {"id": offer.id, "answers": offer.responses, "cut": offer.cut}
                state["forgotten"] = len(turns) - len(self.offer.prompt)
            elif choices:
                state["forgotten"] = len(turns) - 1 - len(choices[-1]["prompt"])
            return state | {"turns": messages(turns)}

    # ---- saying and answering

    def say(self, text: str) -> Iterator[dict]:
        """Lines for the page: {"answers": K}, then {"answer": number, "more": text} as they are
        sampled, {"ended": number}, and at last the state."""
        if not isinstance(text, str) or not text.strip():
            raise UserError("write something first")
        text = text.encode("utf-8", "replace").decode()  # without lone surrogates
        with self.lock:
            if self.offer:
                raise UserError("choose between the answers first: reload the page")
            prompt = self._fit((*self._turns(), ("user", text)))
        return self._answer(prompt)

    def _fit(self, turns: Turns) -> Turns:
        """Without the oldest turns, where the context of a policy is too short for all."""
        said = turns[len(self.system) :]
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

    def _excess(self, turns: Turns) -> tuple[int, int]:
        """By how many tokens the policies have too little room, and the number of tokens."""
        excesses = []
        for policy in self.policies.values():
            tokens = len(policy.tokenizer.encode_prompt((*self.system, *turns)))
            room = policy.config.n_positions - self.options.max_tokens
            excesses.append((tokens - room, tokens))
        return max(excesses)

    def _draw(self, rng: random.Random) -> list[str]:
        """Which policy gives each answer: each as often as the others, in random order."""
        names = list(self.policies)
        drawn = []
        while len(drawn) < self.options.answers:
            drawn += rng.sample(names, len(names))
        drawn = drawn[: self.options.answers]
        rng.shuffle(drawn)
        return drawn

    def _answer(self, prompt: Turns) -> Iterator[dict]:
        """See `say`. Whoever stops to listen leaves no trace."""
        if not self.speaking.acquire(blocking=False):
            yield {"error": "answers are on their way to another tab: wait until they are there"}
            return
        try:
            self.asked += 1
            seed = seed_of(self.options.seed, "chat", len(self.records), self.asked)
            drawn = self._draw(random.Random(seed))
            yield {"answers": len(drawn)}
            responses = [""] * len(drawn)
            cut = [True] * len(drawn)
            yield from self._sample(prompt, drawn, responses, cut, seed)
            with self.lock:
                own = [r for r in self.records.values() if r["talk"] == self.conversation]
                key = f"{self.conversation}-{len(own)}"
                self.offer = Offer(key, prompt, responses, drawn, cut, time.monotonic())
            yield self.state()
        except RuntimeError as error:  # torch's, out of memory for instance
            yield {"error": f"the models cannot answer: {error}"}
        finally:
            self.speaking.release()

    def _sample(
        self, prompt: Turns, drawn: list[str], responses: list[str], cut: list[bool], seed: int
    ) -> Iterator[dict]:
        """One token of each answer in turn; `responses` and `cut` are filled in."""
        streams = {}
        for number, name in enumerate(drawn):
            streams[number] = self._stream(self.policies[name], prompt, seed_of(seed, number))
        sent = [0] * len(drawn)  # characters
        while streams:
            for number in list(streams):
                step = next(streams[number], None)
                if step is None:
                    del streams[number]
                    yield {"answer": number, "more": responses[number][sent[number] :]}
                    yield {"ended": number}
                    continue
                responses[number], cut[number] = step
                ready = responses[number].rstrip("\ufffd")  # half a character waits for the rest
                yield {"answer": number, "more": ready[sent[number] :]}
                sent[number] = len(ready)

    def _stream(self, policy: GPT, prompt: Turns, seed: int) -> Iterator[tuple[str, bool]]:
        """A response as far as it is sampled, longer with every token, and whether it goes on."""
        tokenizer = policy.tokenizer
        generator = torch.Generator(policy.device).manual_seed(seed)
        temperature = self.options.temperature
        if temperature < 0:
            temperature = policy.temperature or rollout.TEMPERATURE
        ids = []
        for i in rollout.stream(
            policy,
            tokenizer.encode_prompt(prompt),
            self.options.max_tokens,
            generator,
            temperature=temperature,
        ):
            ids.append(i)
            yield tokenizer.decode_response(prompt, ids), i not in tokenizer.stop_ids

    # ---- choosing, and taking back

    def choose(self, id: str, picked: int | None) -> dict:
        """picked: the number of the better answer; None: they are equal, and any one goes on."""
        with self.lock:
            if id in self.records and not self.records[id].get("skipped"):
                return self.state()  # said twice
            offer = self.offer
            if offer is None or offer.id != id:
                raise UserError("these answers are gone, for label.py was started again")
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
            policies=offer.policies,
            picked=picked,
            talk=self.conversation,
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
            offer = Offer(last["id"], prompt, last["responses"], last["policies"], [False] * count)
            self._write(offer, [1] * count, last["picked"], skipped=True)
            self.offer = offer
            return self.state()

    def start_anew(self) -> dict:
        with self.lock:
            self._refuse_while_speaking()
            self.offer = None
            self.conversation = secrets.token_hex(6)
            return self.state()

    def _refuse_while_speaking(self) -> None:
        if self.speaking.locked():
            raise UserError("answers are on their way: wait until they are there")


# ---- which policy wins


def score(records) -> list[dict]:
    """How often each policy's answers beat those of the others; ties count half.

    records: rankings with "policies"
    Returns rows {"policy", "mean", "interval", "choices"}, best first; choices are the independent
    units of the interval (95 %). No rows where one policy competes with itself.
    """
    results = defaultdict(list)  # policy -> (wins, comparisons) for each choice
    for record in records:
        ranks, policies = record["ranks"], record.get("policies")
        if not policies or record.get("skipped"):
            continue
        margins = defaultdict(list)
        for i, j in permutations(range(len(ranks)), 2):
            if policies[i] != policies[j]:
                margins[policies[i]].append(ranks[j] - ranks[i])
        for policy, differences in margins.items():
            wins = stats.right(torch.tensor(differences)).sum()
            results[policy].append((float(wins), len(differences)))
    rows = []
    for policy, both in results.items():
        won, played = torch.tensor(both).T  # (choices,) each
        share = stats.estimate(torch.arange(len(won)), [won], [played], share=True)
        rows.append(
            {
                "policy": policy,
                "mean": share["mean"],
                "interval": share["interval"],
                "choices": len(won),
            }
        )
    return sorted(rows, key=lambda row: -row["mean"])


def describe(records) -> list[str]:
    """The score as lines of text."""
    lines = []
    for row in score(records):
        interval = ""
        if row["interval"] == row["interval"]:  # no NaN: more than one choice
            interval = f" ±{100 * row['interval']:.0f}"
        lines.append(
            f"{row['policy']} wins {100 * row['mean']:.0f}{interval} % of its comparisons, in "
            f"{row['choices']} choices"
        )
    return lines
