"""Constitutional AI, the supervised half: the model criticises its own responses by written principles and revises them.

Sample a response; draw a principle; critique; revise; draw again. Prompts with their last revisions are demonstrations for
train_sft.py, and no person has labelled anything (Bai et al. 2022, section 3.1). With --revisions 0 the samples stay as they
are: mixed in for harmless prompts, they keep the model as helpful as it was.

    python revise.py --init out/sft --data harmful_prompts.jsonl --out out/revisions.jsonl
    python revise.py --init http://127.0.0.1:11434/v1 --model llama3.2 --data prompts.jsonl --out out/revisions.jsonl
    python train_sft.py --init out/sft --data out/revisions.jsonl --out out/sft_constitutional
"""
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from minirlhf import UserError, judge
from minirlhf.cli import start
from minirlhf.data import read_prompts
from minirlhf.json_text import to_json_lines
from minirlhf.model import write_atomically
from minirlhf.questions import CRITIQUE, REVISE, ask
from minirlhf.run import read_jsonl

AT_ONCE = 64                      # prompts between two writes to the file


@dataclass
class Settings:
    init: str = "out/sft"         # who responds, criticises and revises: a model folder, or an OpenAI-compatible endpoint's URL
    model: str = ""               # the model's name at the endpoint
    data: str = "toy"             # prompts: toy, or JSONL files with a "prompt" field, comma-separated
    split: str = "train"          # toy prompts: train, or test (held out)
    count: int = 500              # how many prompts
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the model continues it as it is
    constitution: str = "constitution.txt"      # a file of principles, one a paragraph; toy: the toy world's
    revisions: int = 2            # rounds of critique and revision, 0 to 4
    max_tokens: int = 64          # longest response, critique and revision
    temperature: float = 0.7      # of sampling
    out: str = "out/revisions.jsonl"    # records are added; prompts that it holds already are not asked again
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16


def revised(model, prompts: list[str], principles: list[str], settings: Settings, count: Counter) -> list[dict | None]:
    """A record per prompt; None where one of the model's texts was unusable (too long, empty, cut off)."""
    def say(questions: list[str | None]) -> list[str | None]:
        answers = judge.counted(model.say([q for q in questions if q], settings.max_tokens, settings.temperature), count)
        return [q and next(answers) for q in questions]

    responses = say(prompts)
    steps: list[list[dict]] = [[] for _ in prompts]
    for turn in range(settings.revisions):
        drawn = [random.Random(repr((settings.seed, p, turn))).choice(principles) for p in prompts]
        critiques = say([r and ask(CRITIQUE, p, principle=c, response=r) for p, r, c in zip(prompts, responses, drawn)])
        revisions = say([c and ask(REVISE, p, response=r, critique=c) for p, r, c in zip(prompts, responses, critiques)])
        for taken, *step in zip(steps, drawn, responses, critiques):
            taken.append(dict(zip(("principle", "response", "critique"), step)))
        responses = revisions
    return [{"prompt": p, "completion": r, "steps": s} if r else None for p, r, s in zip(prompts, responses, steps)]


def main(settings: Settings) -> None:
    if not 0 <= settings.revisions <= 4 or settings.temperature < 0:
        raise UserError("--revisions must be 0 to 4, --temperature 0 or more")
    principles = judge.read_constitution(settings.constitution)
    prompts = read_prompts(settings.data, split=settings.split, count=settings.count, seed=settings.seed,
                           template=settings.template)[: settings.count]
    out = Path(settings.out)
    records = read_jsonl(out)
    if wrong := [r for r in records if len(r.get("steps", "?????")) != settings.revisions]:
        raise UserError(f"{out} holds something else, or another number of revisions ({str(wrong[0])[:80]}): choose another --out")
    done, count = {r["prompt"] for r in records}, Counter()
    todo = [p for p in prompts if p not in done]
    model = judge.load(settings.init, settings.model, settings.seed, settings.device, settings.dtype)
    out.parent.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(todo), AT_ONCE):
        records += [r for r in revised(model, todo[i : i + AT_ONCE], principles, settings, count) if r]
        write_atomically(out, to_json_lines(records, ensure_ascii=False).encode())
        print(f"{i + len(todo[i : i + AT_ONCE])} of {len(todo)} prompts", flush=True)
    print(f"{len(records) - len(done)} records added to {out}, {len(records)} in all; "
          f"{count['unusable']} of {count['all']} answers unusable")
    if not records:
        raise UserError("no prompt could be answered to the end: raise --max_tokens, or take a model with a longer context")


if __name__ == "__main__":
    start(main, Settings)
