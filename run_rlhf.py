"""The whole loop: SFT -> (sample -> rank -> reward model -> PPO) x rounds -> evaluation -> report.

    python run_rlhf.py                 # some 7 minutes on two CPU cores; then open out/report.html
    python run_rlhf.py --quick         # the same in a minute, to see that it runs
    python run_rlhf.py --annotator person --rankings 100 --samples 4     # you rank, in the browser
    python run_rlhf.py --preset real --out out/real     # a pretrained model, human preferences

Each stage prints the command that runs it alone. A loop that was interrupted goes on where it
stopped when the same command is given again.
"""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import evaluate
import label
import sample
import train_ppo
import train_rm
import train_sft
from minirlhf import UserError, files, hub, inputs, report, world
from minirlhf.batches import held_out
from minirlhf.cli import at_least, command, start
from minirlhf.data import Ranking, read_rankings
from minirlhf.device import pick_device
from minirlhf.feedback import judge
from minirlhf.run import MAY_CHANGE_ON_RESUME, read_loop
from minirlhf.tokenizer import Tokenizer


@dataclass
class Settings:
    # everyday
    preset: Literal["toy", "real"] = "toy"  # real: a pretrained model and human preferences
    out: str = "out"  # everything is written below this folder
    quick: bool = False  # everything small, to see that it runs; its numbers mean nothing
    rounds: int = 2  # of feedback, reward model and PPO; a higher number later adds rounds
    seed: int = 0  # seed of everything random

    # feedback
    annotator: str = "toyworld"  # who ranks: a world's module, person (you, in the browser), ai
    rankings: int = 0  # prompts drawn in a round, each ranked once; 0: 3000, for a person 100
    samples: int = 0  # responses to each of them; 0: 6, for a person 4
    noise: str = "0.2"  # a world's annotator: scale of its errors; 0.1,0.6: two annotators
    bias: str = ""  # a world's annotator: what else it likes, as length=0.3,agreement=0.5
    judge: str = ""  # ai: a model folder, or the URL of an OpenAI-compatible endpoint
    judge_model: str = ""  # ai: the model's name at the endpoint
    constitution: str = label.Settings.constitution  # ai: a file of principles, or a module's

    # training
    world: str = "toyworld"  # toy: the module that writes demonstrations and prompts, and judges
    sft_steps: int = 0  # of SFT; 0: toy 750, real 800, or none if --init has a chat format
    ppo_steps: int = 0  # of PPO in a round; 0: the preset's
    kl_coef: float = -1.0  # reward lost per nat of log(policy/reference); -1: toy 0.2, real 0.05
    evaluation: int = 400  # held-out prompts of the evaluation

    # real
    init: str = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the model to start from, by name or folder
    data: str = "hh-helpful-base"  # preference pairs, by name or as files
    lora_rank: int = 0  # train low-rank adapters of this rank: far less memory; 0: all weights
    longest_pair: int = 0  # leave out pairs of more tokens; 0: what the model's context holds
    max_tokens: int = 96  # longest answer
    token_budget: int = 0  # tokens in a micro-batch: memory, not results; 0: 4096, on a CPU 1024
    checkpointing: bool = False  # recompute activations: far less memory, a third more work

    # run
    device: str = "auto"  # auto, cuda, mps, cpu
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of matrix products


# what a preset alone uses
TOY_ONLY = ("rounds", "annotator", "rankings", "samples", "noise", "bias", "judge", "judge_model")
TOY_ONLY += ("constitution", "world")
REAL_ONLY = ("init", "data", "lora_rank", "longest_pair", "max_tokens", "token_budget")
REAL_ONLY += ("checkpointing",)
PARTS = ("pairs", "judge", "questions")  # into which the real preset splits --data
RESULTS = ("evaluation.json", "report.html", "report.json")  # written beside the stages' folders
MAY_CHANGE = {"rounds", "device", "out", "token_budget", "checkpointing"}  # between two calls


