"""The whole loop, on the toy world: SFT -> (sample -> label -> reward model -> PPO) x rounds -> evaluation -> report.

    python run_rlhf.py                 # under ten minutes on two CPU cores; then open out/report.html
    python run_rlhf.py --quick         # the same in a minute: shows that it runs, its numbers mean nothing
    python run_rlhf.py --preset hh_gpt2 --out out/hh    # one GPU: GPT-2 and Anthropic's human preferences, fetched once
    python run_rlhf.py --annotator person --rankings 100 --samples 4     # you rank, in the browser, once a round

Each stage is announced by the command that would run it alone. Interrupted, it goes on where it stopped when called again.
"""
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import evaluate
import label
import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, judge, report
from minirlhf.cli import command, start
from minirlhf.data import held_out, read_rankings
from minirlhf.json_text import to_json, to_json_lines
from minirlhf.model import write_atomically
from minirlhf.tokenizer import parse_prompt


@dataclass
class Settings:
    preset: str = "toy"           # toy, or hh_gpt2: pairs that people ranked, one round, judged by a reward model of its own
    init: str = "gpt2"            # hh_gpt2: the model to start from
    data: str = "hh-helpful-base" # hh_gpt2: preference pairs, by name or as files
    token_budget: int = 8192      # hh_gpt2: tokens in a micro-batch; lower it if memory runs out, results stay
    checkpointing: bool = False   # hh_gpt2: far less memory, a third more work
    out: str = "out"              # everything is written below this folder
    rounds: int = 2               # of collecting feedback, reward model and PPO; a higher number later adds rounds
    annotator: str = "toy"        # who ranks: toy, simulated annotators of the toy world; person, you in the browser; ai, --judge
    noise: str = "0.2"            # toy annotator: scale of its errors, in units of the gold score; 0.1,0.6: two annotators
    bias: str = ""                # toy annotator: what else it likes, as length=0.3,agreement=0.5
    judge: str = ""               # ai: a model folder, or the URL of an OpenAI-compatible endpoint
    judge_model: str = ""         # ai: the model's name at the endpoint
    constitution: str = "constitution.txt"      # ai: a file of principles, one a paragraph; toy: the toy world's
    rankings: int = 0             # prompts drawn to be ranked in a round (repeats are left out); 0: 4500, for a person 100
    samples: int = 0              # responses to each of them; 0: 6, for a person 4
    sft_steps: int = 0            # of SFT; 0: train_sft.py's default
    ppo_steps: int = 0            # of PPO in a round; 0: train_ppo.py's default
    kl_coef: float = 0.2          # of PPO: reward lost per nat of log(policy/reference)
    evaluation: int = 400         # held-out prompts of the evaluation
    quick: bool = False           # everything small, to see that it runs
    seed: int = 0                 # of everything random
    device: str = "auto"          # auto, cuda, mps, cpu
    dtype: str = "auto"           # of matrix products: auto, float32, bfloat16


class Loop:
    """Announces stages, times them, remembers which are done (loop.json)."""

    def __init__(self, settings: Settings):
        self.folder, self.path = Path(settings.out), Path(settings.out) / "loop.json"
        self.state = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"stages": {}}
        mine = asdict(settings)
        theirs = self.state.get("settings", mine)
        free = ("rounds", "device", "out", "token_budget", "checkpointing")
        changed = [k for k in mine if theirs.get(k) != mine[k] and k not in free]
        if changed:
            raise UserError(f"{self.folder} holds a loop with other settings ({', '.join(changed)}): "
                            "call it with the same ones to go on, or choose another --out")
        self.state["settings"] = mine
        self.folder.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self) -> None:
        write_atomically(self.path, to_json(self.state, indent=1).encode())

    def stage(self, name: str, module, settings) -> None:
        """Runs module.main(settings) unless the very same stage is done; prints the command line that does the same."""
        line = command(f"{module.__name__}.py", settings)
        done = self.state["stages"].get(name, {})
        if done.get("command") == line and done.get("finished"):
            return print(f"== {name}: done before")
        print(f"\n== {name}\n$ {line}", flush=True)
        began = time.time()
        if hasattr(settings, "resume"):
            settings.resume = True                       # where there is nothing to resume it starts
        try:
            module.main(settings)
        finally:
            seconds = done.get("seconds", 0.0) * (done.get("command") == line) + time.time() - began
            self.state["stages"][name] = {"command": line, "seconds": round(seconds, 1), "finished": False}
            self.save()
        self.state["stages"][name]["finished"] = True
        self.save()


