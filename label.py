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
from minirlhf.labelserver import BadAnswer, Sitting, serve


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


def toy(settings: Settings, candidates: list[dict]) -> None:
    """Several annotators take prompts in turn, and every tenth prompt all of them, so that agreement can be measured."""
    done = {(r["id"], r.get("annotator")) for r in feedback.open_rankings(settings.out, candidates)}
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
    line = re.sub(r"\s*=\s*", "=", line.lower().replace(">", " "))
    groups, harmful, all_bad = [], [], False
    for word in line.split():
        if word == "b":
            all_bad = True
        elif re.fullmatch(r"h[0-9]{1,9}", word):
            harmful.append(int(word[1:]) - 1)
        elif re.fullmatch(r"[0-9]{1,9}(=[0-9]{1,9})*", word):
            groups.append([int(x) - 1 for x in word.split("=")])
        else:
            raise BadAnswer(f"{word!r} is not understood")
    groups = groups or ([list(range(K))] if all_bad else [])
    ranks = {i: rank for rank, group in enumerate(groups, 1) for i in group}
    if sorted(i for group in groups for i in group) != list(range(K)):
        raise BadAnswer(f"every number from 1 to {K} must occur, and once")
    return {"ranks": [ranks[i] for i in range(K)], "harmful": harmful, "all_bad": all_bad}


def terminal(sitting: Sitting) -> None:
    """The same questions, asked on the console."""
    def plain(text: str) -> str:                # what a model wrote must not steer the terminal
        return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)

    print("best first, as: 2 > 1 = 3      also: h2 = 2 is harmful, b = all bad, s = skip, q = finish for now")
    while "question" in (state := sitting.question()):
        print(f"\n{'─' * 78}\n{state['done']} done, {state['left']} left\n")
        print("\n\n".join(plain(f"{turn['role'].capitalize()}: {turn['text']}") for turn in state["turns"]))
        print("".join(f"\n  [{k}] " + plain(text).replace("\n", "\n      ") for k, text in enumerate(state["cards"], 1)))
        while True:
            try:
                line = input("\n> ").strip()
                if line == "q":
                    return
                sitting.answer(state["question"], **({"skip": True} if line == "s" else parse_order(line, len(state["cards"]))))
                break
            except EOFError:
                return
            except (BadAnswer, OSError) as error:
                print(f"not saved: {error}")


def summarize(out: str) -> str:
    """Of every annotator what they did, how fast, and whether they agree with themselves and with each other."""
    by, seen = defaultdict(list), set()
    for where, r in records(out, "rankings"):
        if not {"id", "annotator", "ranks", "responses"} <= r.keys():
            raise UserError(f"{where}: no ranking by label.py, which has \"id\", \"annotator\", \"responses\" and \"ranks\"")
        if (key := (r["id"], r["annotator"], r.get("repeat"))) not in seen:
            by[r["annotator"]].append(r)
            seen.add(key)

    def pairs(rows: list[dict], repeat: bool = False) -> dict:
        return {k: v for r in rows if not r.get("skipped") and r.get("repeat", False) == repeat
                for k, v in feedback.comparisons(r).items()}

    def agreement(a: dict, b: dict) -> str:
        """A pair counts 1 if both order it alike, 1/2 if one of them has a tie, 0 if they disagree."""
        both = a.keys() & b.keys()
        return f"{mean(1 - abs(a[k] - b[k]) / 2 for k in both):.2f} on {len(both)} pairs" if both else "no common pairs"

    lines, compared = [], {name: pairs(rows) for name, rows in by.items()}
    for name, rows in by.items():
        ranked = [r for r in rows if not r.get("skipped")]
        again, seconds = pairs(rows, repeat=True), [r["seconds"] for r in rows if r.get("seconds")]
        ties = list(compared[name].values())
        lines.append(f"{name}: {len(ranked)} rankings, {len(rows) - len(ranked)} skipped, {ties.count(0) / max(1, len(ties)):.0%} of pairs "
                     f"tied, {sum(r.get('all_bad', False) for r in rows)} all bad, {sum(len(r.get('harmful', [])) for r in rows)} "
                     "responses harmful" + (f", {60 / max(0.1, median(seconds)):.1f} labels/min" if seconds else "")
                     + (f"; agrees with themselves: {agreement(compared[name], again)}" if again else ""))
    lines += [f"{a} and {b} agree: {agreement(compared[a], compared[b])}" for a, b in combinations(compared, 2)]
    units = defaultdict(list)
    for found in compared.values():
        for (i, *pair), value in found.items():            # which response of a pair comes first is arbitrary: count both ways
            units[i, *pair].append(value)
            units[i, *pair[::-1]].append(-value)
    alpha = feedback.krippendorff_alpha(list(units.values()))
    if not math.isnan(alpha):
        lines.append(f"Krippendorff's alpha over pairs (better 1, tied 0, worse -1; interval metric): {alpha:.2f}")
    return "\n".join(lines)


def main(settings: Settings) -> None:
    if settings.summary:
        return print(summarize(settings.out))
    candidates = feedback.read_candidates(settings.candidates)
    before = len(feedback.open_rankings(settings.out, candidates))
    if settings.annotator == "person":
        sitting = Sitting(candidates, settings.out, settings.name, settings.seed)
        if "question" not in sitting.question():
            print("there is nothing left to rank")
        elif settings.terminal:
            terminal(sitting)
        else:
            serve(sitting, settings.host, settings.port, settings.open)
    elif settings.annotator == "toy":
        toy(settings, candidates)
    else:
        raise UserError(f"--annotator {settings.annotator}: unknown; take person or toy")
    rankings = feedback.open_rankings(settings.out, candidates)
    if all(len(set(r["ranks"])) == 1 for r in rankings):
        raise UserError(f"{settings.out} holds no ranking that prefers anything yet: the same command goes on with it")
    print(f"{len(rankings) - before} rankings added to {settings.out}, {len(rankings)} in all")


if __name__ == "__main__":
    start(main, Settings)