class Loop:
    """Announces stages, times them, and remembers in loop.json which are done, and with what."""

    def __init__(self, settings: Settings):
        if "," in settings.out:
            raise UserError(f"--out {settings.out}: commas separate names; choose one without")
        self.folder = Path(settings.out)
        self.path = self.folder / "loop.json"
        self.command = command("run_rlhf.py", settings)
        files.make_folder(self.folder)
        self.lock = self.folder / "loop.lock"
        files.lock(self.lock, str(self.folder))
        self.state = {"stages": {}} | read_loop(self.folder)
        changes = []
        if "settings" in self.state:
            changes = inputs.changes(self.state, settings, {}, MAY_CHANGE)
        if changes:
            raise UserError(
                f"{self.folder} holds a loop with other settings ({'; '.join(changes)}): use the "
                "same ones to go on, or another --out"
            )
        if not self.path.exists():
            for name in RESULTS:
                refuse_to_replace(self.folder / name)
        files.delete_parts(self.folder)
        files.delete_parts(self.folder, "round*/*.partial")
        self.state["settings"] = asdict(settings)
        self.stage_number = 0
        self.stage_count = 0

    def save(self) -> None:
        files.write_json(self.path, self.state)

    def stage(self, name: str, script: ModuleType, settings) -> None:
        """Run script.main(settings), unless the same was done before with the same inputs."""
        self.save()
        self.stage_number += 1
        title = f"== {self.stage_number}/{self.stage_count} {name}"
        stage = {
            "command": command(f"{script.__name__}.py", settings),
            "settings": asdict(settings),
            "inputs": inputs.fingerprints(settings),
            "seconds": 0.0,
            "finished": False,
            **report.provenance(),
        }
        earlier = self.state["stages"].get(name, {})
        if not inputs.changes(earlier, settings, stage["inputs"], MAY_CHANGE_ON_RESUME):
            if earlier.get("finished"):
                return print(f"{title}: done before")
            stage["seconds"] = earlier.get("seconds", 0.0)
        print(f"\n{title}\n$ {stage['command']}", flush=True)
        if hasattr(settings, "resume"):
            settings = replace(settings, resume=True)  # where there is nothing to resume, it starts
        began = time.monotonic()
        try:
            script.main(settings)
            stage["finished"] = True
        finally:
            stage["seconds"] = round(stage["seconds"] + time.monotonic() - began, 1)
            self.state["stages"][name] = stage
            self.save()
        report.write(self.folder, running=True, go_on=self.command)


# ---------------------------------------------------------------------- a world of its own


def toy(settings: Settings, loop: Loop) -> None:
    out = settings.out
    common = {"seed": settings.seed, "device": settings.device, "dtype": settings.dtype}
    loop.stage_count = 2 + 4 * settings.rounds

    # stage 1: learn to answer as the demonstrations do
    sft = train_sft.Settings(data=settings.world, out=f"{out}/sft", **common)
    if settings.quick:
        sft = replace(sft, count=600, n_embd=64, steps=30, save_every=10)
    sft.steps = settings.sft_steps or sft.steps
    loop.stage("sft", train_sft, sft)

    policies = [f"{out}/sft"]
    rankings = []
    for number in range(1, settings.rounds + 1):
        one_round(settings, loop, number, policies, rankings)

    loop.stage(
        "evaluation",
        evaluate,
        evaluate.Settings(
            policies=",".join(policies),
            reward=f"{out}/round{settings.rounds}/rm",
            data=settings.world,
            gold=settings.world,
            count=min(24, settings.evaluation) if settings.quick else settings.evaluation,
            out=f"{out}/evaluation.json",
            **common | {"seed": settings.seed + 1000},
        ),
    )


