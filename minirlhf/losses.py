"""Every formula of RLHF as a pure function: tensors in, tensors out, nothing but torch.

A per-token tensor is (B, R), one column per response token, right-padded; `mask` (B, R) is bool, True on row i's first
length_i columns. Padding, NaN included, reaches no result and no gradient: 0 replaces it before any arithmetic
(0 * nan = nan, so multiplying by the mask would not do). Non-finite real tokens are not hidden. Floats are float32 or
float64; log-probs, KL, entropy in nats; statistics are detached 0-d tensors over the call's own real tokens or pairs.
Shapes that do not fit raise ValueError. `total` is the normaliser: a loss is sum / total. With the whole step's count
(tokens; prompts for rankings) the losses of micro-batches sum to the full batch's; without it, the call's own count.
"""
import math
from collections.abc import Callable
from operator import truediv

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_LOG_RATIO = 20.0  # PPO's |log(new/old)| is clamped here: exp(20) = 5e8 stays finite, also summed in float32

# The root mean square of log(new/old) before any update that rounding still explains. Measured on a
# CPU, on models of 1 x 32 to 12 x 768, fresh, trained and with inflated weights:
# float32: at most 1e-6 between scoring and training, whose rows come in another order and company.
# bfloat16: 0.003 there; 0.011 between two wholly different roundings (float32 and bfloat16, or decoding
# and forward), and 0.025 in the worst 50 tokens of those.
# Errors of trained models in the same measure: a temperature of 0.9 times 0.06, a dropout of 0.02 0.12,
# tokens shifted by one 6.
# The maximum has no limit: it grows with the number of tokens (0.15 in 49 000), and this mean sees a
# single token that is wrong by 3 nats among 10 000.
FIRST_RATIO_OFF = {torch.float32: 1e-4, torch.bfloat16: 0.03}