def human_preferences(settings: Settings, loop: Loop) -> None:
    """SFT on what was chosen, reward model, PPO. There is no gold score: a second reward model, from other prompts' pairs and
    another seed, judges the answers to prompts that no stage has seen."""
    out, quick = settings.out, settings.quick
    def first_turn(r):
        return parse_prompt(r.prompt)[0][0]                 # dialogues that begin alike stay on one side
    rest, questions = held_out(read_rankings(settings.data), first_turn, 0.1, settings.seed)
    mine, judges = held_out(rest, first_turn, 0.4, settings.seed + 1)
    for name, part in (("pairs", mine), ("judge", judges), ("questions", questions)):
        rows = [{"prompt": r.prompt, "chosen": r.responses[r.ranks.index(min(r.ranks))],
                 "rejected": r.responses[r.ranks.index(max(r.ranks))]} for r in part]
        write_atomically(Path(out, f"{name}.jsonl"), to_json_lines(rows).encode())
    length = 16 if quick else 128
    common = {"seed": settings.seed, "device": settings.device, "dtype": settings.dtype}
    train = {**common, "token_budget": settings.token_budget, "checkpointing": settings.checkpointing}
    loop.stage("sft", train_sft, train_sft.Settings(
        init=settings.init, data=f"{out}/pairs.jsonl", out=f"{out}/sft", lr=5e-5, batch_size=8 if quick else 32,
        steps=settings.sft_steps or (20 if quick else 800), **train))
    rm = {"init": f"{out}/sft", "lr": 2e-5, "epochs": 1, "batch_size": 32, "max_tokens": length, **train,
          "normalize_samples": 16 if quick else 256}
    loop.stage("round1/rm", train_rm, train_rm.Settings(data=f"{out}/pairs.jsonl", out=f"{out}/round1/rm", **rm))
    loop.stage("judge", train_rm, train_rm.Settings(**rm | {"data": f"{out}/judge.jsonl", "out": f"{out}/judge",
                                                            "seed": settings.seed + 1}))
    loop.stage("round1/ppo", train_ppo, train_ppo.Settings(
        init=f"{out}/sft", reward=f"{out}/round1/rm", data=f"{out}/pairs.jsonl", out=f"{out}/round1/ppo", max_tokens=length,
        steps=settings.ppo_steps or (3 if quick else 200), prompts_per_step=8 if quick else 64, lr=1e-5,
        kl_coef=settings.kl_coef, **train))
    loop.stage("evaluation", evaluate, evaluate.Settings(
        policies=f"{out}/sft,{out}/round1/ppo", reward=f"{out}/round1/rm", gold=f"{out}/judge", data=f"{out}/questions.jsonl",
        count=24 if quick else settings.evaluation, max_tokens=length, out=f"{out}/evaluation.json", **common))


def main(settings: Settings) -> None:
    if settings.annotator == "ai":
        judge.load(settings.judge, settings.judge_model, device="cpu")          # before anything is trained: is there one?
        judge.read_constitution(settings.constitution)
    loop, out = Loop(settings), settings.out
    if settings.preset not in ("toy", "hh_gpt2"):
        raise UserError(f"--preset {settings.preset}: unknown; take toy or hh_gpt2")
    if settings.preset == "hh_gpt2":
        human_preferences(settings, loop)
        return print(f"\nwrote {report.write(out)}; open it in a browser")
    common = {"seed": settings.seed, "device": settings.device, "dtype": settings.dtype}
    small = {"steps": 30, "save_every": 10} if settings.quick else {}
    by_hand = settings.annotator == "person"
    rankings, samples = settings.rankings or (100 if by_hand else 4500), settings.samples or (4 if by_hand else 6)
    rankings, questions = (60, 24) if settings.quick else (rankings, settings.evaluation)

    # stage 1: learn to answer as the demonstrations do
    sft = train_sft.Settings(out=f"{out}/sft", **common, **small)
    if settings.quick:
        sft.count, sft.n_head, sft.n_embd = 600, 4, 64
    sft.steps = settings.sft_steps or sft.steps
    loop.stage("sft", train_sft, sft)

    policy, rankings_so_far = f"{out}/sft", []
    for r in range(1, settings.rounds + 1):
        here, fresh = f"{out}/round{r}", {**common, "seed": settings.seed + 100 * r}       # other prompts every round
        # new feedback, on what the policy says now
        loop.stage(f"round{r}/candidates", sample, sample.Settings(
            init=policy, data="toy", count=rankings, samples=samples, temperature=0.7,
            candidates_out=f"{here}/candidates.jsonl", **fresh))
        loop.stage(f"round{r}/rankings", label, label.Settings(
            candidates=f"{here}/candidates.jsonl", out=f"{here}/rankings.jsonl", annotator=settings.annotator,
            noise=settings.noise, bias=settings.bias, judge=settings.judge, judge_model=settings.judge_model,
            constitution=settings.constitution, device=settings.device, seed=fresh["seed"]))
        rankings_so_far.append(f"{here}/rankings.jsonl")
        # stage 2: the reward model learns from all rankings so far, from the second round on as a sequel of the last one
        loop.stage(f"round{r}/rm", train_rm, train_rm.Settings(
            init=f"{out}/sft" if r == 1 else f"{out}/round{r - 1}/rm", data=",".join(rankings_so_far), normalize_on=f"{out}/sft",
            epochs=(8 if by_hand else 2) / r, out=f"{here}/rm", **fresh))
        # stage 3: the policy learns from the reward model, held near the SFT model
        ppo = train_ppo.Settings(init=policy, reference=f"{out}/sft", reward=f"{here}/rm", out=f"{here}/ppo",
                                 kl_coef=settings.kl_coef, **fresh)
        ppo.steps = settings.ppo_steps or (6 if settings.quick else ppo.steps)
        loop.stage(f"round{r}/ppo", train_ppo, ppo)
        policy = f"{here}/ppo"

    policies = [f"{out}/sft", *(f"{out}/round{r}/ppo" for r in range(1, settings.rounds + 1))]
    loop.stage("evaluation", evaluate, evaluate.Settings(
        policies=",".join(policies), reward=f"{out}/round{settings.rounds}/rm", count=questions, out=f"{out}/evaluation.json",
        **{**common, "seed": settings.seed + 1000}))
    print(f"\nwrote {report.write(out)}; open it in a browser")


if __name__ == "__main__":
    start(main, Settings)
