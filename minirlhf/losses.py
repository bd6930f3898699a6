"""Every formula of RLHF as a pure function: tensors in, tensors out, nothing but torch.

Shapes. A per-token tensor is (B, R): B responses, one column per response token, right-padded.
`mask` (B, R) is bool, True on real tokens. Other shapes raise ValueError: broadcasting would hide
a mistake. Floats are float32 or float64; log-probs, KL and entropy are in nats.

Padding. Whatever stands there, NaN included, reaches no result and no gradient.

Normalisation. `divisor` divides a loss's sum. With the whole minibatch's divisor the losses of
micro-batches add up to the minibatch's; without it, the call's own count is taken.

Statistics that come with a loss are detached 0-d tensors over the call's real tokens or pairs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_RATIO = 20.0  # PPO's log(new/old) is clamped here: exp(20) is finite, also when summed


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """x with 0 in padding. Multiplying by the mask would not do: 0 * nan is nan."""
    if x.shape != mask.shape:
        raise ValueError(
            f"expected one number per response token, {tuple(mask.shape)}; got {tuple(x.shape)}"
        )
    return torch.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens -> 0-d."""
    return zero_padding(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, divisor: Tensor | float | None = None) -> Tensor:
    """Sum over real tokens / divisor -> 0-d.

    divisor: a number, or (B, 1) for a divisor per response; default: the number of real tokens
    """
    if divisor is None:
        return masked_sum(x, mask) / mask.sum().clamp(min=1)
    return (zero_padding(x, mask) / divisor).sum()


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Variance over real tokens (divided by n, not n - 1) -> 0-d."""
    return masked_mean((x - masked_mean(x, mask)).square(), mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Scale x (B, R) to mean 0 and variance 1 over real tokens; equal numbers become 0."""
    x = zero_padding(x, mask)
    mean = masked_mean(x, mask)
    variance = masked_variance(x, mask)
    return zero_padding((x - mean) * torch.rsqrt(variance + 1e-8), mask)


def length_normaliser(kind: str, mask: Tensor, max_tokens: int) -> Tensor:
    """What a token's loss is divided by, (B, 1); papers disagree.

    token: the number of tokens in the batch, so that all weigh the same (PPO; DAPO, Yu 2025, eq. 8)
    response: B x the response's own length: long ones weigh less per token (GRPO, Shao 2024, eq. 3)
    constant: B x max_tokens, whatever the lengths (Dr. GRPO, Liu 2025; RLOO up to that factor)
    """
    lengths = mask.sum(1, keepdim=True)  # (B, 1)
    if kind == "token":
        divisor = lengths.sum().expand_as(lengths)
    elif kind == "response":
        divisor = len(mask) * lengths
    elif kind == "constant":
        divisor = torch.full_like(lengths, len(mask) * max_tokens)
    else:
        raise ValueError(
            f"unknown length normaliser {kind!r}: choose from token, response and constant"
        )
    return divisor.clamp(min=1)


# --- KL divergence