def one_round(
    settings: Settings, loop: Loop, number: int, policies: list[str], rankings: list[str]
) -> None:
    """Feedback on the newest policy, a reward model, a better policy; both lists grow by one."""
    out = settings.out
    folder = f"{out}/round{number}"
    by_hand = settings.annotator == "person"
    prompts = 100 if by_hand else 3000
    if settings.quick:
        prompts = 10 if by_hand else 60
    common = {
        "seed": settings.seed + 100 * number,  # other prompts in every round
        "device": settings.device,
        "dtype": settings.dtype,
    }

    # new feedback, on what the policy answers now
    loop.stage(
        f"round{number}/candidates",
        sample,
        sample.Settings(
            init=policies[-1],
            data=settings.world,
            count=settings.rankings or prompts,
            samples=settings.samples or (4 if by_hand else 6),
            temperature=train_ppo.Settings.temperature,
            candidates_out=f"{folder}/candidates.jsonl",
            **common,
        ),
    )
    loop.stage(
        f"round{number}/rankings",
        label,
        label.Settings(
            candidates=f"{folder}/candidates.jsonl",
            out=f"{folder}/rankings.jsonl",
            annotator=settings.annotator,
            noise=settings.noise,
            bias=settings.bias,
            judge=settings.judge,
            judge_model=settings.judge_model,
            constitution=settings.constitution,
            **common,
        ),
    )
    rankings.append(f"{folder}/rankings.jsonl")

    # stage 2: the reward model learns from all rankings so far; from round 2 on it goes on
    loop.stage(
        f"round{number}/rm",
        train_rm,
        train_rm.Settings(
            init=f"{out}/sft" if number == 1 else f"{out}/round{number - 1}/rm",
            data=",".join(rankings),
            normalize_on=f"{out}/sft",  # in every round: all scores in the same units
            epochs=(4 if by_hand else 1) / number,  # as many steps in every round
            out=f"{folder}/rm",
            **common,
        ),
    )

    # stage 3: the policy learns from the reward model, held near where it starts in this round
    ppo = train_ppo.Settings(
        init=policies[-1],
        reward=f"{folder}/rm",
        data=settings.world,
        out=f"{folder}/ppo",
        **common,
    )
    if settings.kl_coef >= 0:
        ppo.kl_coef = settings.kl_coef
    if settings.quick:
        ppo.steps = 6
    ppo.steps = settings.ppo_steps or ppo.steps
    loop.stage(f"round{number}/ppo", train_ppo, ppo)
    policies.append(f"{folder}/ppo")


# ---------------------------------------------------------------------- human preferences


def real(settings: Settings, loop: Loop) -> None:
    """A reward model from pairs, and RLOO against it.

    A model without a chat format of its own first learns to answer, from the chosen responses.
    There is no gold score: a second reward model, from other prompts' pairs and another seed,
    judges the answers to prompts that no stage has seen.
    """
    out = settings.out
    quick = settings.quick
    check_parts(settings, is_new=not loop.path.exists())
    tokenizer = Tokenizer.from_pretrained(hub.model_folder(settings.init))
    split_pairs(settings, tokenizer)
    longest = min(16, settings.max_tokens) if quick else settings.max_tokens
    common = {"seed": settings.seed, "device": settings.device, "dtype": settings.dtype}
    on_cpu = pick_device(settings.device).type == "cpu"
    memory = {
        "token_budget": settings.token_budget or (1024 if on_cpu else 4096),
        "checkpointing": settings.checkpointing,
    }
    policy = settings.init
    loop.stage_count = 4
    if settings.sft_steps or tokenizer.chat_format == "plain":
        loop.stage_count = 5
        sft = train_sft.Settings(
            init=settings.init,
            data=f"{out}/pairs.jsonl",
            out=f"{out}/sft",
            lr=5e-5,
            batch_size=8 if quick else 32,
            steps=settings.sft_steps or (20 if quick else 800),
            **common,
            **memory,
        )
        loop.stage("sft", train_sft, sft)
        policy = sft.out
    rm = train_rm.Settings(
        init=policy,
        data=f"{out}/pairs.jsonl",
        out=f"{out}/round1/rm",
        lr=5e-5,
        epochs=1,
        max_tokens=longest,
        normalize_samples=16 if quick else 128,
        **common,
        **memory,
    )
    loop.stage("round1/rm", train_rm, rm)
    second = {"data": f"{out}/judge.jsonl", "out": f"{out}/judge", "seed": settings.seed + 1}
    loop.stage("judge", train_rm, replace(rm, **second))
    loop.stage(
        "round1/ppo",
        train_ppo,
        train_ppo.Settings(
            init=policy,
            reward=rm.out,
            data=f"{out}/pairs.jsonl",
            out=f"{out}/round1/ppo",
            advantage="rloo",
            samples_per_prompt=4,
            prompts_per_step=4 if quick else 8,
            max_tokens=longest,
            steps=settings.ppo_steps or (3 if quick else 40),
            lr=2e-4 if settings.lora_rank else 2e-5,  # adapters need ten times as much
            kl_coef=settings.kl_coef if settings.kl_coef >= 0 else 0.05,
            lora_rank=settings.lora_rank,
            **common,
            **memory,
        ),
    )
    loop.stage(
        "evaluation",
        evaluate,
        evaluate.Settings(
            policies=f"{policy},{out}/round1/ppo",
            reward=rm.out,
            gold=f"{out}/judge",
            data=f"{out}/questions.jsonl",
            count=min(24, settings.evaluation) if quick else settings.evaluation,
            samples=2,
            max_tokens=longest,
            out=f"{out}/evaluation.json",
            **common,
        ),
    )


