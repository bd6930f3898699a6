"""Rank candidates (a prompt with K responses each): the reward model's training data.

python label.py --candidates out/candidates.jsonl --out mine.jsonl     # you, in the browser
python label.py --candidates out/candidates.jsonl --annotator toyworld --noise 0.1,0.2,0.6
python label.py --candidates out/candidates.jsonl --annotator ai --judge MODEL --out ai.jsonl
python label.py --summary --out mine.jsonl,ai.jsonl --compare toyworld    # do they agree?
"""

import re
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from minirlhf import UserError, world
from minirlhf.cli import start
from minirlhf.feedback import judge, rankings
from minirlhf.feedback.page import Sitting, serve


@dataclass
class Settings:
    # everyday
    candidates: str = "out/candidates.jsonl"  # written by sample.py --candidates_out
    out: str = "out/rankings.jsonl"  # rankings are appended; what is ranked is not asked again
    annotator: str = "person"  # person, ai, or a world that simulates one (toyworld, my_world.py)
    summary: bool = False  # rank nothing; report on the files in --out (comma-separated)
    compare: str = ""  # with whom else they agree: a world's reward, or files of rankings
    name: str = ""  # the annotator's name in the records; empty: as --annotator
    template: Literal["chat", "raw"] = "chat"  # raw: prompts that the model continues as they are
    seed: int = 0  # of the order of questions, of simulated noise, of the choice of principles
    # a person
    host: str = "127.0.0.1"  # where the page is served; 0.0.0.0 lets other machines in
    port: int = 0  # of the page; 0: any that is free
    open: bool = True  # open the browser
    terminal: bool = False  # ask in the terminal instead
    # a simulated annotator
    noise: str = "0.2"  # scale of errors in units of utility; 0.1,0.6: two annotators
    bias: str = ""  # what else it likes: length=0.3,agreement=0.5
    # an AI
    judge: str = ""  # a model folder, or the URL of an OpenAI-compatible endpoint
    judge_model: str = ""  # the model's name at the endpoint
    constitution: str = ""  # a text or a module with PRINCIPLES; empty: feedback/constitution.txt
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: str = "auto"  # of matrix products: auto, float32, bfloat16


def simulate(settings: Settings, name: str, candidates: list, done: set) -> None:
    """Annotators take prompts in turn. Every tenth prompt goes to all, to measure agreement."""
    needed = ["annotate", "features"] if settings.bias else ["annotate"]
    module = world.load(settings.annotator, "--annotator", *needed)
    try:
        noises = [float(noise) for noise in settings.noise.split(",")]
    except ValueError:
        raise UserError(f"--noise {settings.noise}: write numbers, as in 0.1,0.6") from None
    annotators = []  # (name, function)
    for k, noise in enumerate(noises):
        seed = settings.seed + 7919 * k
        annotate = rankings.simulated_annotator(module, noise, settings.bias, seed)
        annotators.append((name if len(noises) == 1 else f"{name}{k + 1}", annotate))
    for i, candidate in enumerate(candidates):
        chosen = annotators if i % 10 == 0 else [annotators[i % len(annotators)]]
        for annotator, annotate in chosen:
            if (candidate.id, annotator) not in done:
                ranks = annotate(candidate.prompt.source, candidate.responses)
                rankings.append_ranking(settings.out, candidate, ranks, annotator, sync=False)


def parse_order(line: str, count: int) -> dict:
    """'2 > 1 = 3 h1 b': 2 is best, 1 and 3 tie, 1 is harmful, all are bad -> Sitting.answer's."""
    words = re.sub(r"\s*=\s*", "=", line.lower().replace(">", " ")).split()
    groups, harmful = [], []
    for word in words:
        if re.fullmatch(r"\d{1,4}(=\d{1,4})*", word):
            groups.append([int(number) for number in word.split("=")])
        elif re.fullmatch(r"h\d{1,4}", word):
            harmful.append(int(word[1:]) - 1)
        elif word != "b":
            raise UserError(f"{word!r} is no number, h and a number, or b")
    if not groups and "b" in words:
        groups = [list(range(1, count + 1))]
    if sorted(chain(*groups)) != list(range(1, count + 1)):
        raise UserError(f"every number from 1 to {count} must occur once, as in 2 > 1 = 3 h1")
    rank_of = {number: rank for rank, group in enumerate(groups, 1) for number in group}
    ranks = [rank_of[number] for number in range(1, count + 1)]
    return {"ranks": ranks, "harmful": harmful, "all_bad": "b" in words}


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def ask_in_terminal(sitting: Sitting) -> None:
    print("best first, as in 2 > 1 = 3; h2: 2 is harmful, b: all are bad, s: skip, q: quit for now")
    while "question" in (state := sitting.question()):
        print(f"\n{'-' * 78}\n{state['done']} done, {state['left']} left\n")
        for turn in state["turns"]:
            print(printable(f"{turn['role'].capitalize()}: {turn['text']}\n"))
        for number, text in enumerate(state["cards"], 1):
            print(f"  [{number}] " + printable(text).replace("\n", "\n      "))
        try:
            line = input("\n> ").strip()
            if line == "q":
                return
            if line == "s":
                sitting.answer(state["question"], skip=True)
            else:
                sitting.answer(state["question"], **parse_order(line, len(state["cards"])))
        except EOFError:
            return
        except (UserError, OSError) as error:
            print(f"not saved: {error}")


def main(settings: Settings) -> None:
    if settings.summary:
        print(rankings.summarize(settings.out, settings.compare))
        return
    candidates = rankings.read_candidates(settings.candidates, settings.template)
    before = rankings.open_rankings(settings.out, candidates)
    done = {(ranking["id"], ranking.get("annotator")) for ranking in before}
    name = settings.name or settings.annotator
    if settings.annotator == "person":
        sitting = Sitting(candidates, settings.out, name, settings.seed)
        if settings.terminal:
            ask_in_terminal(sitting)
        elif "question" in sitting.question():
            serve(sitting, settings.host, settings.port, settings.open)
    elif settings.annotator == "ai":
        principles = judge.read_constitution(settings.constitution)
        model = judge.load(
            settings.judge, settings.judge_model, settings.seed, settings.device, settings.dtype
        )
        todo = [candidate for candidate in candidates if (candidate.id, name) not in done]
        judge.annotate(todo, settings.out, model, principles, settings.seed, name)
    else:
        simulate(settings, name, candidates, done)
    after = rankings.open_rankings(settings.out, candidates)
    print(f"{len(after) - len(before)} rankings added to {settings.out}, {len(after)} in all")
    if all(len(set(ranking["ranks"])) == 1 for ranking in after):
        raise UserError(
            f"{settings.out} prefers no response to another yet, so nothing can be learnt: "
            "repeat the command to go on"
        )
    if settings.annotator == "ai":
        print(rankings.summarize(settings.out, settings.compare))


if __name__ == "__main__":
    start(main, Settings)
