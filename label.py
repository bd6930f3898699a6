"""Who ranks: candidates (a prompt with K responses each) become rankings, the reward model's training data.

    python label.py --candidates out/candidates.jsonl --out my_rankings.jsonl                  # you, in the browser
    python label.py --candidates out/candidates.jsonl --out rankings.jsonl --annotator toy --noise 0.1,0.2,0.6
    python label.py --summary --out mine.jsonl,yours.jsonl                                     # do the annotators agree?
"""
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, median

from minirlhf import UserError, feedback
from minirlhf.cli import start
from minirlhf.data import records
from minirlhf.labelserver import Sitting, serve


@dataclass
class Settings:
    candidates: str = "out/candidates.jsonl"    # from sample.py --candidates_out
    out: str = "out/rankings.jsonl"     # rankings are appended; prompts that it holds already are not asked again
    annotator: str = "person"     # who ranks: person, or toy, the simulated annotator of the toy world
    name: str = "person"          # person: the name in the records
    host: str = "127.0.0.1"       # person: interface of the page; 0.0.0.0 lets other machines in
    port: int = 0                 # person: port of the page; 0: any that is free
    open: bool = True             # person: open the browser
    terminal: bool = False        # person: ask here instead of in the browser
    summary: bool = False         # rank nothing; print what the rankings in --out (files, comma-separated) say of the annotators
    noise: str = "0.2"            # toy: scale of its errors, in units of the gold score (-3 to 3); 0.1,0.2,0.6: three annotators
    bias: str = ""                # toy: what else it likes, as length=0.3,agreement=0.5
    seed: int = 0                 # the order of a person's questions; a toy annotator's dice


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


def summarize(out: str) -> str:
    """Of every annotator what they did, how fast, and whether they agree with themselves and with each other."""
    rows = {}                                   # (annotator, id, is a repeat) -> record
    for where, r in records(out, "rankings"):
        if not {"id", "annotator", "ranks", "responses"} <= r.keys():
            raise UserError(f"{where}: no ranking by label.py, which has \"id\", \"annotator\", \"responses\" and \"ranks\"")
        rows.setdefault((r["annotator"], r["id"], r.get("repeat", False)), r)

    def pairs(annotator: str, repeat: bool = False) -> dict[tuple, int]:
        return {k: v for (name, _, again), r in rows.items() if (name, again) == (annotator, repeat) and not r.get("skipped")
                for k, v in feedback.comparisons(r).items()}

    def agreement(a: dict, b: dict) -> str:
        """A pair counts 1 if both order it alike, 1/2 if one of them has a tie, 0 if they disagree."""
        both = a.keys() & b.keys()
        return f"{mean(1 - abs(a[k] - b[k]) / 2 for k in both):.2f} on {len(both)} pairs" if both else "no common pairs"

    names = list(dict.fromkeys(name for name, *_ in rows))
    said, lines, units = {name: pairs(name) for name in names}, [], defaultdict(list)
    for name, found in said.items():
        mine = [r for key, r in rows.items() if key[0] == name]
        skipped, seconds = sum(r.get("skipped", False) for r in mine), [r["seconds"] for r in mine if "seconds" in r]
        lines.append(f"{name}: {len(mine) - skipped} rankings, {skipped} skipped, "
                     f"{list(found.values()).count(0) / max(1, len(found)):.0%} of pairs tied, "
                     f"{sum('all_bad' in r for r in mine)} times all bad, {sum(len(r.get('harmful', [])) for r in mine)} harmful"
                     + (f", {60 / max(0.1, median(seconds)):.1f} labels/min" if seconds else "")
                     + (f"; agrees with themselves: {agreement(found, again)}" if (again := pairs(name, True)) else ""))
        for (i, *pair), value in found.items():            # which response of a pair comes first is arbitrary: count both ways
            units[i, *pair].append(value)
            units[i, *pair[::-1]].append(-value)
    lines += [f"{a} and {b} agree: {agreement(said[a], said[b])}" for a, b in combinations(names, 2)]
    if not math.isnan(alpha := feedback.krippendorff_alpha(list(units.values()))):
        lines.append(f"Krippendorff's alpha over pairs (better 1, tied 0, worse -1; interval metric): {alpha:.2f}")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    if settings.summary:
        return print(summarize(settings.out))
    candidates = feedback.read_candidates(settings.candidates)
    before = feedback.open_rankings(settings.out, candidates)
    if settings.annotator == "person":
        sitting = Sitting(candidates, settings.out, settings.name, settings.seed)
        if "question" in sitting.question():
            terminal(sitting) if settings.terminal else serve(sitting, settings.host, settings.port, settings.open)
    elif settings.annotator == "toy":
        toy(settings, candidates, {(r["id"], r.get("annotator")) for r in before})
    else:
        raise UserError(f"--annotator {settings.annotator}: unknown; take person or toy")
    rankings = feedback.open_rankings(settings.out, candidates)
    print(f"{len(rankings) - len(before)} rankings added to {settings.out}, {len(rankings)} in all")
    if all(len(set(r["ranks"])) == 1 for r in rankings):
        raise UserError(f"{settings.out} prefers no response to another yet, so nothing can be learned: the same command goes on")


if __name__ == "__main__":
    start(main, Settings)
