"""Who ranks: candidates (a prompt with K responses each) become rankings, the reward model's training data.

    python label.py --candidates out/candidates.jsonl --out my_rankings.jsonl                  # you, in the browser
    python label.py --candidates out/candidates.jsonl --out rankings.jsonl --annotator toy --noise 0.1,0.2,0.6
    python label.py --candidates out/candidates.jsonl --out ai.jsonl --annotator ai --judge MODEL --compare my_rankings.jsonl
    python label.py --summary --out mine.jsonl,yours.jsonl --compare gold                      # do the annotators agree?
"""
import re
from dataclasses import dataclass

from minirlhf import UserError, feedback, judge
from minirlhf.cli import start
from minirlhf.labelserver import Sitting, serve


@dataclass
class Settings:
    candidates: str = "out/candidates.jsonl"    # from sample.py --candidates_out
    out: str = "out/rankings.jsonl"     # rankings are appended; prompts that it holds already are not asked again
    annotator: str = "person"     # who ranks: person; toy, the simulated annotator of the toy world; ai, a judge with principles
    summary: bool = False         # rank nothing; print what the rankings in --out (files, comma-separated) say of the annotators
    compare: str = ""             # summary, ai: with what else they agree: gold, the toy world's score, or files of rankings
    name: str = ""                # person, ai: the name in the records; by default person or ai
    host: str = "127.0.0.1"       # person: interface of the page; 0.0.0.0 lets other machines in
    port: int = 0                 # person: port of the page; 0: any that is free
    open: bool = True             # person: open the browser
    terminal: bool = False        # person: ask here instead of in the browser
    noise: str = "0.2"            # toy: scale of its errors, in units of the gold score (-3 to 3); 0.1,0.2,0.6: three annotators
    bias: str = ""                # toy: what else it likes, as length=0.3,agreement=0.5
    judge: str = ""               # ai: a model folder, or the URL of an OpenAI-compatible endpoint (http://127.0.0.1:11434/v1)
    judge_model: str = ""         # ai: the model's name at the endpoint
    constitution: str = "constitution.txt"      # ai: a file of principles, one a paragraph; toy: the toy world's
    device: str = "auto"          # ai, a model folder: auto, cuda, mps, cpu
    seed: int = 0                 # the order of a person's questions; a toy annotator's dice; which principle an AI judges by


def toy(settings: Settings, candidates: list[dict], done: set) -> None:
    """Several annotators take prompts in turn, and every tenth prompt all of them, so that agreement can be measured."""
    try:
        noises = [float(x) for x in str(settings.noise).split(",")]
    except ValueError:
        raise UserError(f"--noise {settings.noise}: write a number, or several with commas between them") from None
    crew = [("toy" if len(noises) == 1 else f"toy{k + 1}", feedback.toy_annotator(noise, settings.bias, settings.seed + 7919 * k))
            for k, noise in enumerate(noises)]
    for i, c in enumerate(candidates):
        for name, annotate in crew if i % 10 == 0 else [crew[i % len(crew)]]:
            if (c["id"], name) not in done:
                feedback.append_ranking(settings.out, c, annotate(c["prompt"], c["responses"]), name, sync=False)


def parse_order(line: str, K: int) -> dict:
    """'2 > 1 = 3 h1 b' -> what Sitting.answer takes: response 2 best, then 1 and 3 tied; 1 is harmful; all are bad."""
    words = re.sub(r"\s*=\s*", "=", line.lower().replace(">", " ")).split()
    groups = [[int(x) for x in w.split("=")] for w in words if re.fullmatch(r"\d{1,4}(=\d{1,4})*", w)]
    harmful = [int(w[1:]) - 1 for w in words if re.fullmatch(r"h\d{1,4}", w)]
    groups = groups or [[*range(1, K + 1)]] * ("b" in words)
    if len(groups) + len(harmful) + words.count("b") < len(words) or sorted(i for g in groups for i in g) != [*range(1, K + 1)]:
        raise UserError(f"every number from 1 to {K} must occur once, best first, as in 2 > 1 = 3 h1")
    ranks = {i: rank for rank, group in enumerate(groups, 1) for i in group}
    return {"ranks": [ranks[i + 1] for i in range(K)], "harmful": harmful, "all_bad": "b" in words}


def terminal(sitting: Sitting) -> None:
    """The same questions, asked on the console."""
    def plain(text: str) -> str:                # what a model wrote must not steer the terminal
        return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

    print("best first, as: 2 > 1 = 3      also: h2 = 2 is harmful, b = all are bad, s = skip, q = finish for now")
    while "question" in (state := sitting.question()):
        print(f"\n{'-' * 78}\n{state['done']} done, {state['left']} left\n")
        print(*(plain(f"{turn['role'].capitalize()}: {turn['text']}\n") for turn in state["turns"]), sep="\n")
        print(*(f"  [{k}] " + plain(text).replace("\n", "\n      ") for k, text in enumerate(state["cards"], 1)), sep="\n")
        try:
            if (line := input("\n> ").strip()) == "q":
                return
            sitting.answer(state["question"], **({"skip": True} if line == "s" else parse_order(line, len(state["cards"]))))
        except EOFError:
            return
        except (UserError, OSError) as error:
            print(f"not saved: {error}")


def main(settings: Settings) -> None:
    if settings.summary:
        return print(feedback.summarize(settings.out, settings.compare))
    candidates = feedback.read_candidates(settings.candidates)
    before = feedback.open_rankings(settings.out, candidates)
    done, name = {(r["id"], r.get("annotator")) for r in before}, settings.name or settings.annotator
    if settings.annotator == "person":
        sitting = Sitting(candidates, settings.out, name, settings.seed)
        if "question" in sitting.question():
            terminal(sitting) if settings.terminal else serve(sitting, settings.host, settings.port, settings.open)
    elif settings.annotator == "toy":
        toy(settings, candidates, done)
    elif settings.annotator == "ai":
        principles = judge.read_constitution(settings.constitution)
        model = judge.load(settings.judge, settings.judge_model, settings.seed, settings.device)
        todo = [c for c in candidates if (c["id"], name) not in done]
        judge.annotate(todo, settings.out, model, principles, settings.seed, name)
    else:
        raise UserError(f"--annotator {settings.annotator}: unknown; take person, toy or ai")
    rankings = feedback.open_rankings(settings.out, candidates)
    print(f"{len(rankings) - len(before)} rankings added to {settings.out}, {len(rankings)} in all")
    if all(len(set(r["ranks"])) == 1 for r in rankings):
        raise UserError(f"{settings.out} prefers no response to another yet, so nothing can be learned: the same command goes on")
    if settings.annotator == "ai":
        print(feedback.summarize(settings.out, settings.compare))


if __name__ == "__main__":
    start(main, Settings)
