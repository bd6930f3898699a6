"""Rank candidates (a prompt with K responses each): the reward model's training data.

python label.py --candidates out/candidates.jsonl --out mine.jsonl     # you, in the browser
python label.py --candidates out/candidates.jsonl --annotator toyworld --noise 0.1,0.2,0.6
python label.py --candidates out/candidates.jsonl --annotator ai --judge MODEL --out ai.jsonl
python label.py --summary --out mine.jsonl,ai.jsonl --compare toyworld    # do they agree?

With --chat you talk with models instead, and choose between their answers turn by turn:

python label.py --chat --policies out/sft,out/ppo
"""

import functools
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from minirlhf import UserError, world
from minirlhf.cli import numbers, printable, start
from minirlhf.console import waiting
from minirlhf.feedback import annotators, chat, judge, rankings
from minirlhf.feedback.page import Sitting
from minirlhf.feedback.server import Address, serve
from minirlhf.records import records


@dataclass
class Settings:
    # everyday
    candidates: str = "out/candidates.jsonl"  # written by sample.py --candidates_out
    out: str = ""  # gets the rankings; empty: out/rankings.jsonl, with --chat out/chat.jsonl
    annotator: str = "person"  # person, ai, or a world that simulates one (toyworld, my_world.py)
    summary: bool = False  # rank nothing; report on the files in --out (comma-separated)
    compare: str = ""  # with whom else they agree: a world's reward, or files of rankings
    name: str = ""  # the annotator's name in the records; empty: as --annotator
    template: Literal["chat", "raw"] = "chat"  # raw: prompts that the model continues as they are
    seed: int = 0  # of the order of questions, of simulated noise, of the choice of principles
    # a person
    guidelines: str = ""  # a text file that the page shows in a fold
    host: str = "127.0.0.1"  # where the page is served; 0.0.0.0 lets other machines in
    port: int = 0  # of the page; 0: as last time, or any that is free
    public_url: str = ""  # the page's address behind a proxy, as in https://rank.example.org/mine
    open: bool = True  # open the browser
    terminal: bool = False  # ask in the terminal instead
    # a person who talks
    chat: bool = False  # talk with --policies; each choice between their answers is a ranking
    policies: str = ""  # model folders or names, comma-separated; of one, samples are compared
    answers: int = 2  # to each turn
    max_tokens: int = 128  # longest answer
    temperature: float = -1.0  # of the answers; -1: as in each model's training, else 0.7
    system: str = ""  # system text before each conversation
    # a simulated annotator
    noise: str = "0.2"  # scale of errors in units of utility; 0.1,0.6: two annotators
    bias: str = ""  # what else it likes: length=0.3,agreement=0.5
    # an AI
    judge: str = ""  # a model folder, or the URL of an OpenAI-compatible endpoint
    judge_model: str = ""  # the model's name at the endpoint
    constitution: str = ""  # a text or a module with PRINCIPLES; empty: feedback/constitution.txt
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products


def simulated_annotators(settings) -> list[Callable]:
    """(prompt, responses) -> ranks: a function for each number in --noise.

    settings: this script's, or run_rlhf.py's, which checks its own before anything is trained
    """
    needed = ["annotate", "features"] if settings.bias else ["annotate"]
    module = world.load(settings.annotator, "--annotator", *needed)
    noises = numbers(settings.noise)
    if not noises or not all(0 <= noise < 1e6 for noise in noises):
        raise UserError(f"--noise {settings.noise}: write numbers, as in 0.1,0.6")
    functions = []
    for k, noise in enumerate(noises):
        seed = settings.seed + 7919 * k
        functions.append(rankings.simulated_annotator(module, noise, settings.bias, seed))
    return functions


def simulate(settings: Settings, candidates: list, done: set) -> None:
    """Annotators take prompts in turn. Every tenth prompt goes to all, to measure agreement."""
    functions = simulated_annotators(settings)
    names = [settings.name]
    if len(functions) > 1:
        names = [f"{settings.name}{k}" for k in range(1, len(functions) + 1)]
    simulated = list(zip(names, functions))
    with waiting("ranking", len(candidates), "prompts") as bar:
        for i, candidate in enumerate(candidates):
            chosen = simulated if i % 10 == 0 else [simulated[i % len(simulated)]]
            for annotator, give_ranks in chosen:
                if (candidate.id, annotator) not in done:
                    ranks = give_ranks(candidate.prompt.source, candidate.responses)
                    rankings.append_ranking(settings.out, candidate, ranks, annotator, sync=False)
            bar.update()


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
            raise UserError(f"{word!r:.40} is no number, h and a number, or b")
    if not groups and "b" in words:
        groups = [list(range(1, count + 1))]
    if sorted(chain(*groups)) != list(range(1, count + 1)):
        raise UserError(f"every number from 1 to {count} must occur once, as in 2 > 1 = 3 h1")
    rank_of = {number: rank for rank, group in enumerate(groups, 1) for number in group}
    ranks = [rank_of[number] for number in range(1, count + 1)]
    return {"ranks": ranks, "harmful": harmful, "all_bad": "b" in words}


def ask_in_terminal(sitting: Sitting) -> None:
    print(printable(sitting.guidelines))
    print("best first, as in 2 > 1 = 3; h2: 2 is harmful, b: all are bad")
    print("s: skip, u: take the last answer back, q: quit for now")
    state = sitting.question()
    while "question" in state:
        print(f"\n{'-' * 78}\n{state['done']} done, {state['left']} left\n")
        for turn in state["turns"]:
            print(printable(f"{turn['role'].capitalize()}: {turn['text']}\n"))
        for number, text in enumerate(state["cards"], 1):
            print(f"  [{number}] " + printable(text).replace("\n", "\n      "))
        try:
            line = input("\n> ").strip()
            if line == "q":
                return
            if line == "u":
                state = sitting.back(state["question"])
                continue
            answer = {"skip": True}
            if line != "s":
                answer = parse_order(line, len(state["cards"]))
            sitting.answer(state["question"], **answer, replaces="answer" in state)
            state = sitting.question()
        except EOFError:
            return
        except (UserError, OSError) as error:
            print(f"not saved: {error}")


