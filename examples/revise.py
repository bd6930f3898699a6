"""Constitutional AI's first half: a model criticises and revises its own responses.

Sample a response; draw a principle; critique; revise; draw again. Prompts with their last revisions
are demonstrations for train_sft.py that no person has labelled (Bai et al. 2022, section 3.1). With
--revisions 0 the samples stay as they are: mix them in for harmless prompts, to stay as helpful.

    python examples/revise.py --init out/sft --data harmful.jsonl --out out/revisions.jsonl
    python examples/revise.py --init http://127.0.0.1:11434/v1 --model llama3.2 --data prompts.jsonl
    python train_sft.py --init out/sft --data out/revisions.jsonl --out out/sft_constitutional
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from minirlhf import UserError
from minirlhf.cli import start
from minirlhf.console import waiting
from minirlhf.data import Prompt, read_prompts
from minirlhf.feedback import judge
from minirlhf.feedback.judge import CRITIQUE, REVISE, Tally, ask, draw
from minirlhf.files import check_target, lock, lock_of, read_jsonl, write_jsonl

AT_ONCE = 64  # prompts between two writes to the file


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # who responds and revises: a model folder, or an endpoint's URL
    model: str = ""  # the model's name at the endpoint
    data: str = "toyworld"  # prompts: files with a "prompt" field, or a world
    out: str = "out/revisions.jsonl"  # records are added; prompts it holds are not asked again
    constitution: str = ""  # a text or a module with PRINCIPLES; empty: feedback/constitution.txt
    revisions: int = 2  # rounds of critique and revision, 0 to 4
    # sampling
    count: int = 500  # how many prompts
    split: Literal["train", "test"] = "train"  # of a world's prompts
    template: Literal["chat", "raw"] = "chat"  # raw: prompts that the model continues as they are
    max_tokens: int = 64  # longest response, critique and revision
    temperature: float = 0.7  # of sampling; 0: always the likeliest token
    # run
    seed: int = 0  # of everything random
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: str = "auto"  # of matrix products: auto, float32, bfloat16


def say(model, prompts: list[Prompt | None], settings: Settings, tally: Tally) -> list[str | None]:
    """An answer to each prompt; None for no prompt and where the answer is unusable."""
    asked = [prompt for prompt in prompts if prompt]
    tally.bar.update(len(prompts) - len(asked))
    answers = tally.count(model.say(asked, settings.max_tokens, settings.temperature))
    return [next(answers) if prompt else None for prompt in prompts]


def question(template: str, prompt: Prompt, **texts: str | None) -> Prompt | None:
    """None if a text is missing, because an earlier answer was unusable."""
    if not all(texts.values()):
        return None
    return Prompt.of(ask(template, prompt, **texts))


def revise(
    model, prompts: list[Prompt], principles: list[str], settings: Settings, tally: Tally
) -> list[dict]:
    """A record for each prompt whose answers were all usable."""
    steps = [[] for _ in prompts]
    responses = say(model, prompts, settings, tally)
    for turn in range(settings.revisions):
        drawn, questions = [], []
        for prompt, response in zip(prompts, responses):
            principle = draw(principles, settings.seed, prompt.source, turn)
            drawn.append(principle)
            questions.append(question(CRITIQUE, prompt, principle=principle, response=response))
        critiques = say(model, questions, settings, tally)
        questions = []
        for i, prompt in enumerate(prompts):
            step = {"response": responses[i], "critique": critiques[i]}
            steps[i].append({"principle": drawn[i], **step})
            questions.append(question(REVISE, prompt, **step))
        responses = say(model, questions, settings, tally)
    records = []
    for prompt, response, taken in zip(prompts, responses, steps):
        if response:
            records.append({"prompt": prompt.source, "completion": response, "steps": taken})
    return records


def main(settings: Settings) -> None:
    if not 0 <= settings.revisions <= 4:
        raise UserError(f"--revisions {settings.revisions}: choose 0 to 4")
    principles = judge.read_constitution(settings.constitution)
    prompts = read_prompts(
        settings.data,
        split=settings.split,
        count=settings.count,
        seed=settings.seed,
        template=settings.template,
    )
    out = Path(settings.out)
    check_target("--out", out)
    lock(lock_of(out), str(out))
    records = read_jsonl(out)
    for record in records:
        steps = record.get("steps")
        if not isinstance(steps, list) or len(steps) != settings.revisions:
            raise UserError(f"{out} holds other records or --revisions: choose another --out")
    before = len(records)
    done = {Prompt.of(record["prompt"], settings.template) for record in records}
    todo = [prompt for prompt in prompts[: settings.count] if prompt not in done]
    model = judge.load(
        settings.init, settings.model, settings.seed, settings.device, settings.dtype
    )
    total = len(todo) * (1 + 2 * settings.revisions)
    with waiting("asking", total, "answers") as bar:
        tally = Tally(model, bar)
        for start_at in range(0, len(todo), AT_ONCE):
            chunk = todo[start_at : start_at + AT_ONCE]
            records += revise(model, chunk, principles, settings, tally)
            write_jsonl(out, records)
            if not records:
                tally.stop_if_hopeless()
    print(f"{len(records) - before} records added to {out}, {len(records)} in all; {tally}")
    if not records:
        raise UserError("no usable answer: raise --max_tokens, or take a model of longer context")


if __name__ == "__main__":
    start(main, Settings)