def check_parts(settings: Settings, is_new: bool) -> None:
    """UserError if the files of split_pairs would replace the user's own.

    is_new: no loop has written to --out so far
    """
    for name in PARTS:
        path = Path(settings.out, f"{name}.jsonl")
        inputs.check_output("out", path, settings)
        if is_new:
            refuse_to_replace(path)


def refuse_to_replace(path: Path) -> None:
    """UserError if there is a file that no loop has written."""
    if path.exists():
        raise UserError(f"{path} exists and would be replaced: choose another --out")


def split_pairs(settings: Settings, tokenizer: Tokenizer) -> None:
    """Pairs for training, for the judge and for questions; what begins alike stays together."""

    def first_request(ranking: Ranking) -> str:
        return ranking.prompt.first_request()

    def length(ranking: Ranking) -> int:
        turns = ranking.prompt.turns
        responses = [tokenizer.encode_response(turns, text) for text in ranking.responses]
        return len(tokenizer.encode_prompt(turns)) + max(map(len, responses))

    rankings = read_rankings(settings.data)
    if settings.longest_pair:
        count = len(rankings)
        rankings = [ranking for ranking in rankings if length(ranking) <= settings.longest_pair]
        print(f"data: {len(rankings)} of {count} pairs have at most {settings.longest_pair} tokens")
        if not rankings:
            raise UserError(f"--longest_pair {settings.longest_pair} leaves no pair: raise it")
    rest, questions = held_out(rankings, first_request, 0.1, settings.seed)
    pairs, judged = held_out(rest, first_request, 0.4, settings.seed + 1)
    if not judged or not questions:
        raise UserError(
            f"--data {settings.data}: fewer than 3 different first requests; training, the judge "
            "and the questions each need one"
        )
    for name, part in zip(PARTS, (pairs, judged, questions)):
        rows = []
        for ranking in part:
            best = ranking.ranks.index(min(ranking.ranks))
            worst = ranking.ranks.index(max(ranking.ranks))
            rows.append(
                {
                    "prompt": ranking.prompt.source,
                    "chosen": ranking.responses[best],
                    "rejected": ranking.responses[worst],
                }
            )
        files.write_jsonl(Path(settings.out, f"{name}.jsonl"), rows)


def refuse_flags_of_the_other_preset(settings: Settings) -> None:
    """They would do nothing."""
    other, names = ("real", REAL_ONLY) if settings.preset == "toy" else ("toy", TOY_ONLY)
    for name in names:
        if getattr(settings, name) != getattr(Settings, name):
            raise UserError(f"--{name} is for --preset {other}; this is {settings.preset}")


def main(settings: Settings) -> None:
    at_least(1, settings, "rounds", "evaluation")
    if settings.kl_coef != -1:  # the preset's
        at_least(0, settings, "kl_coef")
    if settings.samples:
        at_least(2, settings, "samples")  # one alone cannot be ranked
    refuse_flags_of_the_other_preset(settings)
    if settings.preset == "toy":  # before anything is trained: is there what the settings name?
        world.load(settings.world, "--world", "demonstrations", "prompts", "reward")
        if settings.annotator == "ai":
            judge.load(settings.judge, settings.judge_model, device="cpu")
            judge.read_constitution(settings.constitution)
        elif settings.annotator != "person":
            label.simulated_annotators(settings)
    loop = Loop(settings)
    run = toy if settings.preset == "toy" else real
    try:
        run(settings, loop)
    except BaseException:  # Ctrl-C too
        if loop.path.exists():  # a stage was begun
            with suppress(Exception):  # there may be no room for a report
                report.write(settings.out, go_on=loop.command)
        raise
    files.unlock(loop.lock)
    page = report.write(settings.out)
    for line in report.ending(settings.out):
        print(line)
    print(f"report: {page}, for your browser")


if __name__ == "__main__":
    start(main, Settings)