def kl_estimates(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3: estimates of KL(policy || reference) from tokens that the policy sampled.

    Schulman, "Approximating KL divergence" (2020). With d = logp - ref_logp:
    k1 = d (unbiased, signed), k2 = d^2 / 2 (biased), k3 = exp(-d) - 1 + d (unbiased, at least 0)
    """
    d = logp - ref_logp
    return d, d.square() / 2, torch.expm1(-d) + d


def exact_kl(logp_all: Tensor, ref_logp_all: Tensor) -> Tensor:
    """KL(policy || reference) of whole distributions, (..., V) -> (...), from log-probs."""
    p = logp_all.exp()
    difference = torch.where(p == 0, 0.0, logp_all - ref_logp_all)  # impossible tokens count 0
    return (p * difference).sum(-1)


def adapt_kl_coef(
    kl_coef: float, kl: float, target: float, episodes: int, horizon: float = 10_000
) -> float:
    """Next KL coefficient: a proportional controller (Ziegler 2019, section 2.2).

    kl: mean KL of the last `episodes` responses, nats per response; at most `horizon` count
    horizon: responses after which a KL of 1.2 times the target or more has raised it by a fifth
    """
    error = float(kl) / target - 1
    error = min(max(error, -0.2), 0.2)
    return kl_coef * (1 + error * min(1, episodes / horizon))


# --- rewards and advantages


def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """Place scores (B,) on each response's last token -> (B, R); an empty response gets nothing."""
    if scores.shape != mask.shape[:1]:
        raise ValueError(
            f"expected one score per response, ({len(mask)},); got {tuple(scores.shape)}"
        )
    column = torch.arange(mask.shape[1], device=mask.device)  # (R,)
    last = mask.sum(1, keepdim=True) - 1  # (B, 1)
    return torch.where(column == last, scores[:, None], 0.0)


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward per token (B, R): -kl_coef * kl, and the score at the end (Ziegler 2019, eq. 2).

    scores: (B,) of whole responses
    kl: (B, R) log policy - log reference, nats
    """
    return at_last_token(scores, mask) - kl_coef * zero_padding(kl, mask)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2015, eq. 16) -> advantages, returns, (B, R).

    The episode ends with the response: no value beyond it is bootstrapped.
    returns = advantages + values are the value model's targets.
    """
    rewards = zero_padding(rewards, mask)
    values = zero_padding(values, mask)
    next_values = F.pad(values, (0, 1))[:, 1:]  # (B, R)
    deltas = rewards + gamma * next_values - values  # (B, R), 0 in padding
    advantages = torch.zeros_like(deltas)
    advantage = deltas.new_zeros(len(deltas))  # (B,)
    for t in reversed(range(mask.shape[1])):
        advantage = deltas[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    return advantages, advantages + values


def group_advantages(rewards: Tensor, kind: str = "rloo", divide_by_std: bool = True) -> Tensor:
    """Advantages (P, G) of G sampled responses to each of P prompts, from their rewards (P, G).

    rloo: reward - mean of the prompt's other samples (Kool 2019, Ahmadian 2024)
    grpo: (reward - mean of the prompt's samples) / their std (Shao 2024, section 4.1.2);
        divide_by_std=False: Dr. GRPO (Liu 2025)
    reinforce: reward - mean of the whole batch

    A reward of NaN is none: its response has advantage 0, and the others' means leave it out.
    """
    groups = rewards
    if kind == "reinforce":
        groups = rewards.reshape(1, -1)
    if groups.isnan().any():
        return without_missing(groups, kind, divide_by_std).reshape(rewards.shape)
    size = groups.shape[1]
    if size < 2:
        raise ValueError(f"{kind} compares rewards: at least 2 samples are needed, got {size}")

    advantages = groups - groups.mean(1, keepdim=True)
    if kind == "rloo":
        advantages = advantages * size / (size - 1)  # = reward - mean of the others
    elif kind == "grpo":
        if divide_by_std:
            advantages = advantages / (groups.std(1, keepdim=True) + 1e-6)
    elif kind != "reinforce":
        raise ValueError(f"unknown advantage {kind!r}: choose from rloo, grpo and reinforce")

    # equal rewards give exactly 0: the mean's rounding error must not be divided by a tiny std
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return torch.where(equal, 0.0, advantages).reshape(rewards.shape)


def without_missing(groups: Tensor, kind: str, divide_by_std: bool) -> Tensor:
    """group_advantages of groups (P, G) in which some rewards are NaN."""
    advantages = torch.zeros_like(groups)
    for row, group in zip(advantages, groups):
        there = ~group.isnan()
        if there.sum() > 1:
            row[there] = group_advantages(group[there][None], kind, divide_by_std)[0]
    return advantages


def combine_scores(scores: Tensor, kind: str, variance_weight: float = 0.5) -> Tensor:
    """Scores (M, B) of an ensemble of M reward models -> (B,) (Coste 2023, eqs. 2 to 4).

    kind: mean; min, the worst case; uwo: mean - variance_weight * variance over the models
    """
    if kind == "mean":
        return scores.mean(0)
    if kind == "min":
        return scores.amin(0)
    if kind == "uwo":
        return scores.mean(0) - variance_weight * scores.var(0, correction=0)
    raise ValueError(f"unknown ensemble {kind!r}: choose from mean, min and uwo")


# --- PPO


def ppo_policy_loss(
    new_logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    divisor: Tensor | float | None = None,
    clip_high: float | None = None,
) -> tuple[Tensor, dict]:
    """Clipped surrogate, negated (Schulman 2017, eq. 7) -> 0-d loss, statistics.

    new_logprobs: (B, R) of the policy that is trained; the only one that gets a gradient
    old_logprobs: (B, R) of the policy that sampled
    advantages: (B, R), or (B, 1) for one per response
    clip, clip_high: the ratio is kept within 1 - clip and 1 + clip_high (DAPO; default: clip)

    Statistics: ratio_mean; clip_fraction, the share of tokens where clipping binds; approx_kl,
    k3 of KL(old || new) per token; log_ratio_square. All are means over real tokens.
    """
    if clip_high is None:
        clip_high = clip
    if advantages.dim() == mask.dim():
        advantages = advantages.expand_as(mask)
    advantages = zero_padding(advantages, mask).detach()
    log_ratio = zero_padding(new_logprobs, mask) - zero_padding(old_logprobs, mask).detach()
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()  # (B, R)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip_high)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask, divisor)

    with torch.no_grad():
        stats = {
            "ratio_mean": 1 + masked_mean(ratio - 1, mask),
            "log_ratio_square": masked_mean(log_ratio.square(), mask),
            "clip_fraction": masked_mean((clipped > unclipped).to(ratio.dtype), mask),
            "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask),
        }
    return loss, stats


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None = None,
    divisor: Tensor | float | None = None,
) -> tuple[Tensor, dict]:
    """Half the squared error of values (B, R) against returns (B, R) -> 0-d loss, statistics.

    old_values: (B, R) at the time of sampling
    clip: values count as within clip of old_values where that error is larger (Ziegler 2019's code)

    Statistics: value_clip_fraction, the share of tokens where clipping binds.
    """
    values = zero_padding(values, mask)
    old_values = zero_padding(old_values, mask).detach()
    returns = zero_padding(returns, mask).detach()
    error = (values - returns).square()  # (B, R)
    clipped_error = error
    if clip is not None:
        clipped_values = torch.clamp(values, old_values - clip, old_values + clip)
        clipped_error = (clipped_values - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask, divisor)
    binds = masked_mean((clipped_error > error).to(error.dtype), mask)
    return loss, {"value_clip_fraction": binds}


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) -> 0-d; 0 where the returns do not vary."""
    total = masked_variance(returns, mask)
    unexplained = masked_variance(returns - values, mask)
    return torch.where(total < 1e-8, 0.0, 1 - unexplained / total)


# --- learning from rankings


def untied_pairs(ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """Ranks (B, K), 1 = best -> (B, K, K) bool, True at [b, i, j] where i is ranked above j.

    mask: (B, K) bool, False for responses that do not exist (ragged K)
    """
    better = ranks[:, :, None] < ranks[:, None, :]
    if mask is not None:
        better = better & mask[:, :, None] & mask[:, None, :]
    return better


def ranking_loss(
    scores: Tensor,
    ranks: Tensor,
    mask: Tensor | None = None,
    divisor: Tensor | float | None = None,
    chances: Tensor | None = None,
) -> tuple[Tensor, dict]:
    """K-way comparison loss (Ouyang 2022, eq. 1) -> 0-d loss, statistics.

    Per prompt, the mean of -log sigmoid(better score - worse score) over its untied pairs; then
    the mean over prompts that have such pairs.

    scores: (B, K)
    ranks, mask: (B, K) as in `untied_pairs`
    divisor: number of prompts with untied pairs in the whole batch
    chances: (B, K, K) soft targets: [b, i, j] is the chance p that i is better than j, and
        [b, j, i] is 1 - p; both 0 where not compared. The loss is then the cross-entropy
        (Bai 2022b, section 4.1), whose optimum is score_i - score_j = logit(p)

    Statistics over pairs: accuracy (equal scores count half), margin (mean difference), pairs.
    """
    if mask is not None:
        scores = zero_padding(scores, mask)
    pairs = untied_pairs(ranks, mask)  # (B, K, K)
    weights = pairs if chances is None else chances
    weights = weights.to(scores.dtype)  # (B, K, K), a pair's two weights sum to 1
    difference = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
    count = weights.sum((1, 2)).round()  # (B,) pairs of each prompt
    per_prompt = -(weights * F.logsigmoid(difference)).sum((1, 2)) / count.clamp(min=1)  # (B,)
    if divisor is None:
        divisor = (count > 0).sum().clamp(min=1)
    stats = {
        "accuracy": masked_mean((difference.sign() + 1) / 2, pairs).detach(),
        "margin": masked_mean(difference, pairs).detach(),
        "pairs": pairs.sum(),
    }
    return per_prompt.sum() / divisor, stats


# --- DPO and its relatives: losses (B,) and detached implicit rewards, from log-probs (B,) that are
# --- summed over a response


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
    kind: str = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) and rewards beta log(policy/reference) of chosen and rejected (B,).

    The log-probs (B,) are summed over each response's tokens. With h = log(policy/reference) of
    chosen minus that of rejected:
    sigmoid: -log sigmoid(beta h) (Rafailov 2023, eq. 7)
    ipo: (h - 1 / (2 beta))^2 (Azar 2023, eq. 17)

    label_smoothing: chance of a flipped label, conservative DPO (Mitchell 2023); sigmoid only
    """
    chosen = policy_chosen - ref_chosen
    rejected = policy_rejected - ref_rejected
    h = chosen - rejected  # (B,)
    if kind == "sigmoid" and 0 <= label_smoothing < 0.5:
        losses = -(1 - label_smoothing) * F.logsigmoid(beta * h)
        losses = losses - label_smoothing * F.logsigmoid(-beta * h)
    elif kind == "ipo" and label_smoothing == 0:
        losses = (h - 1 / (2 * beta)).square()
    else:
        raise ValueError(
            f"kind {kind!r} with label_smoothing {label_smoothing}: choose sigmoid with less than "
            "1/2, or ipo without"
        )
    return losses, beta * chosen.detach(), beta * rejected.detach()


def simpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
    margin: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """-log sigmoid(reward_chosen - reward_rejected - margin) (Meng 2024, eq. 6), no reference.

    The rewards are beta * mean log-prob per token; lengths are (B,) numbers of tokens.
    """
    chosen = beta * policy_chosen / chosen_lengths
    rejected = beta * policy_rejected / rejected_lengths
    return -F.logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach()


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; p is kept below 1: a certain response has finite odds."""
    return mean_logprobs - torch.log(-torch.expm1(mean_logprobs.clamp(max=-1e-6)))


def orpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """-mean log-prob of chosen - beta log sigmoid(difference of log odds) (Hong 2024, eqs. 6, 7).

    The rewards are log odds of the mean log-prob per token; no reference. Their lambda is beta.
    """
    mean = policy_chosen / chosen_lengths
    chosen = log_odds(mean)
    rejected = log_odds(policy_rejected / rejected_lengths)
    losses = -mean - beta * F.logsigmoid(chosen - rejected)
    return losses, chosen.detach(), rejected.detach()


def kto_loss(
    policy_logprobs: Tensor,
    reference_logprobs: Tensor,
    good: Tensor,
    kl: Tensor | float,
    beta: float,
    bad_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Losses (B,) of unpaired responses and their rewards beta log(policy/reference) (B,).

    1 - sigmoid(reward - beta kl), with the sign turned and bad_weight for bad responses
    (Ethayarajh 2024, eq. 8).

    policy_logprobs, reference_logprobs: (B,) summed over each response's tokens
    good: (B,) bool
    kl: nats, a constant: mean log(policy/reference) of responses to other prompts, at least 0
    """
    rewards = beta * (policy_logprobs - reference_logprobs)
    z = rewards - beta * torch.as_tensor(kl).detach()
    losses = torch.where(good, torch.sigmoid(-z), bad_weight * torch.sigmoid(z))
    return losses, rewards.detach()


