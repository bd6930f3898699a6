"""Methods with the same reward and the same number of sampled episodes, 64 in a step."""

import random
from pathlib import Path

import evaluate
import sample
import train_dpo
import train_ppo
from lab.arms import Answers, flat, gold, read_answers, write
from lab.intervals import means
from minirlhf import Stopped, losses, rewards, winrate
from minirlhf.feedback.rankings import rank_by
from minirlhf.files import read_json
from minirlhf.rewards import RewardFn
from minirlhf.run import read_run

RL = {"PPO": "gae", "RLOO": "rloo", "GRPO": "grpo", "REINFORCE": "reinforce"}
FROM_FEEDBACK = {"DPO": ("sigmoid", 16), "IPO": ("ipo", 16), "KTO": ("kto", 64)}  # loss, batch
EPISODES = 64  # in a step
QUESTIONS = 300  # held-out prompts of the evaluation, four responses each


def draw(file: str, init: str, device: str, **options) -> Answers:
    """Responses of a model to prompts of the toy world, from the file if it is there."""
    if not Path(file).exists():
        options = {"data": "toyworld", "temperature": 0.7, **options}
        sample.main(sample.Settings(init=init, candidates_out=file, device=device, **options))
    return read_answers(file)


def write_feedback(folder: str, answers: Answers, reward_fn: RewardFn, seed: int) -> None:
    """rankings.jsonl, by a reward with Bradley-Terry noise of scale 1, and labels.jsonl for KTO.

    Good are the two best of four responses.
    """
    rankings, labels = [], []
    scores = answers.scores(reward_fn).tolist()
    for prompt, responses, row in zip(answers.prompts, answers.responses, scores):
        ranks = rank_by(row, 1.0, random.Random(f"{seed}/{prompt}"))
        rankings.append({"prompt": prompt, "responses": responses, "ranks": ranks})
        for response, rank in zip(responses, ranks):
            labels.append({"prompt": prompt, "response": response, "label": rank <= 2})
    write(f"{folder}/rankings.jsonl", rankings)
    write(f"{folder}/labels.jsonl", labels)


def train(method: str, *, episodes: int, reward: str, beta: float, feedback: str, **common) -> None:
    """Train a policy.

    beta: reward per nat of KL
    feedback: the folder of write_feedback's files
    common: further settings of the script: init, out, lr, seed, device
    """
    common |= {"steps": episodes // EPISODES, "resume": True}
    if method in RL:
        samples = 4 if method in ("RLOO", "GRPO") else 1
        train_ppo.main(
            train_ppo.Settings(
                advantage=RL[method],
                samples_per_prompt=samples,
                prompts_per_step=EPISODES // samples,
                reward=reward,
                kl_coef=beta,
                **common,
            )
        )
        return
    common["beta"] = beta
    if method == "online DPO":
        online = {"online": True, "data": "toyworld", "reward": reward}
        train_dpo.main(train_dpo.Settings(batch_size=EPISODES // 2, **online, **common))
        return
    loss, batch_size = FROM_FEEDBACK[method]
    data = f"{feedback}/labels.jsonl" if loss == "kto" else f"{feedback}/rankings.jsonl"
    offline = {"data": data, "loss": loss, "batch_size": batch_size, "validation": 0.05}
    train_dpo.main(train_dpo.Settings(**offline, **common))


# ---- what a method ends with, s: methods.py's settings


def seed_folder(s, seed: int) -> str:
    return f"{s.out}/seed{seed}"


def prepare(s, seed: int) -> None:
    """Rankings and labels of the SFT model's responses, in the seed's folder."""
    folder = seed_folder(s, seed)
    if not Path(f"{folder}/labels.jsonl").exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        options = {"count": s.episodes // 4, "samples": 4, "seed": seed}
        candidates = draw(f"{folder}/candidates.jsonl", s.init, s.device, **options)
        write_feedback(folder, candidates, rewards.load(s.reward, s.device), seed)


def unchanged(s, seed: int) -> dict:
    """The SFT model itself."""
    answers = held_out(s, seed, "baseline")
    row = means(gold=answers.each(gold), reward=answers.scores(rewards.load(s.reward, s.device)))
    return {"lr": None, "minutes": None, "win_rate": 0.5, "kl": 0.0, **row}


def best_of_16(s, seed: int) -> dict:
    """No training: the best of 16 responses to each held-out prompt. Its KL is the bound."""
    best = held_out(s, seed, "best", best_of=16, reward=s.reward)
    best_gold = best.each(gold)  # (P, S)
    row = means(
        win_rate=winrate.wins(best_gold, held_out(s, seed, "baseline").each(gold)),
        gold=best_gold,
        reward=best.scores(rewards.load(s.reward, s.device)),
    )
    return {"lr": None, "minutes": None, "kl": losses.best_of_n_kl_bound(16), **row}


def held_out(s, seed: int, name: str, **choice) -> Answers:
    """The SFT model's responses to the evaluation's prompts, four to each."""
    options = {"split": "test", "count": QUESTIONS, "samples": 4, "seed": 1000 + seed}
    return draw(f"{seed_folder(s, seed)}/{name}.jsonl", s.init, s.device, **options, **choice)


def evaluated(s, method: str, lr: float, seed: int) -> dict | None:
    """A policy's numbers; None if the training diverged."""
    folder = seed_folder(s, seed)
    out = f"{folder}/{method.replace(' ', '_')}_{lr:g}"
    common = {"init": s.init, "out": out, "lr": lr, "seed": seed, "device": s.device}
    shared = {"episodes": s.episodes, "reward": s.reward, "beta": s.beta, "feedback": folder}
    try:
        train(method, **shared, **common)
    except Stopped as error:
        print(f"{out} diverged: {error}")
        return None
    file = f"{out}/evaluation.json"
    if not Path(file).exists():
        compared = {"policies": out, "baseline": s.init, "reward": s.reward}
        run = {"count": QUESTIONS, "out": file, "seed": 1000 + seed, "device": s.device}
        evaluate.main(evaluate.Settings(**compared, **run))
    _, policy, *_ = read_json(file)["results"]
    return {"lr": lr, "minutes": read_run(out)["seconds"] / 60, **flat(policy)}
