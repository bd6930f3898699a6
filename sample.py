"""Generate: answer a prompt, hold a conversation, or write K candidates a prompt for labelling.

    python sample.py --init out/ppo --prompt "Tell me a story with a fox and a lamp."
    python sample.py --init out/ppo --chat
    python sample.py --init out/sft --data toyworld --samples 4 --candidates_out candidates.jsonl
    python sample.py --init out/sft --data toyworld --best_of 16 --reward out/rm --sft_out b.jsonl

The last line is rejection sampling: train_sft.py learns from the best answers.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from minirlhf import UserError, rewards, rollout, world
from minirlhf.chat import Turns
from minirlhf.cli import at_least, printable, start
from minirlhf.data import Prompt, read_prompts
from minirlhf.device import open_model
from minirlhf.files import check_target, to_json, write_jsonl
from minirlhf.inputs import check_output
from minirlhf.model import GPT
from minirlhf.run import read_run, seed_of


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # model: a folder or a Hugging Face name
    prompt: str = ""  # a request; "-" reads it from standard input
    chat: bool = False  # a conversation in the terminal
    system: str = ""  # system text before the request or the conversation
    max_tokens: int = 64  # longest response
    temperature: float = -1.0  # 0: always the likeliest token; -1: as in its training, else 0.7

    # many prompts
    data: str = ""  # prompts: files, comma-separated, or a world's module
    count: int = 500  # how many of them
    split: Literal["train", "test"] = "train"  # of a world's prompts; test: held out
    template: Literal["chat", "raw"] = "chat"  # chat: a bare prompt is a user turn; raw: plain text
    chat_format: Literal["auto", "plain", "chatml", "llama3"] = "auto"  # auto: the model's own
    samples: int = 1  # responses to each prompt
    candidates_out: str = ""  # JSON lines for label.py: {"id", "prompt", "responses"}
    sft_out: str = ""  # JSON lines for train_sft.py: finished responses as {"prompt", "completion"}

    # choice
    best_of: int = 1  # each response is the best of so many by --reward
    reward: str = ""  # a reward model's folder, file.py:function or module; several: an ensemble
    ensemble: Literal["mean", "min", "uwo"] = "mean"  # of several; uwo: mean - variance / 2
    top_k: int = 0  # only the k likeliest tokens; 0: all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability

    # run
    seed: int = 0  # seed of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products


def check(settings: Settings) -> None:
    """UserError for settings that do not go together."""
    at_least(1, settings, "samples", "best_of", "count", "max_tokens")
    modes = [bool(settings.prompt), settings.chat, bool(settings.data)]
    if sum(modes) != 1:
        raise UserError("say what to answer: use one of --prompt TEXT, --chat, --data FILE")
    if settings.system and (settings.data or settings.template == "raw"):
        raise UserError("--system goes before --prompt or --chat, and not before --template raw")
    if not 0 < settings.top_p <= 1:
        raise UserError(f"--top_p {settings.top_p}: must be above 0 and at most 1")
    if settings.best_of > 1 and not (settings.reward and settings.temperature):
        raise UserError("--best_of needs --reward, to know the best, and a --temperature above 0")
    if settings.reward and settings.best_of == 1:
        raise UserError("--reward chooses between samples: it needs --best_of 2 or more")
    if (settings.sft_out or settings.candidates_out) and not settings.data:
        raise UserError("--sft_out and --candidates_out need --data")
    if settings.sft_out and settings.candidates_out:
        raise UserError("use --sft_out or --candidates_out, not both")
    for flag in ("sft_out", "candidates_out"):
        if file := getattr(settings, flag):
            check_target(f"--{flag}", file)
            check_output(flag, file, settings)


class Sampler:
    """Answers prompts with one model; with --best_of, keeps the best answer of several."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.model = open_model(
            GPT,
            settings.init,
            settings.device,
            settings.dtype,
            chat_format=settings.chat_format,
        )
        context = self.model.config.n_positions
        if settings.max_tokens >= context:
            raise UserError(
                f"--max_tokens {settings.max_tokens}: the model's context of {context} tokens "
                "leaves room for less, behind a prompt"
            )
        self.temperature = settings.temperature
        if settings.temperature < 0:
            self.temperature = self.model.temperature or rollout.TEMPERATURE
        seed = seed_of(settings.seed, "sample.py")
        self.generator = torch.Generator(self.model.device).manual_seed(seed)
        self.reward_fn = None
        if settings.reward:
            self.reward_fn = rewards.load(
                settings.reward, settings.device, settings.dtype, ensemble=settings.ensemble
            )

    def __call__(self, prompts: list[Prompt]) -> rollout.Rollout:
        """len(prompts) * samples rows, those of one prompt side by side."""
        settings = self.settings
        batch = rollout.sample(
            self.model,
            prompts,
            settings.max_tokens,
            self.generator,
            temperature=self.temperature,
            samples_per_prompt=settings.samples * settings.best_of,
            top_k=settings.top_k,
            top_p=settings.top_p,
        )
        if self.reward_fn is None:
            return batch
        scores = self.reward_fn(batch.prompts, batch.responses)
        scores = [-math.inf if math.isnan(score) else score for score in scores]  # None comes last
        quality = list(zip(batch.finished.tolist(), scores))  # a finished response comes first
        best = []
        for start_ in range(0, len(quality), settings.best_of):
            candidates = range(start_, start_ + settings.best_of)
            best.append(max(candidates, key=lambda row: quality[row]))
        return batch.select(best)

    def stream(self, prompt: Prompt) -> Iterator[str]:
        """One response as far as it is sampled, longer with every token; the best one at once."""
        settings = self.settings
        if self.reward_fn is not None:
            yield self([prompt]).responses[0]
            return
        tokenizer = self.model.tokenizer
        ids = []
        for i in rollout.stream(
            self.model,
            tokenizer.encode_prompt(prompt.turns),
            settings.max_tokens,
            self.generator,
            temperature=self.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
        ):
            ids.append(i)
            yield tokenizer.decode_response(prompt.turns, ids)