# --- what is attainable: the optimum of KL-penalised RL, and best-of-n


def sampled_optimum(rewards: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reward, KL and effective sample size, each (P,), of the best policy under reward - beta * KL.

    The optimum is reference * exp(reward / beta) / Z (Rafailov 2023, eq. 4), here by importance
    weights. Trust it while the effective sample size is at least 50.

    rewards: (P, G) of G samples of the reference per prompt
    """
    log_weights = torch.log_softmax(rewards / beta, dim=1)  # (P, G)
    weights = log_weights.exp()
    reward = (weights * rewards).sum(1)
    kl = (weights * (log_weights + math.log(rewards.shape[1]))).sum(1)  # = reward / beta - log Z
    return reward, kl, 1 / weights.square().sum(1)


def best_of_n(proxy: Tensor, scores: Tensor, n: int) -> Tensor:
    """Expected score of the response with the highest proxy among n, (..., N) -> (...).

    Unbiased, from N >= n samples: the mean over all C(N, n) subsets is
    sum_i C(i-1, n-1) / C(N, n) * score_(i), with i counting up by proxy (Nakano 2021).
    """
    size = proxy.shape[-1]
    if not 1 <= n <= size or proxy.shape != scores.shape:
        raise ValueError(f"best of {n} of {size}: need 1 <= n <= N, proxy and scores of one shape")
    weights = [math.comb(i, n - 1) / math.comb(size, n) for i in range(size)]
    order = proxy.argsort(dim=-1, stable=True)
    return (scores.gather(-1, order) * scores.new_tensor(weights)).sum(-1)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n-1)/n nats: KL(best-of-n || reference) is at most this."""
    return math.log(n) - (n - 1) / n
