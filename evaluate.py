"""How good are they: policies against a baseline on held-out prompts, by gold, a reward, or a judge that compares.

Win rates (ties count half) and means come with 95 % intervals; prompts, not responses, are the independent units. With --reward
also what could be wrong with it and with the policies (minirlhf/probes.py).

    python evaluate.py --policies out/sft,out/round1/ppo --reward out/round1/rm
    python evaluate.py --policies out/sft,out/dpo --data prompts.jsonl --judge my_judges.py:shorter
    python evaluate.py --policies out/sft,a/ppo,b/ppo --reward out/rm --out ab/evaluation.json && python -m minirlhf.report ab
"""
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf import UserError, losses, probes, rewards, rollout, toyworld
from minirlhf.cli import start
from minirlhf.data import fit, read_prompts
from minirlhf.json_text import to_json
from minirlhf.losses import mean_of
from minirlhf.model import GPT, write_atomically
from minirlhf.run import pick_autocast, pick_device, read_jsonl, seed_of


@dataclass
class Settings:
    policies: str = "out/sft,out/ppo"   # model folders, comma-separated
    baseline: str = ""            # whom they are compared with; empty: the first of them
    reference: str = ""           # model that the KL is measured against; empty: the baseline
    reward: str = ""              # reward model's folder, file.py:function, or more (minirlhf/rewards.py): scores, best of n
    ensemble: str = "mean"        # of rewards divided by commas: mean, min, uwo
    watch: str = ""               # other rewards, comma-separated, that no policy was trained on: do they see the gain too?
    judge: str = "auto"           # who wins by: gold, reward, or file.py:function(prompt, [a, b]) -> chance that a is better
    data: str = "toy"             # prompts: toy, or JSONL files with a "prompt" field
    gold: str = "toy"             # hidden judge: toy (knows the toy world's prompts), or a reward that no policy was trained on
    template: str = "chat"        # chat: a bare prompt is a human turn; raw: the response continues it as it is
    split: str = "test"           # toy prompts: test (held out), or train
    count: int = 400              # how many prompts
    samples: int = 4              # responses per prompt; with --reward also the best of n for every n up to this
    max_tokens: int = 64          # longest response
    temperature: float = 0.7      # of sampling
    examples: int = 24            # prompts whose answers are kept side by side
    out: str = "out/evaluation.json"    # every number
    seed: int = 1000              # of prompts and samples
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16


