"""Who ranks: candidates (a prompt with K responses each) become rankings, the reward model's training data.

    python label.py --candidates out/candidates.jsonl --out rankings.jsonl --annotator toy --noise 0.2
"""
from dataclasses import dataclass
from pathlib import Path

from minirlhf import UserError, feedback, judge
from minirlhf.cli import start
from minirlhf.run import read_jsonl


@dataclass
class Settings:
    candidates: str = "out/candidates.jsonl"    # from sample.py --candidates_out
    out: str = "out/rankings.jsonl"     # rankings are appended; prompts that it holds already are not asked again
    annotator: str = "toy"        # who ranks: toy, the simulated annotator of the toy world; ai, a judge with written principles
    noise: float = 0.2            # toy: scale of its errors, in units of the gold score (which spans -3 to 3)
    bias: str = ""                # toy: what else it likes, as length=0.3,agreement=0.5
    judge: str = ""               # ai: a model folder, or the URL of an OpenAI-compatible endpoint (http://127.0.0.1:11434/v1)
    judge_model: str = ""         # ai: the model's name at the endpoint
    constitution: str = "constitution.txt"      # ai: a file of principles, one a paragraph; toy: the toy world's
    seed: int = 0                 # toy: its dice; ai: which principle for which prompt


def main(settings: Settings) -> None:
    candidates = feedback.read_candidates(settings.candidates)
    if settings.annotator not in ("toy", "ai"):
        raise UserError(f"--annotator {settings.annotator}: unknown; take toy or ai")
    annotate = feedback.toy_annotator(settings.noise, settings.bias, settings.seed)
    out = Path(settings.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = {r["id"]: r for r in read_jsonl(out)}
    texts = {c["id"]: (c["prompt"], c["responses"]) for c in candidates}
    for i, r in done.items():
        if texts.get(i) != (r["prompt"], r["responses"]):
            raise UserError(f"{out} holds a ranking with id {i!r} that is not of {settings.candidates}: choose another --out")
    if settings.annotator == "ai":
        model = judge.load(settings.judge, settings.judge_model, settings.seed)
        return judge.annotate([c for c in candidates if c["id"] not in done], out, model,
                              judge.read_constitution(settings.constitution), settings.seed)
    for candidate in candidates:
        if candidate["id"] not in done:
            feedback.append_ranking(out, candidate, annotate(candidate["prompt"], candidate["responses"]), settings.annotator)
    print(f"{len(candidates) - len(done)} rankings added to {out}, {len(candidates)} in all")


if __name__ == "__main__":
    start(main, Settings)