def check(settings: Settings) -> None:
    """UserError for settings that do not go together."""
    if "," in settings.out:
        raise UserError(f"--out {settings.out}: name one file; a comma separates files")
    if Path(settings.out).resolve() == Path(settings.candidates).resolve():
        raise UserError(f"--out {settings.out} is --candidates: choose another file for rankings")
    if settings.chat and (settings.terminal or settings.annotator != "person"):
        raise UserError("--chat is for a person at the page: leave out --terminal and --annotator")
    if settings.policies and not settings.chat:
        raise UserError("--policies are for --chat; candidates are ranked without a model")


def read_guidelines(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not in UTF-8"
        raise UserError(f"--guidelines {path}: {reason}: name a text file") from None


def serve_page(app, settings: Settings, what: str) -> None:
    address = Address(settings.host, settings.port, settings.public_url)
    serve(app, address, Path(settings.out).with_suffix(".page.html"), what, settings.open)


def rank(settings: Settings, candidates: list, next_step: str) -> int:
    """A person ranks; the number of questions that are left."""
    guidelines = read_guidelines(settings.guidelines)
    sitting = Sitting(candidates, settings.out, settings.name, settings.seed, guidelines, next_step)
    if settings.terminal:
        ask_in_terminal(sitting)
    elif "question" in sitting.question():
        serve_page(sitting, settings, "rank")
    return sitting.question()["left"]


def talk(settings: Settings) -> None:
    """A person talks with models and chooses between their answers."""
    options = chat.Options(
        settings.answers,
        settings.max_tokens,
        settings.temperature,
        settings.system,
        settings.seed,
    )
    guidelines = read_guidelines(settings.guidelines)
    rankings.open_rankings(settings.out)
    panel = chat.Panel.open(settings.policies, options, settings.device, settings.dtype)
    first = next(iter(panel.policies))
    next_step = shlex.join(["python", "train_rm.py", "--init", first, "--data", settings.out])
    conversation = chat.Talk(panel, settings.out, settings.name, guidelines, next_step)
    serve_page(conversation, settings, "talk")
    rankings.close_rankings(settings.out)
    kept = conversation.kept()
    print(f"{len(kept)} choices of {settings.name} in {settings.out}")
    for line in chat.describe(kept):
        print(line)
    if kept:
        print(f"next: {next_step}")


def summarize(settings: Settings) -> None:
    print(annotators.summarize(settings.out, settings.compare))
    for line in chat.describe(record for _, record in records(settings.out, "rankings")):
        print(line)


def annotate(settings: Settings, next_step: str) -> None:
    """Whoever it is ranks the candidates. next_step: empty in a loop, which goes on by itself."""
    candidates = rankings.read_candidates(settings.candidates, settings.template)
    if all(len(set(candidate.responses)) == 1 for candidate in candidates):
        raise UserError(
            f"{settings.candidates}: the responses to each prompt are equal, so there is nothing "
            "to rank: sample more of them (--samples), or from another model"
        )
    before = rankings.open_rankings(settings.out, candidates)
    done = {(ranking["id"], ranking.get("annotator")) for ranking in before}
    left = 0  # questions to a person
    if settings.annotator == "person":
        left = rank(settings, candidates, next_step)
    elif settings.annotator == "ai":
        principles = judge.read_constitution(settings.constitution)
        model = judge.load(
            settings.judge, settings.judge_model, settings.seed, settings.device, settings.dtype
        )
        todo = [candidate for candidate in candidates if (candidate.id, settings.name) not in done]
        judge.annotate(todo, settings.out, model, principles, settings.seed, settings.name)
    else:
        simulate(settings, candidates, done)
    after = rankings.open_rankings(settings.out, candidates)
    rankings.close_rankings(settings.out)
    print(f"{len(after) - len(before)} rankings added to {settings.out}, {len(after)} in all")
    if left:
        print(f"questions left: {left}; the same command goes on with them")
        if not next_step:
            raise KeyboardInterrupt  # the loop ends here too
    if all(len(set(ranking["ranks"])) == 1 for ranking in after):
        remedy = "the same command goes on" if left else "rank other candidates, with another --out"
        raise UserError(
            f"{settings.out} prefers no response to another, so nothing can be learnt: {remedy}"
        )
    if settings.annotator == "ai":
        summarize(settings)
    if next_step:
        print(f"next: {next_step}")


def main(settings: Settings, is_alone: bool = False) -> None:
    """is_alone: run as a script, so say what comes next; run_rlhf.py goes on by itself.

    Where a person leaves questions, it ends as with Ctrl-C, unless it is alone.
    """
    if not settings.out:
        out = "out/chat.jsonl" if settings.chat else "out/rankings.jsonl"
        settings = replace(settings, out=out)
    if not settings.name:
        settings = replace(settings, name=settings.annotator)
    if settings.summary:
        return summarize(settings)
    check(settings)
    if settings.chat:
        return talk(settings)
    next_step = ""
    if is_alone:
        next_step = shlex.join(["python", "train_rm.py", "--data", settings.out])
        if settings.template == "raw":
            next_step += " --template raw"
    annotate(settings, next_step)


if __name__ == "__main__":
    start(functools.partial(main, is_alone=True), Settings)