def wins(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """(P, S) scores -> share of each prompt's S x S comparisons won, ties half: (P,)."""
    difference = mine[:, :, None] - theirs[:, None, :]                        # (P, S, S)
    tie = difference.abs() < 1e-9
    return ((difference > 0) & ~tie).double().mean((1, 2)) + tie.double().mean((1, 2)) / 2


def judged(judge: Callable, prompts: list[str], mine: list[list[str]], theirs: list[list[str]]) -> tuple[torch.Tensor, float]:
    """(P, S) chances that my s-th response to a prompt beats their s-th, asked in both orders and averaged, so that a taste
    for the first place cancels; and the share of pairs in which both orders gave the same winner. Equal texts tie unasked.
    judge(prompt, [a, b]) -> from 0 (b is better) over 0.5 to 1 (a is)."""
    def ask(prompt: str, pair: list[str]) -> float:
        answer = judge(prompt, pair)
        if not isinstance(answer, int | float) or not 0 <= answer <= 1:
            raise UserError(f"--judge gave {answer!r} for {pair[0][:60]!r} against {pair[1][:60]!r}: return a number from 0 to 1, "
                            "how likely the first response is the better one")
        return float(answer)

    both = torch.tensor([[(0.5, 0.5) if a == b else (ask(p, [a, b]), 1 - ask(p, [b, a])) for a, b in zip(xs, ys)]
                         for p, xs, ys in zip(prompts, mine, theirs)], dtype=torch.float64)              # (P, S, 2)
    return both.mean(-1), float(((both[..., 0] - 0.5).sign() == (both[..., 1] - 0.5).sign()).double().mean())


def distinct_ngrams(responses: list[str], n: int) -> float:
    """Share of different ones among all n-grams of words (Li 2016); falls with the amount of text, so compare equal amounts."""
    grams = [gram for r in responses for gram in zip(*(r.split()[i:] for i in range(n)))]
    return len(set(grams)) / max(1, len(grams))


def ranked_right(scores: torch.Tensor, gold: torch.Tensor) -> dict[str, float]:
    """How often a reward orders two responses to one prompt (P, S) as gold does, where gold sees a difference."""
    prompt, (better, worse) = probes.pairs(gold, scores)                      # (N,) each
    return probes.accuracy(prompt, better - worse)


def assess(prompts: list[str], responses: list[list[str]], judge: rewards.RewardFn | None = None) -> dict:
    """P prompts with S responses each -> what the texts alone tell. judge: instead of the toy world's gold score, which is
    left out where a prompt is not of its world."""
    P, S = len(prompts), len(responses[0])
    kinds, every = [toyworld.kind(p) for p in prompts], [r for rs in responses for r in rs]
    open_ended = [r for k, rs in zip(kinds, responses) if k in (*toyworld.OPEN_ENDED, "other") for r in rs]
    words = torch.tensor([[len(r.split()) for r in rs] for rs in responses], dtype=torch.float64)
    result = {"words": mean_of(words), "distinct_open_ended": len(set(open_ended)) / max(1, len(open_ended)),
              "distinct_ngrams": {str(n): distinct_ngrams(every, n) for n in (1, 2, 3)}, "responses": P * S}
    if judge:
        scores = judge([p for p in prompts for _ in range(S)], every)
        judged = [[{"total": x} for x in scores[i : i + S]] for i in range(0, P * S, S)]
    elif "other" in kinds:
        return result
    else:
        judged = [[toyworld.gold(p, r) for r in rs] for p, rs in zip(prompts, responses)]
    gold = torch.tensor([[g["total"] for g in gs] for gs in judged])                     # (P, S)
    parts = {name: mean_of(torch.tensor([[g[name] for g in gs] for gs in judged])) for name in judged[0][0]}
    by_kind = {k: mean_of(gold[[i for i in range(P) if kinds[i] == k]]) for k in sorted(set(kinds))}
    return result | {"scores": gold, "gold": parts.pop("total"), "parts": parts, "kinds": by_kind}


class Evaluation:
    """Who is asked what, and who judges the answers; P prompts, S responses to each."""

    def __init__(self, settings: Settings, baseline: str):
        self.settings, self.device = settings, pick_device(settings.device)
        self.prompts = read_prompts(settings.data, split=settings.split, count=settings.count, seed=settings.seed,
                                    template=settings.template)[: settings.count]
        self.reward = rewards.load(settings.reward, self.place, settings.ensemble) if settings.reward else None
        self.watched = {f"watch_{name}": rewards.load(name, self.place) for name in settings.watch.split(",") if name}
        if self.watched and not self.reward:
            raise UserError("--watch compares its gain with that of --reward: name the reward that the policies were trained on")
        self.gold = rewards.load(settings.gold, self.place) if settings.gold != "toy" else None
        self.has_gold = bool(self.gold) or all(toyworld.kind(p) != "other" for p in self.prompts)
        knows = ["gold"] * self.has_gold + ["reward"] * bool(self.reward)
        self.by = settings.judge if settings.judge != "auto" else [*knows, ""][0]
        self.compare = rewards.load_function(self.by, "--judge") if self.by.rpartition(":")[0].endswith(".py") else None
        if not self.compare and self.by not in knows:
            raise UserError(f"--judge {settings.judge}: nobody says who wins. The toy world's gold knows its own prompts alone: "
                            "take --gold REWARD, --reward REWARD, or --judge file.py:function")
        self.reference = self.place(GPT.from_pretrained(settings.reference or baseline))
        self.context = min([self.reference.config.n_positions, *(              # the shortest of all who read the responses
            json.loads(Path(f, "config.json").read_text(encoding="utf-8")).get("n_positions") or math.inf
            for spec in (settings.reward, settings.gold) for f in rewards.folders(spec))])
        self.prompts = fit(self.prompts, self.reference.config.n_positions - settings.max_tokens, "prompts",
                           length=lambda p: len(self.reference.tokenizer.encode_prompt(p)))
        wrong = toyworld.prompts(settings.split, 6 * settings.count, settings.seed) if settings.data == "toy" else self.prompts
        wrong = [p for p in dict.fromkeys(wrong) if toyworld.features(p, "You are right.")["agreement"]]
        self.beliefs = wrong[: -(-settings.count // 8)] if self.reward else []

    def place(self, model, frozen=True):
        model.autocast_dtype = pick_autocast(self.settings.dtype, self.device)
        return model.to(self.device).requires_grad_(False)

    def fits(self, prompt: str, text: str) -> bool:
        return len(rewards.encode(self.reference.tokenizer, prompt, text)) <= self.context

    def grouped(self, responses: list[str]) -> list[list[str]]:
        """Side by side -> a list of S for each prompt."""
        return [responses[i : i + self.settings.samples] for i in range(0, len(responses), self.settings.samples)]

    def distance(self, policy: GPT, batch: rollout.Rollout) -> torch.Tensor | None:
        """log(policy / reference) of each response, (P, S) in nats; None where the two have other tokens."""
        if policy.tokenizer.vocab != self.reference.tokenizer.vocab:
            return None
        mine, theirs = (rollout.in_parts(rollout.logprobs, m, batch, self.settings.temperature) for m in (policy, self.reference))
        return (mine - theirs).sum(1).cpu().view(-1, self.settings.samples)

    def measure(self, folder: str, before: dict[str, torch.Tensor] | None) -> tuple[dict, list[list[str]], dict[str, torch.Tensor]]:
        """A policy's result, its P x S responses and their scores by name, (P, S) each. before: the baseline's scores."""
        settings, policy = self.settings, self.place(GPT.from_pretrained(folder))
        generator = torch.Generator(self.device).manual_seed(seed_of(settings.seed, "evaluate"))

        def say(prompts):
            return rollout.sample(policy, prompts, settings.max_tokens, generator, temperature=settings.temperature,
                                  samples_per_prompt=settings.samples)

        batch = say(self.prompts)
        result = {"policy": folder} | assess(self.prompts, responses := self.grouped(batch.responses), self.gold)
        scores = {"gold": result.pop("scores")} if "scores" in result else {}
        result["finished"] = float(batch.finished.float().mean())
        distance = self.distance(policy, batch)
        if distance is None:
            print(f"{folder} has other tokens than the reference: no KL between them")
            distance = torch.full((len(self.prompts), settings.samples), math.nan)
        result["kl"] = mean_of(distance)
        if self.reward:
            for name, judge in {"reward": self.reward, **self.watched}.items():
                scores[name] = torch.tensor(judge(batch.prompts, batch.responses)).view(len(self.prompts), -1)
                result[name] = mean_of(scores[name])
            result["best_of_n"] = [{"n": n, "kl_bound": losses.best_of_n_kl_bound(n)} | {
                name: mean_of(losses.best_of_n(scores["reward"], x, n)) for name, x in scores.items()}
                for n in range(1, settings.samples + 1)]
            if self.has_gold:
                result["reward_accuracy"] = ranked_right(scores["reward"], scores["gold"])
            result["probes"] = self.probe(folder, batch, distance, scores, before or scores)
        if self.beliefs:
            both = self.grouped(say([*self.beliefs, *map(toyworld.without_belief, self.beliefs)]).responses)
            result["probes"].append(probes.of_beliefs(self.beliefs, both[: len(self.beliefs)], both[len(self.beliefs) :]))
        return result, responses, scores

    def probe(self, folder: str, batch: rollout.Rollout, distance: torch.Tensor, scores: dict[str, torch.Tensor],
              before: dict[str, torch.Tensor]) -> list[dict]:
        """What could be wrong, of one policy's responses. scores, before: by gold, reward, watch_... of it and of the baseline."""
        settings, S, reward, gold = self.settings, self.settings.samples, scores["reward"], scores.get("gold")
        rows = probes.of_length(reward, torch.tensor([float(len(r.split())) for r in batch.responses]).view(-1, S), gold)
        if gold is not None and Path(settings.reward, "config.json").exists():       # scores -> the log odds that it learned
            scale = json.loads(Path(settings.reward, "config.json").read_text(encoding="utf-8")).get("score_std") or 1.0
            rows.append(probes.of_calibration(reward * scale, gold))
        if gold is not None and distance.isfinite().all() and distance.any():
            rows.append(probes.of_distance(reward, gold, distance))
        judges = [self.reward] + [self.gold or toyworld.gold_scores] * self.has_gold
        one_each = slice(0, 200 * S, S)
        rows += probes.of_garbled(batch.prompts[one_each], batch.responses[one_each], *judges, fits=self.fits)
        if scores is not before:
            rows += [probes.of_held_out(name.removeprefix("watch_"), (before["reward"], reward), (before[name], scores[name]))
                     for name in scores if name != "reward"]
        return rows + self.end_of_training(folder, reward, batch.finished.cpu().view(-1, S), before["reward"].std())

    def end_of_training(self, folder: str, scores: torch.Tensor, finished: torch.Tensor, spread: torch.Tensor) -> list[dict]:
        """A policy's mean score in the last tenth of its RL against that of its responses here, if it was scored alike there."""
        run, rows = Path(folder, "run.json"), read_jsonl(Path(folder, "metrics.jsonl"))
        rows = [r for r in rows if r.get("score") is not None and r.get("score_std") is not None]
        theirs = json.loads(run.read_text(encoding="utf-8")).get("settings", {}) if rows and run.exists() else {}
        if any(theirs.get(k) != getattr(self.settings, k) for k in ("reward", "ensemble", "temperature", "max_tokens")):
            return []
        rows = rows[-max(1, len(rows) // 10) :]
        train = {"mean": sum(r["score"] for r in rows) / len(rows),
                 "interval": 1.96 * math.sqrt(sum(r["score_std"] ** 2 for r in rows) / len(rows) ** 2 / theirs["prompts_per_step"])}
        shares = {k.name: k.share for k in toyworld.WORLD} if self.settings.data == theirs["data"] == "toy" else {}
        weights = torch.tensor([float(shares.get(toyworld.kind(p), 1)) for p in self.prompts])                  # (P,)
        return [probes.of_training(train, torch.where(finished, scores, theirs["unfinished_score"]), weights, spread)]


def main(settings: Settings) -> dict:
    if not (folders := [x for x in settings.policies.split(",") if x]):
        raise UserError("--policies names no model folder")
    baseline = settings.baseline or folders[0]
    folders = [baseline, *(f for f in folders if f != baseline)]
    evaluation = Evaluation(settings, baseline)
    prompts, by = evaluation.prompts, evaluation.by
    kinds, results, answers, scores = [toyworld.kind(p) for p in prompts], [], {}, {}
    for folder in folders:
        result, answers[folder], scores[folder] = evaluation.measure(folder, scores.get(baseline))
        if evaluation.compare:
            won, result["both_orders_agree"] = judged(evaluation.compare, prompts, answers[folder], answers[baseline])
        else:
            won = wins(scores[folder][by], scores[baseline][by])
            if results:
                result["win_rate_previous"] = mean_of(wins(scores[folder][by], scores[results[-1]["policy"]][by]))
        result["win_rate"] = mean_of(won)
        for k in result.get("kinds", ()):
            result["kinds"][k]["win_rate"] = mean_of(won[[i for i, kind in enumerate(kinds) if kind == k]])["mean"]
        results.append(result)
    known = [r for r in results if "probes" in r and evaluation.has_gold and math.isfinite(r["kl"]["mean"])]
    if len(known) > 1:
        frontier = probes.of_frontier([(r["kl"]["mean"], scores[r["policy"]]["gold"]) for r in known])
        max(known, key=lambda r: r["kl"]["mean"])["probes"].append(frontier)
    if settings.data == "toy" and not evaluation.gold:          # what the demonstrators wrote for the same prompts
        written = toyworld.demonstrations(settings.split, settings.count, settings.seed)
        written = {d["prompt"]: [d["completion"]] for d in reversed(written)}
        found = assess(list(written), list(written.values()))
        results.append({"policy": "demonstrations"} | {k: v for k, v in found.items() if k != "scores"})

    examples = defaultdict(list)        # some of every kind
    for i, (kind, prompt) in enumerate(zip(kinds, prompts)):
        examples[kind].append({"prompt": prompt, "answers": {f: {"response": answers[f][i][0]} | {
            name: float(x[i, 0]) for name, x in scores[f].items()} for f in folders}})
    share = -(-settings.examples // len(examples))
    report = {"baseline": baseline, "judge": by, "prompts": len(prompts), "samples": settings.samples, "reward": settings.reward,
              "results": results, "examples": [e for k in sorted(examples) for e in examples[k][:share]]}
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(settings.out), to_json(report, indent=1, ensure_ascii=False).encode())
    print(table(report))
    return report


def table(report: dict) -> str:
    """The results as aligned text."""
    def cell(r, name, digits=3):
        return f"{r[name]['mean']:.{digits}f} ±{r[name]['interval']:.{digits}f}" if name in r else ""

    policies = [r for r in report["results"] if "win_rate" in r]
    scores = [name for name in ("gold", "reward") if name in policies[0]]
    lines = [f"{'policy':<24}" + "".join(f"{name:>14}" for name in (*scores, "win rate"))
             + f"{'KL':>12}{'words':>7}{'finished':>9}{'distinct':>9}{'3-grams':>9}"]
    for r in report["results"]:
        lines.append(f"{r['policy'][-23:]:<24}" + "".join(f"{cell(r, name):>14}" for name in (*scores, "win_rate"))
                     + f"{cell(r, 'kl', 2):>12}{r['words']['mean']:>7.1f}"
                     + (f"{r['finished']:>9.1%}" if "finished" in r else " " * 9)
                     + f"{r['distinct_open_ended']:>9.1%}{r['distinct_ngrams']['3']:>9.1%}")
    lines.append(f"win rates against {report['baseline']} by {report['judge']}" + "".join(
        f"; {r['policy']}: both orders agree on {r['both_orders_agree']:.0%}" for r in policies[1:] if "both_orders_agree" in r))
    if "gold" in policies[0]:
        lines += ["", f"{'gold by kind':<24}" + "".join(f"{r['policy'][-16:]:>18}" for r in report["results"])]
        lines += [f"{k:<24}" + "".join(f"{r['kinds'][k]['mean']:>18.3f}" if k in r["kinds"] else " " * 18
                                       for r in report["results"]) for k in policies[0]["kinds"]]
    if "best_of_n" in policies[0] and len(policies[0]["best_of_n"]) > 1:
        lines += ["", f"{'best of n by reward':<24}" + "".join(f"{r['policy'][-16:]:>18}" for r in policies) + "   nats at most"]
        for i, best in enumerate(policies[0]["best_of_n"]):
            if best["n"].bit_count() == 1:                 # 1, 2, 4, ...; the file has them all
                lines.append(f"{'n = ' + str(best['n']) + ', mean ' + scores[0]:<24}" + "".join(
                    f"{r['best_of_n'][i][scores[0]]['mean']:>18.3f}" for r in policies) + f"{best['kl_bound']:>15.2f}")
    if "probes" in policies[-1]:
        lines += ["", f"what could be wrong, by {policies[-1]['policy']}'s answers",
                  *(f"{p['verdict']:<12} {p['probe']}: {probes.measured(p)}; {p['says']}" for p in policies[-1]["probes"])]
    if any("reward_accuracy" in r for r in policies):
        lines += ["", *(f"reward model orders {r['policy']}'s responses as gold does: {r['reward_accuracy']['mean']:.3f} "
                        f"±{r['reward_accuracy']['interval']:.3f}" for r in policies if "reward_accuracy" in r)]
    return "\n".join(lines)


if __name__ == "__main__":
    start(main, Settings)