def _real(x: Tensor, mask: Tensor) -> Tensor:
    """x with 0 in padding; same shape as mask. ValueError if the shapes differ: broadcasting would hide a mistake."""
    if x.shape != mask.shape:
        raise ValueError(f"expected one number per response token, {tuple(mask.shape)} like mask; got {tuple(x.shape)}")
    return torch.where(mask, x, 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over real tokens -> 0-d."""
    return _real(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor, total: Tensor | float | None = None) -> Tensor:
    """Sum over real tokens / total -> 0-d; total defaults to the number of real tokens (0 when there are none), and may
    be (B, 1): a divisor for each row's tokens."""
    if isinstance(total, Tensor) and total.dim() > 0:
        return (_real(x, mask) / total).sum()
    return masked_sum(x, mask) / (mask.sum().clamp(min=1) if total is None else total)


def length_normaliser(kind: str, mask: Tensor, max_tokens: int) -> Tensor:
    """The `total` of a loss over B responses, what papers disagree about -> 0-d, or (B, 1) for `response`.
    token: every token of the batch weighs the same (PPO; DAPO, Yu 2025, eq. 8). response: every response does, its loss
    is its tokens' mean (GRPO, Shao 2024, eq. 3), so that a long wrong one costs less per token. none: a response's loss
    is its tokens' sum, over the constant max_tokens (RLOO's log-prob of a whole response; Dr. GRPO, Liu 2025)."""
    if kind not in ("token", "response", "none"):
        raise ValueError(f"unknown length normaliser {kind!r}: choose token, response or none")
    if kind == "none":
        return torch.tensor(max(1, len(mask) * max_tokens), device=mask.device)
    return (mask.sum() if kind == "token" else len(mask) * mask.sum(1, keepdim=True)).clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (divided by n, not n - 1) over real tokens, both 0-d; 0 and 0 when there are none."""
    x, mean = _real(x, mask), masked_mean(x, mask)
    return mean, masked_mean((x - mean).square(), mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale x (B, R) to variance 1 over real tokens and mean 0, or its own mean if not shift_mean (for rewards).
    Padding is 0. The 1e-8 keeps one token, or equal ones, finite: they come out as 0 (or as their mean)."""
    mean, variance = masked_moments(x, mask)
    scaled = (_real(x, mask) - mean) * torch.rsqrt(variance + 1e-8)
    return _real(scaled if shift_mean else scaled + mean, mask)


# --- KL divergence and entropy
def kl_estimates(logp: Tensor, ref_logp: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """k1, k2, k3 per token, same shape: estimates of KL(policy || reference) from tokens the policy sampled.
    Schulman, "Approximating KL divergence" (2020): with d = logp - ref_logp, k1 = d (unbiased, signed), k2 = d^2 / 2
    (biased), k3 = exp(-d) - 1 + d (unbiased, never negative). d is not clamped: k3 overflows to inf in float32 where
    the reference finds a token e^88 times likelier. Garbage in padding stays there."""
    d = logp - ref_logp
    return d, d.square() / 2, torch.expm1(-d) + d


def exact_kl(logp_all: Tensor, ref_logp_all: Tensor) -> Tensor:
    """KL(policy || reference) in nats, (..., V) -> (...), from normalised log-probs; impossible tokens count 0."""
    p = logp_all.exp()
    return (p * torch.where(p == 0, 0.0, logp_all - ref_logp_all)).sum(-1)


def entropy(logp_all: Tensor) -> Tensor:
    """Entropy in nats, (..., V) -> (...), from normalised log-probs: minus the "KL" to log-probs of zero."""
    return -exact_kl(logp_all, torch.zeros_like(logp_all))


def adapt_kl_coef(kl_coef: float, kl: float, target: float, episodes: int, horizon: float = 10_000) -> float:
    """Next KL coefficient after `episodes` responses of mean KL kl (nats, summed over a response); Ziegler 2019,
    section 2.2: a proportional controller on the relative error, clipped to +-0.2."""
    return kl_coef * (1 + min(max(float(kl) / target - 1, -0.2), 0.2) * episodes / horizon)


# --- rewards and advantages
def at_last_token(scores: Tensor, mask: Tensor) -> Tensor:
    """Place scores (B,) on each row's last real token -> (B, R), 0 elsewhere; a zero-length row gets nothing."""
    if scores.shape != mask.shape[:1]:
        raise ValueError(f"expected one score per response, ({mask.shape[0]},); got {tuple(scores.shape)}")
    column = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(column == mask.sum(1, keepdim=True) - 1, scores[:, None], 0.0)  # an empty row looks for -1


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Reward per token (B, R): -kl_coef * kl, plus the score on the last real token (Ziegler 2019, eq. 2).
    scores (B,), kl (B, R) in nats (k1, log policy - log reference). A row sums to score - kl_coef * sum of its kl."""
    return at_last_token(scores, mask) - kl_coef * _real(kl, mask)


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman 2015, eq. 16) -> advantages, returns, both (B, R), 0 in padding.
    The episode ends with the response: no value past it is bootstrapped. returns = advantages + values are the value
    model's targets, computed here, before advantages are whitened."""
    rewards, values = _real(rewards, mask), _real(values, mask)
    deltas = rewards + gamma * F.pad(values, (0, 1))[:, 1:] - values  # (B, R); past the end value = 0
    advantages, running = torch.zeros_like(deltas), 0.0
    for t in reversed(range(mask.shape[1])):  # in padding deltas are 0, so running is too
        running = advantages[:, t] = deltas[:, t] + gamma * lam * running
    return advantages, advantages + values


def group_advantages(rewards: Tensor, kind: str = "rloo", divide_by_std: bool | None = None) -> Tensor:
    """Advantages (P, G) of G sampled responses to each of P prompts, from their rewards (P, G).
    rloo: minus the mean of the prompt's other samples (Kool 2019, Ahmadian 2024). grpo: minus the prompt's mean, over
    its standard deviation (Shao 2024, section 4.1.2) unless divide_by_std=False (Dr. GRPO, Liu 2025). reinforce: minus
    the mean of the whole batch. divide_by_std=None: True for grpo alone. Equal rewards give 0, a lone one an error."""
    if kind not in ("rloo", "grpo", "reinforce"):
        raise ValueError(f"unknown kind of advantage {kind!r}: choose rloo, grpo or reinforce")
    group = rewards.reshape(1, -1) if kind == "reinforce" else rewards
    if (size := group.shape[1]) < 2:
        raise ValueError(f"{kind} compares the rewards of one {'step' if kind == 'reinforce' else 'prompt'}'s samples: "
                         f"at least 2 are needed, got {size}")
    centred = group - group.mean(1, keepdim=True)
    centred = centred * size / (size - 1) if kind == "rloo" else centred  # = r - mean of the other samples
    if kind == "grpo" if divide_by_std is None else divide_by_std:
        centred = centred / (group.std(1, keepdim=True) + 1e-6)
    equal = group.amax(1, keepdim=True) == group.amin(1, keepdim=True)  # rounding of the mean must not be amplified
    return torch.where(equal, 0.0, centred).reshape(rewards.shape)


# --- PPO
def ppo_policy_loss(new: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, clip: float,
                    total: Tensor | float | None = None, clip_high: float | None = None) -> tuple[Tensor, dict]:
    """Clipped surrogate (Schulman 2017, eq. 7), negated: sum over real tokens / total -> 0-d loss, statistics.
    new, old (B, R): log-probs of the sampled tokens now and when they were sampled; gradient flows to new alone.
    advantages (B, R), or (B, 1) for one per response. clip_high, if given, replaces clip above 1 (Yu 2025). Log-ratios
    are clamped to +-20 before exp: a wild token keeps the loss finite and gets no gradient. Statistics: ratio_mean;
    log_ratio_square; clip_fraction, the share of tokens where the clipped term binds; approx_kl,
    k3 of KL(old || new) per token, never negative. All are means over real tokens."""
    log_ratio = (_real(new, mask) - _real(old, mask).detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    advantages = _real(advantages.expand_as(mask) if advantages.dim() == mask.dim() else advantages, mask).detach()
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss, clipped_loss = -advantages * ratio, -advantages * clipped  # (B, R)
    change = ratio.detach() - 1
    return masked_mean(torch.maximum(loss, clipped_loss), mask, total), {
        "ratio_mean": 1 + masked_mean(change, mask),
        "log_ratio_square": masked_mean(log_ratio.detach().square(), mask),
        "clip_fraction": masked_mean((clipped_loss > loss).to(ratio.dtype), mask),
        "approx_kl": masked_mean(torch.expm1(log_ratio) - log_ratio, mask).detach()}


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = None,
               total: Tensor | float | None = None) -> tuple[Tensor, dict]:
    """Half the squared error of values (B, R) against returns (B, R): sum over real tokens / total -> 0-d, statistics.
    With clip, the larger of that and the error of values kept within clip of old_values (B, R), those of the rollout
    (Ziegler 2019's code). Statistics: value_clip_fraction, the share of tokens where the clipped term binds."""
    values, old_values, returns = _real(values, mask), _real(old_values, mask).detach(), _real(returns, mask).detach()
    near = values if clip is None else torch.clamp(values, old_values - clip, old_values + clip)
    error, clipped_error = (values - returns).square(), (near - returns).square()
    binds = masked_mean((clipped_error > error).to(error.dtype), mask)
    return 0.5 * masked_mean(torch.maximum(error, clipped_error), mask, total), {"value_clip_fraction": binds}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over real tokens -> 0-d; 0 where the returns do not vary."""
    (_, total), (_, left) = masked_moments(returns, mask), masked_moments(returns - values, mask)
    return torch.where(total < 1e-8, 0.0, 1 - left / total).detach()


# --- learning from rankings
def untied_pairs(ranks: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, K) ranks, 1 = best -> (B, K, K) bool, True at [b, i, j] where response i is ranked above response j.
    Responses with mask (B, K) False do not exist (ragged K). `.any((1, 2)).sum()` is the ranking loss's total."""
    better = ranks[:, :, None] < ranks[:, None, :]
    return better if mask is None else better & mask[:, :, None] & mask[:, None, :]


def ranking_loss(scores: Tensor, ranks: Tensor, mask: Tensor | None = None, total: Tensor | float | None = None,
                 preferences: Tensor | None = None) -> tuple[Tensor, dict]:
    """K-way comparison loss (Ouyang 2022, eq. 1) of scores (B, K) against ranks (B, K), 1 = best -> 0-d, statistics.
    Per prompt the mean of -log sigmoid(score_better - score_worse) over its untied pairs (at most C(K, 2)), then the
    mean over prompts that have one, or their sum / total. Ties and absent responses (mask (B, K) False) count nothing;
    no pairs, loss 0. Statistics over pairs: accuracy (equal scores count half), margin (mean difference), pairs.
    preferences (B, K, K) make the targets soft: [b, i, j], the chance p that i is better than j, where [b, j, i] is 1 - p,
    both 0 where i and j were not compared. A pair's loss is then the cross-entropy -p log sigmoid(s_i - s_j)
    - (1 - p) log sigmoid(s_j - s_i) (Bai 2022b, section 4.1), whose optimum is s_i - s_j = logit(p)."""
    scores = scores if mask is None else _real(scores, mask)
    pairs = untied_pairs(ranks, mask)  # (B, K, K)
    weights = pairs.to(scores.dtype) if preferences is None else preferences.to(scores.dtype)  # (B, K, K); a pair's sum to 1
    difference = scores[:, :, None] - scores[:, None, :]  # (B, K, K)
    count = weights.sum((1, 2)).round()  # (B,)
    per_prompt = -(weights * F.logsigmoid(difference)).sum((1, 2)) / count.clamp(min=1)
    loss = per_prompt.sum() / ((count > 0).sum().clamp(min=1) if total is None else total)
    right, margin = masked_mean((difference.sign() + 1) / 2, pairs), masked_mean(difference, pairs)
    return loss, {"accuracy": right.detach(), "margin": margin.detach(), "pairs": pairs.sum()}


def dpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float,
             label_smoothing: float = 0.0, kind: str = "sigmoid") -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) and detached implicit rewards beta log(policy/reference), chosen and rejected (B,).
    Inputs (B,): log-probs summed over a response; h = log(policy/reference) of chosen minus that of rejected. sigmoid:
    -log sigmoid(beta h) (Rafailov 2023, eq. 7); label_smoothing, the chance of a flipped label, makes it conservative
    DPO (Mitchell 2023), best at h = logit(1 - label_smoothing) / beta instead of infinity. robust: the same two terms
    weighted so that their mean over flips is the loss on clean labels (Chowdhury 2024, eq. 12). ipo: (h - 1 / (2 beta))^2
    (Azar 2023, eq. 17). ValueError for an unknown kind, label_smoothing with ipo or of 1/2 and more."""
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected  # (B,)
    h, flip = chosen - rejected, label_smoothing
    if kind in ("sigmoid", "robust") and 0 <= flip < 0.5:
        losses = -(1 - flip) * F.logsigmoid(beta * h) - (flip if kind == "sigmoid" else -flip) * F.logsigmoid(-beta * h)
        losses = losses if kind == "sigmoid" else losses / (1 - 2 * flip)
    elif kind == "ipo" and flip == 0:
        losses = (h - 1 / (2 * beta)).square()
    else:
        raise ValueError(f"kind {kind!r}, label_smoothing {flip}: choose sigmoid, robust, or ipo without smoothing")
    return losses, beta * chosen.detach(), beta * rejected.detach()


def plackett_luce_loss(scores: Tensor, pairs: Tensor) -> Tensor:
    """-log probability of a whole ranking, (B,): the best is drawn from all by a softmax of scores (B, K), the next from
    the rest, and so on. With scores beta log(policy/reference) it is DPO's for K responses (Rafailov 2023, eq. 20), for
    K = 2 its eq. 7. pairs (B, K, K) bool, True at [b, i, j] where i is ranked above j (untied_pairs): a draw is among i
    and those below it, so that ties say nothing of one another, and a response below none (or absent) is no draw."""
    below = scores[:, None, :].masked_fill(~pairs, -torch.inf)  # (B, K, K)
    draws = torch.cat([scores[:, :, None], below], 2).logsumexp(2) - scores  # (B, K)
    return torch.where(pairs.any(2), draws, 0.0).sum(1)


def simpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
               beta: float, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) and detached rewards beta * mean log-prob per token, chosen and rejected (B,), without a reference:
    -log sigmoid(reward_chosen - reward_rejected - margin) (Meng 2024, eq. 6). Inputs (B,): log-probs summed over a
    response, and numbers of its tokens."""
    chosen, rejected = beta * policy_chosen / chosen_lengths, beta * policy_rejected / rejected_lengths
    return -F.logsigmoid(chosen - rejected - margin), chosen.detach(), rejected.detach()


