"""Generate: answer one prompt, hold a conversation, or write K candidates per prompt for labelling; also the best of n.

    python sample.py --init out/ppo --prompt "Tell me a story with a fox and a lamp."
    python sample.py --init out/ppo --chat
    python sample.py --init out/sft --data toy --count 500 --samples 4 --candidates_out out/candidates.jsonl
    python sample.py --init out/sft --data toy --best_of 16 --reward out/rm --sft_out out/best.jsonl   # then train_sft.py on it
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf import UserError, rewards, rollout
from minirlhf.cli import start
from minirlhf.data import read_prompts
from minirlhf.json_text import to_json_lines
from minirlhf.model import GPT, write_atomically
from minirlhf.run import pick_autocast, pick_device, seed_of
from minirlhf.tokenizer import ASSISTANT, HUMAN


@dataclass
class Settings:
    init: str = "out/sft"         # model folder
    prompt: str = ""              # a request; "-" reads it from standard input
    chat: bool = False            # a conversation in the terminal; an empty line ends it
    data: str = ""                # prompts: toy, or JSONL files with a "prompt" field, comma-separated
    split: str = "train"          # toy prompts: train, or test (held out)
    count: int = 500              # how many prompts of --data
    candidates_out: str = ""      # with --data: JSONL file of {"id", "prompt", "responses"} for label.py
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the model continues it as it is
    sft_out: str = ""             # with --data: JSONL file of {"prompt", "completion"} for train_sft.py (finished responses only)
    samples: int = 1              # responses per prompt
    best_of: int = 1              # each of them the best of so many by --reward, finished ones first
    reward: str = ""              # with --best_of: a reward model's folder, file.py:function, or more (minirlhf/rewards.py)
    ensemble: str = "mean"        # of rewards divided by commas: mean, min, uwo
    max_tokens: int = 64          # longest response
    temperature: float = 1.0      # below 1 bolder about its favourites; 0: always the likeliest token
    top_k: int = 0                # only the k likeliest tokens; 0: all
    top_p: float = 1.0            # only the likeliest tokens that together have this probability
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16


def chat(model: GPT, settings: Settings, answer) -> None:
    """Turn by turn; the oldest turns are forgotten when the context is full, and this is said."""
    turns: list[str] = []                                  # "\n\nHuman: a\n\nAssistant:", " b", ...
    print("(an empty line ends the conversation)")
    while request := input("\nHuman: ").strip():
        turns.append(f"{HUMAN} {request}{ASSISTANT}")
        while len(turns) > 1 and len(model.tokenizer.encode_prompt("".join(turns))) + settings.max_tokens > \
                model.config.n_positions:
            print("(the context is full: the oldest turn is forgotten)")
            turns = turns[2:]
        response = answer(["".join(turns)]).responses[0]
        print(f"Assistant: {response}")
        turns.append(" " + response)


def main(settings: Settings) -> None:
    if settings.temperature < 0 or settings.samples < 1 or not 0 < settings.top_p <= 1:
        raise UserError("--temperature must be 0 or more, --samples 1 or more, --top_p above 0 and at most 1")
    if (settings.best_of != 1 or settings.reward) and not (settings.best_of > 1 and settings.reward and settings.temperature):
        raise UserError("--best_of 2 or more and --reward need one another (which of them is best?), and a temperature above 0")
    if settings.sft_out and (settings.candidates_out or not settings.data):
        raise UserError("--sft_out needs --data, and goes without --candidates_out")
    if bool(settings.prompt) + settings.chat + bool(settings.data) != 1:
        raise UserError("say what to answer: --prompt TEXT, --chat, or --data FILE (see --help)")
    device = pick_device(settings.device)

    def place(model, frozen=True):
        model.autocast_dtype = pick_autocast(settings.dtype, device)
        return model.to(device)

    model = place(GPT.from_pretrained(settings.init))
    generator = torch.Generator(device).manual_seed(seed_of(settings.seed, "sample.py"))

    n = settings.best_of
    reward_fn = rewards.load(settings.reward, place, settings.ensemble) if settings.reward else None

    def answer(prompts: list[str]) -> rollout.Rollout:
        batch = rollout.sample(model, prompts, settings.max_tokens, generator, temperature=settings.temperature,
                               samples_per_prompt=settings.samples * n, top_k=settings.top_k, top_p=settings.top_p)
        if not reward_fn:
            return batch
        scores = reward_fn(batch.prompts, batch.responses)
        keys = list(zip(batch.finished.tolist(), scores))
        return batch.select([max(range(i, i + n), key=keys.__getitem__) for i in range(0, len(keys), n)])

    if settings.chat:
        return chat(model, settings, answer)
    if settings.prompt:
        text = sys.stdin.read().rstrip("\n") if settings.prompt == "-" else settings.prompt
        prompt = text if settings.template == "raw" or HUMAN in text else f"{HUMAN} {text}{ASSISTANT}"
        return print(*answer([prompt]).responses, sep="\n---\n")

    prompts = read_prompts(settings.data, split=settings.split, count=settings.count, seed=settings.seed,
                           template=settings.template)[: settings.count]
    batch, K = answer(prompts), settings.samples
    if settings.sft_out:
        rows = [{"prompt": p, "completion": r} for p, r, ended in zip(batch.prompts, batch.responses, batch.finished) if ended]
    else:
        rows = [{"id": f"{settings.seed}-{i}", "prompt": prompt, "responses": batch.responses[i * K : (i + 1) * K]}
                for i, prompt in enumerate(prompts)]
    lines = to_json_lines(rows, ensure_ascii=False)
    if not (file := settings.sft_out or settings.candidates_out):
        return print(lines, end="")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(file), lines.encode())
    print(f"wrote {len(prompts)} prompts with {K} responses each to {file}" if not settings.sft_out else
          f"wrote {len(rows)} demonstrations to {file}; left out {len(prompts) * K - len(rows)} responses that never ended")


if __name__ == "__main__":
    start(main, Settings)
