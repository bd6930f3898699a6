"""One step of PPO, one of DPO and one of a reward model, number by number, on one page.

    python examples/one_step.py                          # with out/sft and out/rm
    python examples/one_step.py --reward out/round1/rm   # with what run_rlhf.py made

Every number comes from the functions that train. Its formula and paper stand beside it, in
one_step.html. What is trained here is thrown away.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import train_dpo
import train_ppo
import train_rm
from minirlhf import UserError, losses, rewards, rollout, world
from minirlhf.cli import printable, start
from minirlhf.data import Prompt, Ranking, read_prompts
from minirlhf.device import open_model
from minirlhf.files import write_atomically
from minirlhf.model import GPT, ScalarGPT
from minirlhf.optim import linear_decay
from minirlhf.preferences import group_scores, to_groups
from minirlhf.rollout import Rollout
from minirlhf.tokenizer import Tokenizer

PAGE = Path(__file__).with_name("one_step.html")
REQUESTS = 3
ANSWERS = 4  # to rank


@dataclass
class Settings:
    # everyday
    init: str = "out/sft"  # policy and reference: a model's folder
    reward: str = "out/rm"  # a reward model's folder; the value model starts from it
    data: str = "toyworld"  # a world: writes the requests, ranks the answers
    out: str = "out/one_step.html"  # the page
    seed: int = 0  # of requests and samples


# --- one step of PPO


@dataclass
class Step:
    """An iteration of train_ppo.py: B responses of up to R tokens."""

    batch: Rollout
    scores: Tensor  # (B,)
    numbers: dict[str, Tensor]  # (B, R) each, under the names of HEADINGS and of the template
    before: dict[str, float]  # the losses before the update
    after: dict[str, float]


def second_ppo_step(
    ppo: train_ppo.Settings, prompts: list[Prompt], policy: GPT, value: ScalarGPT
) -> Step:
    """The first step is not shown: before it the policy is its reference, and the KL is 0."""
    reference = open_model(GPT, ppo.init, "cpu")
    models = train_ppo.Models(policy.requires_grad_(), reference, value.requires_grad_())
    reward_fn = rewards.load(ppo.reward, "cpu")
    optimizer = adamw(policy, value, eps=1e-5)
    generator = torch.Generator().manual_seed(ppo.seed)
    for number in range(2):
        lr = lr_of(ppo, number)
        step = ppo_step(ppo, models, optimizer, lr, reward_fn, prompts, generator)
    return step


def lr_of(ppo: train_ppo.Settings, number: int) -> float:
    return ppo.lr * linear_decay(number, ppo.steps, train_ppo.WARMUP)


def ppo_step(
    settings: train_ppo.Settings,
    models: train_ppo.Models,
    optimizer: torch.optim.Optimizer,
    lr: float,
    reward_fn: rewards.RewardFn,
    prompts: list[Prompt],
    generator: torch.Generator,
) -> Step:
    """Sample, score, update: steps 1 to 5 of train_ppo.main."""
    # 1. the policy answers
    temperature = settings.temperature
    batch = train_ppo.sample(settings, models.policy, prompts, generator)
    mask = batch.mask  # (B, R)

    # 2. whole texts are scored
    raw_scores = train_ppo.score(reward_fn, batch)  # (B,)
    scores = torch.where(batch.finished, raw_scores, settings.unfinished_score)  # (B,)

    # 3. log-probs and values before the update
    with torch.no_grad():
        old_logprobs = rollout.logprobs(models.policy, batch, temperature)  # (B, R)
        ref_logprobs = rollout.logprobs(models.reference, batch, temperature)  # (B, R)
        values = rollout.values(models.value, batch)  # (B, R)

    # 4. a reward and an advantage for every token
    kl = old_logprobs - ref_logprobs  # (B, R)
    token_rewards = losses.token_rewards(scores, kl, mask, settings.kl_coef)  # (B, R)
    advantages_of = train_ppo.METHODS["gae"].advantages
    advantages, returns = advantages_of(token_rewards, values, mask, settings)  # (B, R)
    episodes = train_ppo.Episodes(batch, old_logprobs, ref_logprobs, values, advantages, returns)

    # 5. one update, and what it changed
    divisor = losses.length_normaliser(settings.length_norm, mask, settings.max_tokens)  # (B, 1)
    arguments = (models, episodes, divisor, settings.kl_coef, settings)
    before, _ = train_ppo.minibatch_loss(*arguments)
    take_step(optimizer, lr, sum(before.values()))
    with torch.no_grad():
        after, _ = train_ppo.minibatch_loss(*arguments)
        new_logprobs = rollout.logprobs(models.policy, batch, temperature)  # (B, R)
        new_values = rollout.values(models.value, batch)  # (B, R)

    def policy_loss(tokens: Tensor) -> Tensor:
        return losses.ppo_policy_loss(
            new_logprobs, old_logprobs, advantages, tokens, settings.clip, divisor
        )[0]

    def value_loss(tokens: Tensor) -> Tensor:
        return losses.value_loss(new_values, values, returns, tokens, settings.value_clip, divisor)[
            0
        ]

    numbers = {
        "old": old_logprobs,
        "ref": ref_logprobs,
        "kl": kl,
        "reward": token_rewards,
        "value": values,
        "advantage": returns - values,  # before whitening
        "returns": returns,
        "whitened": advantages,
        "new": new_logprobs,
        "ratio": (new_logprobs - old_logprobs).exp(),
        "new_value": new_values,
        "policy_share": shares(policy_loss, mask),
        "value_share": shares(value_loss, mask),
    }
    return Step(batch, scores, numbers, to_floats(before), to_floats(after))


def shares(loss: Callable[[Tensor], Tensor], mask: Tensor) -> Tensor:
    """What each token adds to a loss (B, R): the loss of a mask that holds it alone."""
    each = torch.zeros(mask.shape)
    for row, column in mask.nonzero().tolist():
        one_token = torch.zeros_like(mask)
        one_token[row, column] = True
        each[row, column] = loss(one_token)
    return each


def to_floats(terms: dict[str, Tensor]) -> dict[str, float]:
    return {name: term.item() for name, term in terms.items()}


def adamw(*models: GPT | ScalarGPT, eps: float = 1e-8) -> torch.optim.AdamW:
    groups = [{"params": list(model.parameters())} for model in models]
    return torch.optim.AdamW(groups, eps=eps, betas=(0.9, 0.95), weight_decay=0.0)


def take_step(optimizer: torch.optim.Optimizer, lr: float, loss: Tensor) -> None:
    loss.backward()
    for group in optimizer.param_groups:  # one for each model
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


# --- one step of DPO, one of the reward model


def rank_answers(settings: Settings, policy: GPT, prompts: list[Prompt]) -> Ranking:
    """Four samples, ranked by the world: of all prompts, those that differ most in rank."""
    annotate = world.load(settings.data, "--data", "annotate").annotate
    generator = torch.Generator().manual_seed(settings.seed)
    batch = rollout.sample(
        policy,
        prompts,
        train_ppo.Settings.max_tokens,
        generator,
        temperature=train_ppo.Settings.temperature,
        samples_per_prompt=ANSWERS,
    )
    rankings = []
    for first in range(0, len(batch), ANSWERS):
        prompt = batch.prompts[first]
        responses = batch.responses[first : first + ANSWERS]
        liked = torch.tensor(annotate(prompt.source, responses))  # (K,)
        ranks = 1 + (liked[:, None] < liked).sum(1)  # (K,): how many others are better
        order = ranks.argsort(stable=True).tolist()
        responses = [responses[i] for i in order]
        rankings.append(Ranking(prompt, responses, ranks[order].tolist(), settings.data))
    ranking = max(rankings, key=lambda ranking: len(set(ranking.ranks)))
    if len(set(ranking.ranks)) == 1:
        raise UserError(f"all answers to a request are equally good: not --seed {settings.seed}")
    return ranking


@dataclass
class DPOStep:
    """The best response of a ranking and the worst, in rows 0 and 1."""

    batch: Rollout
    logprobs: list[Tensor]  # (2,) of the policy, before and after
    ref_logprobs: list[float]  # of the reference
    loss: list[float]  # before, after
    rewards: list[list[float]]  # of chosen and rejected, before and after
    log_ratio: Tensor  # (2, R) log policy - log reference after the step

    @property
    def margins(self) -> list[float]:
        return [chosen - rejected for chosen, rejected in self.rewards]


def dpo_step(settings: Settings, ranking: Ranking) -> DPOStep:
    """One optimiser step of train_dpo.py on one pair."""
    dpo = train_dpo.Settings()
    policy = open_model(GPT, settings.init, "cpu").requires_grad_()
    reference = open_model(GPT, settings.init, "cpu")
    prompt, pair = ranking.prompt, [ranking.responses[0], ranking.responses[-1]]
    prompt_ids = policy.tokenizer.encode_prompt(prompt.turns)
    ids = [policy.tokenizer.encode_response(prompt.turns, response) for response in pair]
    item = train_dpo.Item(prompt, prompt_ids, ids, ranks=[1, 2])
    train_dpo.add_reference_logprobs(reference, [item], dpo)
    optimizer = adamw(policy)

    before, numbers_before = train_dpo.pair_loss(policy, [item], dpo)
    take_step(optimizer, dpo.lr, before)
    with torch.no_grad():
        after, numbers_after = train_dpo.pair_loss(policy, [item], dpo)
        batch = Rollout.of(policy.tokenizer, [prompt] * 2, pair, policy.device)
        log_ratio = rollout.logprobs(policy, batch, dpo.temperature)  # (2, R)
        log_ratio -= rollout.logprobs(reference, batch, dpo.temperature)

    def of_both(numbers: dict, name: str) -> Tensor:
        return torch.cat([numbers[f"chosen_{name}"], numbers[f"rejected_{name}"]]).detach()

    when = (numbers_before, numbers_after)
    return DPOStep(
        batch,
        logprobs=[of_both(numbers, "logp") for numbers in when],
        ref_logprobs=item.reference_logprobs,
        loss=[before.item(), after.item()],
        rewards=[of_both(numbers, "reward").tolist() for numbers in when],
        log_ratio=log_ratio,
    )


@dataclass
class RankingStep:
    scores: list[Tensor]  # (K,) before and after
    pair_losses: Tensor  # (K, K) of i over j before, NaN where i is not ranked above j
    loss: list[float]  # before, after


def ranking_step(settings: Settings, ranking: Ranking) -> RankingStep:
    """One optimiser step of train_rm.py on one ranking."""
    model = open_model(ScalarGPT, settings.reward, "cpu", score_mean=0.0, score_std=1.0)
    optimizer = adamw(model.requires_grad_())
    groups = to_groups(model.tokenizer, [ranking], model.config.n_positions)
    scores, ranks, mask, chances = group_scores(model, groups)  # (1, K), (1, K, K)
    before, _ = losses.ranking_loss(scores, ranks, mask, 1, chances)
    take_step(optimizer, train_rm.Settings.lr, before)
    with torch.no_grad():
        new_scores = group_scores(model, groups)[0]
        after, _ = losses.ranking_loss(new_scores, ranks, mask, 1, chances)
    scores = scores.detach()

    pair_losses = torch.full(chances.shape[1:], torch.nan)  # (K, K)
    for i, j in losses.untied_pairs(ranks)[0].nonzero().tolist():
        pair_losses[i, j], _ = losses.ranking_loss(scores[:, [i, j]], ranks[:, [i, j]])
    return RankingStep([scores[0], new_scores[0]], pair_losses, [before.item(), after.item()])


# --- the page: all texts and formulas are in one_step.html


HEADINGS = {
    "old": "log π",
    "ref": "log π<sub>ref</sub>",
    "kl": "KL",
    "reward": "r",
    "value": "V",
    "advantage": "A",
    "returns": "R",
    "whitened": "Â",
    "ratio": "ρ",
    "new_value": "V<sub>new</sub>",
    "policy_share": "policy loss",
    "value_share": "value loss",
}
TINTED = ("kl", "whitened")


def number(value: float) -> str:
    text = f"{float(value):.3f}"
    return "0.000" if text == "-0.000" else text.replace("-", "−")


def change(before: float, after: float) -> str:
    return f"{number(before)} → {number(after)}"


def token_text(tokenizer: Tokenizer, token: int) -> str:
    return printable(tokenizer.decode([token])).replace("\n", "⏎")


def table(style: str, head: list[str], rows: list[list[str]]) -> str:
    """All cells are HTML; the first row and those of `rows` are lists of them."""
    lines = ["".join(head), *map("".join, rows)]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table class="{style}">{body}</table></div>'


def th(text: str) -> str:
    return f"<th>{text}</th>"


def td(text: str, attributes: str = "") -> str:
    return f"<td {attributes}>{text}</td>"


def tint(value: float, largest: float) -> str:
    """Attributes of an element that is blue above 0, orange below."""
    strength = abs(float(value)) / max(1e-9, float(largest))
    return f'class="{"above" if value > 0 else "below"}" style="--strength: {strength:.2f}"'


def tokens_html(tokenizer: Tokenizer, tokens: list[int], attributes: list[str]) -> str:
    spans = []
    for token, attribute in zip(tokens, attributes):
        spans.append(f"<span {attribute}>{escape(token_text(tokenizer, token))}</span>")
    return f'<p class="tokens">{"".join(spans)}</p>'


def ppo_html(tokenizer: Tokenizer, step: Step) -> str:
    """Every response: its text, the sampled tokens marked, and a line for each of them."""
    parts = []
    for row, (prompt, response) in enumerate(step.batch.sequences()):
        ending = "ended by itself" if step.batch.finished[row] else "cut off: a fixed score"
        styles = ['class="prompt"'] * len(prompt) + ['class="response"'] * len(response)
        parts += [
            f"<h3>Response {row + 1}: score {number(step.scores[row])}, KL "
            f"{number(step.numbers['kl'][row].sum())} nats, {len(response)} tokens, {ending}</h3>",
            tokens_html(tokenizer, prompt + response, styles),
            token_table(tokenizer, step, row, response),
        ]
    return "".join(parts)


def token_table(tokenizer: Tokenizer, step: Step, row: int, response: list[int]) -> str:
    rows = []
    for column, token in enumerate(response):
        cells = [th(escape(token_text(tokenizer, token)))]
        for name in HEADINGS:
            values = step.numbers[name]  # (B, R)
            value = values[row, column]
            attributes = tint(value, values.abs().max()) if name in TINTED else ""
            cells.append(td(number(value), attributes))
        rows.append(cells)
    return table("numbers", [th("token"), *map(th, HEADINGS.values())], rows)


def ppo_numbers(tokenizer: Tokenizer, ppo: train_ppo.Settings, step: Step) -> dict[str, str]:
    """What the formulas are filled in with: the last token of the first response."""
    mask = step.batch.mask
    response = step.batch.sequences()[0][1]
    advantages = step.numbers["advantage"]
    filled = {
        "kl_coef": f"{ppo.kl_coef:g}",
        "temperature": f"{ppo.temperature:g}",
        "lam": f"{ppo.lam:g}",
        "clip": f"{ppo.clip:g}",
        "value_clip": f"{ppo.value_clip:g}",
        "lr": f"{lr_of(ppo, 1):g}",
        "count": str(int(mask.sum())),
        "token": escape(token_text(tokenizer, response[-1])),
        "score": number(step.scores[0]),
        "mean": number(losses.masked_mean(advantages, mask)),
        "std": number(losses.masked_variance(advantages, mask).sqrt()),
    }
    for name, values in step.numbers.items():
        filled[name] = number(values[0, len(response) - 1])
    for name, loss in step.before.items():
        filled[name] = change(loss, step.after[name])
    return filled


def dpo_html(tokenizer: Tokenizer, step: DPOStep) -> str:
    """The two responses, tinted by log policy - log reference after the step."""
    parts = []
    largest = step.log_ratio.abs().max()
    for row, name in enumerate(("Chosen", "Rejected")):
        tokens = step.batch.sequences()[row][1]
        tints = [tint(value, largest) for value in step.log_ratio[row]]
        before, after = (logprobs[row] for logprobs in step.logprobs)
        parts += [
            f"<h3>{name}: log π {change(before, after)}, log π<sub>ref</sub> "
            f"{number(step.ref_logprobs[row])}</h3>",
            tokens_html(tokenizer, tokens, tints),
        ]
    return "".join(parts)


def dpo_numbers(step: DPOStep) -> dict[str, str]:
    chosen, rejected = step.logprobs[1].tolist()
    ref_chosen, ref_rejected = step.ref_logprobs
    chosen_reward, rejected_reward = step.rewards[1]
    filled = {
        "chosen": number(chosen),
        "rejected": number(rejected),
        "ref_chosen": number(ref_chosen),
        "ref_rejected": number(ref_rejected),
        "chosen_reward": number(chosen_reward),
        "rejected_reward": number(rejected_reward),
        "beta": f"{train_dpo.BETA['sigmoid']:g}",
        "dpo_lr": f"{train_dpo.Settings.lr:g}",
    }
    for when, margin, loss in zip(("before", "after"), step.margins, step.loss):
        filled[f"margin_{when}"] = number(margin)
        filled[f"dpo_loss_{when}"] = number(loss)
        filled[f"weight_{when}"] = number(1 / (1 + math.exp(margin)))
    return filled


def ranking_html(ranking: Ranking, step: RankingStep) -> str:
    """The responses with their scores, and a loss for every pair."""
    names = [f"{rank:g}" for rank in ranking.ranks]
    answers = []
    for name, response, before, after in zip(names, ranking.responses, *step.scores):
        answers.append([td(name), td(escape(printable(response))), td(change(before, after))])
    pairs = []
    for name, row in zip(names, step.pair_losses.tolist()):
        cells = ["" if math.isnan(loss) else number(loss) for loss in row]
        pairs.append([th(name), *map(td, cells[1:])])
    return table("answers", [th("rank"), th("response"), th("score")], answers) + table(
        "numbers", [th("rank"), *(th(f"over {name}") for name in names[1:])], pairs
    )


def ranking_numbers(ranking: Ranking, step: RankingStep) -> dict[str, str]:
    best, worst = step.scores[0][0], step.scores[0][-1]
    return {
        "rm_lr": f"{train_rm.Settings.lr:g}",
        "prompt": escape(printable(ranking.prompt.last_request())),
        "pairs": str(int((~step.pair_losses.isnan()).sum())),
        "best": number(best),
        "worst": number(worst),
        "best_over_worst": number(step.pair_losses[0, -1]),
        "ranking_loss": change(*step.loss),
    }


# --- the terminal


def show_ppo(tokenizer: Tokenizer, step: Step) -> None:
    for row, (prompt, response) in enumerate(step.batch.sequences()):
        is_sampled = [False] * len(prompt) + [True] * len(response)
        print(f"\n{tokenizer.show(prompt + response, is_sampled)}")
        kl = step.numbers["kl"][row].sum()
        print(f"score {number(step.scores[row])}, KL {number(kl)} nats")
    names = ("old", "ref", "kl", "reward", "value", "whitened", "ratio")
    print("\nthe first response:\n" + "token".ljust(16) + "".join(map("{:>9}".format, names)))
    for column, token in enumerate(step.batch.sequences()[0][1]):
        values = [number(step.numbers[name][0, column]).rjust(9) for name in names]
        print(f"{token_text(tokenizer, token)[:15]:16}{''.join(values)}")
    for name, loss in step.before.items():
        print(f"{name} {change(loss, step.after[name])}")


def main(settings: Settings) -> None:
    check_folder(settings.init, "--init", "`python train_sft.py`")
    check_folder(settings.reward, "--reward", "`python train_rm.py`, which needs rankings,")
    policy = open_model(GPT, settings.init, "cpu")
    value = open_model(ScalarGPT, settings.reward, "cpu")
    if value.tokenizer.vocab != policy.tokenizer.vocab:
        raise UserError(
            f"--reward {settings.reward} has other tokens than --init: start both from one"
        )
    prompts = read_prompts(settings.data, split="test", count=20, seed=settings.seed)
    prompts = rollout.prompts_that_fit(policy, prompts, train_ppo.Settings.max_tokens)[:REQUESTS]
    tokenizer = policy.tokenizer
    ppo = train_ppo.Settings(init=settings.init, reward=settings.reward, seed=settings.seed)
    ppo = train_ppo.complete(ppo)

    ranking = rank_answers(settings, policy, prompts)
    step = second_ppo_step(ppo, prompts, policy, value)
    pair = dpo_step(settings, ranking)
    ranked = ranking_step(settings, ranking)

    print(f"PPO: sampled tokens green, those of the request dim; KL coefficient {ppo.kl_coef:g}")
    show_ppo(tokenizer, step)
    print(f"\nDPO, one pair: loss {change(*pair.loss)}, margin {change(*pair.margins)}")
    print(f"\nreward model, one ranking of {ANSWERS}: loss {change(*ranked.loss)}")
    for rank, response, score in zip(ranking.ranks, ranking.responses, ranked.scores[0]):
        print(f"  rank {rank:g}, score {number(score):>6}: {printable(response)[:70]!r}")

    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        ppo=ppo_html(tokenizer, step),
        dpo=dpo_html(tokenizer, pair),
        ranking=ranking_html(ranking, ranked),
        **ppo_numbers(tokenizer, ppo, step),
        **dpo_numbers(pair),
        **ranking_numbers(ranking, ranked),
    )
    Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(settings.out, page.encode())
    print(f"\nwrote {settings.out}; open it in a browser")


def check_folder(folder: str, flag: str, command: str) -> None:
    if not world.is_model_folder(folder):
        raise UserError(
            f"{folder} holds no model: {command} makes one, run_rlhf.py both out/sft and "
            f"out/round1/rm; or name another with {flag}"
        )


if __name__ == "__main__":
    start(main, Settings)