def system_turns(settings: Settings) -> Turns:
    return (("system", settings.system),) if settings.system else ()


# --- a conversation in the terminal

HELP = """/new     begin a new conversation
/retry   answer the last message again
/help    this list
Ctrl-C   stops an answer
Ctrl-D   leaves"""


def chat(sampler: Sampler) -> None:
    """Turn by turn, until Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401  input() can then edit a line and bring earlier ones back
    greet(sampler)
    turns = ()
    while True:
        try:
            line = input("\nHuman: ").strip()
        except EOFError:
            return print()
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        if line == "/help":
            print(HELP)
        elif line == "/new":
            turns = ()
            print("(a new conversation)")
        elif line == "/retry" and not turns:
            print("(there is no message yet)")
        elif line == "/retry":
            turns = answer(sampler, turns[:-1])
        elif line.startswith("/") and " " not in line:
            print(f"(there is no {printable(line)}; /help shows what there is)")
        elif line:
            turns = answer(sampler, (*turns, ("user", line)))


def greet(sampler: Sampler) -> None:
    print(f"(temperature {sampler.temperature:g}; /help shows what there is besides talking)")
    requests = known_requests(sampler.settings)
    if requests:
        print("This model knows a small world. Try:")
    for request in requests:
        print(f"  {request}")


def known_requests(settings: Settings) -> list[str]:
    """Three requests of the toy world, for a model that was trained on it by its run.json."""
    data = read_run(settings.init).get("settings", {}).get("data")
    if data != "toyworld":  # no other module is imported because a folder names it
        return []
    prompts = world.load(data, "--data", "prompts").prompts("test", 30, settings.seed)
    requests = [record["prompt"] for record in prompts]
    return [request for request in requests if isinstance(request, str)][:3]


def answer(sampler: Sampler, turns: Turns) -> Turns:
    """The conversation with one more turn; without its last one where that is too long."""
    system = system_turns(sampler.settings)
    room = sampler.model.config.n_positions - sampler.settings.max_tokens

    def length(turns: Turns) -> int:
        return len(sampler.model.tokenizer.encode_prompt((*system, *turns)))

    tokens = length(turns[-1:])
    if tokens > room:
        print(f"(too long: {tokens} tokens, and there is room for {room}; say it in fewer words)")
        return turns[:-1]
    if length(turns) > room:
        print("(the context is full: the oldest turns are forgotten)")
    while length(turns) > room:
        turns = turns[2:]
    response = say(sampler, Prompt((*system, *turns), turns[-1][1]))
    return (*turns, ("assistant", response))


def say(sampler: Sampler, prompt: Prompt) -> str:
    """Print a response while it is sampled, until it ends or Ctrl-C."""
    print("Assistant: ", end="", flush=True)
    response = shown = ""
    try:
        for response in sampler.stream(prompt):
            ready = printable(response.rstrip("\ufffd"))  # half a character waits for its bytes
            print(ready[len(shown) :], end="", flush=True)
            shown = ready
    except KeyboardInterrupt:
        print(" (stopped)")
        return response.rstrip("\ufffd")
    print(printable(response)[len(shown) :])
    return response


# --- many prompts, or one


def answer_one(sampler: Sampler) -> None:
    text = sampler.settings.prompt
    if text == "-":
        text = sys.stdin.read().rstrip("\n")
    role = "text" if sampler.settings.template == "raw" else "user"
    turns = (*system_turns(sampler.settings), (role, text))
    batch = sampler([Prompt(turns, text)])
    print(*map(printable, batch.responses), sep="\n---\n")


def demonstrations(batch: rollout.Rollout) -> list[dict]:
    """Finished responses, for train_sft.py."""
    rows = []
    for prompt, response, finished in zip(batch.prompts, batch.responses, batch.finished.tolist()):
        if finished:
            rows.append({"prompt": prompt.source, "completion": response})
    return rows


def candidates(batch: rollout.Rollout, samples: int, seed: int) -> list[dict]:
    """All responses to a prompt together, for label.py."""
    rows = []
    for number, first in enumerate(range(0, len(batch), samples)):
        rows.append(
            {
                "id": f"{seed}-{number}",
                "prompt": batch.prompts[first].source,
                "responses": batch.responses[first : first + samples],
            }
        )
    return rows


def main(settings: Settings) -> None:
    check(settings)
    sampler = Sampler(settings)
    if settings.chat:
        return chat(sampler)
    if settings.prompt:
        return answer_one(sampler)

    prompts = read_prompts(
        settings.data,
        split=settings.split,
        count=settings.count,
        seed=settings.seed,
        template=settings.template,
        columns=rewards.columns(settings.reward),
    )
    batch = sampler(prompts[: settings.count])
    file = settings.sft_out or settings.candidates_out
    if settings.sft_out:
        rows = demonstrations(batch)
        what = f"{len(rows)} demonstrations, without {len(batch) - len(rows)} unfinished responses,"
    else:
        rows = candidates(batch, settings.samples, settings.seed)
        what = f"{len(rows)} prompts with {settings.samples} responses each"
    if not file:
        for row in rows:
            print(to_json(row))
        return
    write_jsonl(file, rows)
    print(f"wrote {what} to {file}")


if __name__ == "__main__":
    start(main, Settings)