def orpo_loss(policy_chosen: Tensor, policy_rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor,
              beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (B,) and detached rewards log odds, chosen and rejected (B,), without a reference: -mean log-prob of chosen
    - beta log sigmoid(log odds_chosen - log odds_rejected) (Hong 2024, eqs. 6 and 7, their lambda is beta), where
    odds = p / (1 - p) and log p is the mean log-prob per token, kept under -1e-6: a certain response has finite odds."""
    def log_odds(mean: Tensor) -> Tensor:
        return mean - torch.log(-torch.expm1(mean.clamp(max=-1e-6)))

    mean = policy_chosen / chosen_lengths
    chosen, rejected = log_odds(mean), log_odds(policy_rejected / rejected_lengths)
    return -mean - beta * F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach()


def kto_loss(policy: Tensor, reference: Tensor, good: Tensor, kl: Tensor | float, beta: float,
             good_weight: float = 1.0, bad_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses (B,) of unpaired responses, good (B,) bool, and detached rewards beta log(policy/reference) (B,); 1/2 at the
    start, between 0 and the weight. weight * (1 - sigmoid(reward - beta kl)) for good ones, with the sign turned for
    bad (Ethayarajh 2024, eq. 8). kl (0-d, nats, a constant): the step's mean of log(policy/reference) over prompts with
    responses to other prompts, at least 0. The paper: weights in which good_weight * (number of good) is 1 to 4/3 of bad's."""
    rewards = beta * (policy - reference)
    z = rewards - beta * torch.as_tensor(kl).detach()
    losses = torch.where(good, good_weight * torch.sigmoid(-z), bad_weight * torch.sigmoid(z))
    return losses, rewards.detach()


# --- what is attainable: the optimum of KL-penalised RL, and best-of-n
def sampled_optimum(rewards: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Expected reward and KL (nats) of the best policy under reward - beta * KL, and effective sample size, each (P,).
    rewards (P, M): of M samples of the reference per prompt. The optimum is reference * exp(reward / beta) / Z
    (Rafailov 2023, eq. 4), here by importance weights; trust it while the effective sample size is 50 or more."""
    log_w = torch.log_softmax(rewards / beta, dim=1)  # (P, M)
    w = log_w.exp()
    kl = (w * (log_w + math.log(rewards.shape[1]))).sum(1)  # = reward / beta - log Z
    return (w * rewards).sum(1), kl, 1 / w.square().sum(1)


def best_of_n(proxy: Tensor, scores: Tensor, n: int) -> Tensor:
    """Expected score of the response with the highest proxy among n, unbiased, from N >= n samples: (..., N) -> (...).
    The mean over all C(N, n) subsets: sum_i C(i-1, n-1) / C(N, n) score_(i), i counting up by proxy (Nakano 2021).
    Equal proxies keep their order. ValueError unless 1 <= n <= N."""
    size = proxy.shape[-1]
    if not 1 <= n <= size or proxy.shape != scores.shape:
        raise ValueError(f"best of {n} of {size}: need 1 <= n <= N, and proxy and scores of one shape")
    weights = scores.new_tensor([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])
    return (scores.gather(-1, proxy.argsort(dim=-1, stable=True)) * weights).sum(-1)


def best_of_n_kl_bound(n: int) -> float:
    """log n - (n-1)/n nats: bounds KL(best-of-n || reference) from above, near it while repeats are rare."""
    return math.log(n) - (n - 1) / n


# --- reward ensembles
def combine_scores(scores: Tensor, kind: str, variance_weight: float = 0.5) -> Tensor:
    """Scores (M, B) of M reward models -> (B,). mean; min, the worst case; uwo, uncertainty-weighted: mean -
    variance_weight * variance over the M, biased (Coste 2023, eqs. 2 to 4; they take 0.1 to 0.5)."""
    if kind not in ("mean", "min", "uwo"):
        raise ValueError(f"unknown ensemble {kind!r}: choose mean, min or uwo")
    return scores.amin(0) if kind == "min" else scores.mean(0) - (kind == "uwo") * variance_weight * scores.var(0, correction=0)


# --- statistics
def correlation(x: Tensor, y: Tensor) -> float:
    """Pearson's r of two (N,) tensors; 0 where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale > 1e-8 else 0.0


def estimate(prompt: Tensor, over: list[Tensor], under: list[Tensor], statistic: Callable = truediv, share: bool = False) -> dict:
    """statistic(sums of over and under) with the jackknife's interval (Miller 1974): each prompt is left out in turn. prompt (N,):
    whose the entries are. A share that no prompt disagrees on is known to 3 / their number (Hanley 1983)."""
    index, columns = prompt.unique(return_inverse=True)[1], torch.stack([*over, *under]).double()                   # (k, N)
    n = int(index.max()) + 1 if len(index) else 0
    sums = torch.zeros(len(columns), n, dtype=torch.double).index_add(1, index, columns)          # (k, n)
    total, count = sums.sum(1, keepdim=True), int((sums[len(over):] != 0).sum(1).min()) if n else 0
    left = statistic(*(total - sums))          # (n,)
    half = 1.96 * float((left - left.mean()).square().sum().mul((n - 1) / n).sqrt()) if n > 1 else math.nan
    return {"mean": float(statistic(*total)), "interval": min(1.0, 3 / count) if share and half < 1e-9 else half, "prompts": count}


def mean_of(x: Tensor, share: bool = False) -> dict:
    """(P,) or (P, S) -> mean over prompts with its 95 % interval's half width."""
    x = x.double().reshape(len(x), -1).mean(1) if len(x) else x
    return estimate(torch.arange(len(x)), [x], [torch.ones_like(x)], share=share)
