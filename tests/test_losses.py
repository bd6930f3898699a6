"""Formulas against brute force, finite differences, exact distributions and published numbers."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from minirlhf import losses as L

ORACLES = Path(__file__).parent / "oracles" / "rl_oracles.json"  # numbers that others published
LENGTHS = [5, 0, 1, 3, 7]


def rand(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def length_mask(lengths, width=None):
    width = max(lengths) if width is None else width
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


MASK = length_mask(LENGTHS)


@pytest.fixture(scope="module")
def oracle():
    return json.loads(ORACLES.read_text(encoding="utf-8"))


# --- published numbers


@pytest.mark.parametrize("lam", ["1.0", "0.7", "0.4"])
def test_gae_rlax(oracle, lam):
    """rlax bootstraps v_t[-1] and has a discount per step.

    The bootstrap goes into the last reward. A discount of 0 ends an episode, so its second row is a
    ragged batch of two episodes.
    """
    case = oracle["gae_rlax"]
    r, v, expected = f64(case["r_t"]), f64(case["v_t"]), f64(case["expected"][lam])
    first = r[:1].clone()
    first[0, -1] += 0.99 * v[0, -1]
    advantages, _ = L.gae(first, v[:1, :5], length_mask([5]), 0.99, float(lam))
    assert torch.allclose(advantages[0], expected[0], atol=case["atol"])
    rewards, values = torch.full((2, 4), math.nan).double(), torch.full((2, 4), math.nan).double()
    rewards[0], values[0] = r[1, :4], v[1, :4]
    rewards[1, 0], values[1, 0] = r[1, 4] + 0.9 * v[1, 5], v[1, 4]
    advantages, _ = L.gae(rewards, values, length_mask([4, 1]), 0.9, float(lam))
    assert torch.allclose(advantages[0], expected[1, :4], atol=case["atol"])
    assert torch.allclose(advantages[1], f64([expected[1, 4], 0, 0, 0]), atol=case["atol"])


def test_gae_returns_torchtune(oracle):
    case = oracle["gae_returns_torchtune"]
    values, rewards = f64(case["values"]), f64(case["rewards"])
    _, returns = L.gae(rewards, values, length_mask([4]), case["gamma"], case["lmbda"])
    assert torch.allclose(returns, f64(case["expected_returns"]), atol=1e-6)


def test_ppo_rlax(oracle):
    case = oracle["ppo_clip_rlax"]
    actions = torch.tensor(case["actions"])[:, None]
    new, old = (f64(case[k]).log_softmax(-1).gather(1, actions) for k in ("logits", "old_logits"))
    for advantages, expected in zip(case["advantages"], case["expected_loss"]):
        loss, _ = L.ppo_policy_loss(
            new, old, f64(advantages)[:, None], length_mask([1, 1, 1]), case["epsilon"]
        )
        assert loss.item() == pytest.approx(expected, abs=case["atol"])


def test_dpo_torchtune(oracle):
    case = oracle["dpo_torchtune"]
    names = (
        "policy_chosen_logprobs",
        "policy_rejected_logprobs",
        "ref_chosen_logprobs",
        "ref_rejected_logprobs",
    )
    found, chosen, rejected = L.dpo_loss(*(f64(case[name]) for name in names), beta=case["beta"])
    assert torch.allclose(found, f64(case["expected_loss"]), atol=case["atol"])
    assert torch.allclose(chosen, f64([0.0, 0.01, -0.09])) and torch.allclose(
        rejected, f64([0.0, -0.99, -2.09])
    )


def test_token_rewards_torchtune(oracle):
    case = oracle["rewards_torchtune"]
    kl = L.kl_estimates(f64(case["logprobs"]), f64(case["ref_logprobs"]))[0]
    found = L.token_rewards(f64(case["scores"]), kl, length_mask([3, 3, 3]), case["kl_coeff"])
    assert torch.allclose(kl, f64(case["expected_kl"]), atol=case["atol"])
    assert torch.allclose(found, f64(case["expected_rewards"]), atol=case["atol"])


@pytest.mark.parametrize(
    "name, clip",
    [
        ("compute_grpo_clip_loss_large_cliprange", 10.0),
        ("compute_grpo_clip_loss_small_cliprange", 0.1),
        ("compute_policy_gradient_loss_grpo_clip", 0.5),
    ],
)
def test_ppo_cs336_per_token(oracle, name, clip):
    case = oracle["cs336_" + name]
    new, old = (
        f64(case["policy_log_probs"]).reshape(-1, 1),
        f64(case["old_log_probs"]).reshape(-1, 1),
    )
    advantages = f64(case["advantages"]).expand(2, 10).reshape(-1, 1)
    one = length_mask([1])
    found = [
        L.ppo_policy_loss(new[i : i + 1], old[i : i + 1], advantages[i : i + 1], one, clip)[0]
        for i in range(20)
    ]
    assert torch.allclose(torch.stack(found), f64(case["expected"]).reshape(-1), atol=1e-5)


@pytest.mark.parametrize(
    "name, weight",
    [
        ("naive_policy_gradient_loss", "raw_rewards"),
        ("policy_gradient_loss_reinforce_with_baseline", "advantages"),
    ],
)
def test_ppo_gradient_on_policy_is_policy_gradient_cs336(oracle, name, weight):
    """Their loss is -A log p; at ratio 1 the clipped surrogate has the same gradient, -A."""
    case = oracle["cs336_compute_" + name]
    new = f64(case["policy_log_probs"]).requires_grad_()
    mask = length_mask([10, 10])
    L.ppo_policy_loss(new, new.detach(), f64(case[weight]), mask, 0.2, divisor=1)[0].backward()
    assert torch.allclose(new.grad * new.detach(), f64(case["expected"]), atol=1e-5)


def test_ppo_cs336_microbatch(oracle):
    """Theirs: mean over a row, over rows, / accumulation steps. The mask has holes."""
    case = oracle["cs336_ppo_clip_microbatch"]
    new, old = f64(case["policy_log_probs"]).requires_grad_(), f64(case["old_log_probs"])
    mask, advantages = torch.tensor(case["response_mask"]).bool(), f64(case["advantages"])
    loss = sum(
        L.ppo_policy_loss(
            new[i : i + 1],
            old[i : i + 1],
            advantages[i : i + 1],
            mask[i : i + 1],
            case["cliprange"],
            divisor=mask[i].sum() * 2 * case["grad_accum"],
        )[0]
        for i in range(2)
    )
    loss.backward()
    assert loss.item() == pytest.approx(case["expected_loss"], abs=1e-6)
    assert torch.allclose(new.grad, f64(case["expected_grad"]), atol=1e-6)


# --- gradients, micro-batches, padding

NEW, OLD, ADVANTAGES = (
    rand(5, 7, seed=1, scale=0.3),
    rand(5, 7, seed=2, scale=0.3),
    rand(5, 7, seed=3),
)
VALUES, OLD_VALUES, RETURNS = rand(5, 7, seed=4), rand(5, 7, seed=5), rand(5, 7, seed=6)
SCORES, RANKS = (
    rand(5, 4, seed=7),
    torch.tensor([[1, 2, 3, 4], [2, 1, 1, 3], [1, 1, 1, 1], [3, 1, 2, 2], [1, 1, 2, 9]]),
)
PRESENT = length_mask([4, 4, 4, 3, 3])

TOKEN_LOSSES = {
    "ppo": lambda new, old, adv, mask, total=None: L.ppo_policy_loss(
        new, old, adv, mask, 0.2, total
    )[0],
    "ppo_clip_high": lambda new, old, adv, mask, total=None: L.ppo_policy_loss(
        new, old, adv, mask, 0.1, total, 0.4
    )[0],
    "value": lambda new, old, adv, mask, total=None: L.value_loss(new, old, adv, mask, None, total)[
        0
    ],
    "value_clip": lambda new, old, adv, mask, total=None: L.value_loss(
        new, old, adv, mask, 0.2, total
    )[0],
}
INPUTS = {
    "ppo": (NEW, OLD, ADVANTAGES),
    "ppo_clip_high": (NEW, OLD, ADVANTAGES),
    "value": (VALUES, OLD_VALUES, RETURNS),
    "value_clip": (VALUES, OLD_VALUES, RETURNS),
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_loss_gradients_are_finite_differences(name):
    x, *rest = INPUTS[name]
    assert gradcheck(lambda x: TOKEN_LOSSES[name](x, *rest, MASK), x.clone().requires_grad_())


def test_other_gradients_are_finite_differences():
    assert gradcheck(
        lambda s: L.ranking_loss(s, RANKS, PRESENT)[0], SCORES.clone().requires_grad_()
    )
    logps = [rand(6, seed=s).requires_grad_() for s in (20, 21)]
    refs = [rand(6, seed=s) for s in (22, 23)]
    for options in ({}, {"label_smoothing": 0.2}, {"kind": "ipo"}):
        assert gradcheck(
            lambda c, r, options=options: L.dpo_loss(c, r, *refs, beta=0.7, **options)[0], logps
        )
    logits, ref = rand(3, 5, seed=24).requires_grad_(), rand(3, 5, seed=25).log_softmax(-1)
    assert gradcheck(lambda x: L.exact_kl(x.log_softmax(-1), ref), logits)
    for k in range(3):
        assert gradcheck(lambda x, k=k: L.kl_estimates(x, ref)[k], logits)
    assert gradcheck(lambda x: L.whiten(x, MASK), VALUES.clone().requires_grad_())


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_loss_brute_force_over_real_tokens(name):
    x, y, z = INPUTS[name]
    found = []
    for i, t in MASK.nonzero().tolist():
        a, b, c = x[i, t].item(), y[i, t].item(), z[i, t].item()
        if name.startswith("ppo"):
            low, high = (0.8, 1.2) if name == "ppo" else (0.9, 1.4)
            found.append(-min(math.exp(a - b) * c, min(max(math.exp(a - b), low), high) * c))
        else:
            near = min(max(a, b - 0.2), b + 0.2) if name == "value_clip" else a
            found.append(0.5 * max((a - c) ** 2, (near - c) ** 2))
    assert TOKEN_LOSSES[name](x, y, z, MASK).item() == pytest.approx(
        sum(found) / len(found), rel=1e-12
    )


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_token_micro_batches_sum_to_the_full_batch(name):
    x, y, z = INPUTS[name]
    full, parts = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss = TOKEN_LOSSES[name](full, y, z, MASK)
    loss.backward()
    total = 0.0
    for i in range(5):  # one row at a time, cut to its length: width 0 for the empty row
        row = (slice(i, i + 1), slice(0, LENGTHS[i]))
        part = TOKEN_LOSSES[name](parts[row], y[row], z[row], MASK[row], MASK.sum())
        part.backward()
        total += part.item()
    assert total == pytest.approx(loss.item(), rel=1e-12)
    assert torch.allclose(parts.grad, full.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["token", "response", "constant"])
def test_length_normalisers_brute_force_gradients_and_micro_batches(kind):
    total = L.length_normaliser(kind, MASK, 9)
    assert total.shape == (5, 1)

    def loss(new, rows=slice(None)):
        m = MASK[rows]
        policy = L.ppo_policy_loss(
            new[rows], OLD[rows], ADVANTAGES[rows], m, 0.1, total[rows], 0.4
        )[0]
        k3 = L.kl_estimates(new[rows], OLD[rows])[2]
        return policy + 0.3 * L.masked_mean(k3, m, total[rows])

    share = {
        "token": lambda n: 1 / sum(LENGTHS),
        "response": lambda n: 1 / n / 5,
        "constant": lambda n: 1 / (5 * 9),
    }[kind]
    found = 0.0
    for i, t in MASK.nonzero().tolist():
        d, a = (NEW[i, t] - OLD[i, t]).item(), ADVANTAGES[i, t].item()
        policy = -min(math.exp(d) * a, min(max(math.exp(d), 0.9), 1.4) * a)
        found += share(LENGTHS[i]) * (policy + 0.3 * (math.exp(-d) - 1 + d))
    assert loss(NEW).item() == pytest.approx(found, rel=1e-12)
    assert gradcheck(loss, NEW.clone().requires_grad_())
    parts = [loss(NEW, slice(i, i + 1)).item() for i in range(5)]
    assert sum(parts) == pytest.approx(found, rel=1e-12)


def test_length_normalisers_have_names():
    with pytest.raises(ValueError, match="unknown length normaliser 'words'"):
        L.length_normaliser("words", MASK, 9)


def test_ranking_micro_batches_sum_to_the_full_batch():
    total = L.untied_pairs(RANKS, PRESENT).any((1, 2)).sum()
    assert total == 4  # the third prompt is all ties
    parts = [
        L.ranking_loss(SCORES[i : i + 1], RANKS[i : i + 1], PRESENT[i : i + 1], total)[0].item()
        for i in range(5)
    ]
    assert sum(parts) == pytest.approx(L.ranking_loss(SCORES, RANKS, PRESENT)[0].item(), rel=1e-12)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_garbage_in_padding_changes_nothing(garbage):
    def dirty(x):
        return torch.where(MASK, x, garbage)

    for name, loss_fn in TOKEN_LOSSES.items():
        x, y, z = INPUTS[name]
        clean, soiled = x.clone().requires_grad_(), dirty(x).requires_grad_()
        expected, found = loss_fn(clean, y, z, MASK), loss_fn(soiled, dirty(y), dirty(z), MASK)
        expected.backward()
        found.backward()
        assert torch.equal(found, expected) and torch.equal(soiled.grad, clean.grad), name
        assert torch.equal(soiled.grad != 0, (soiled.grad != 0) & MASK)
    clean_stats = L.ppo_policy_loss(NEW, OLD, ADVANTAGES, MASK, 0.2)[1]
    stats = L.ppo_policy_loss(dirty(NEW), dirty(OLD), dirty(ADVANTAGES), MASK, 0.2)[1]
    assert all(torch.equal(stats[k], clean_stats[k]) for k in clean_stats)
    for function in (
        lambda f: L.gae(f(ADVANTAGES), f(VALUES), MASK, 0.9, 0.8)[0],
        lambda f: L.gae(f(ADVANTAGES), f(VALUES), MASK, 0.9, 0.8)[1],
        lambda f: L.token_rewards(rand(5), f(NEW), MASK, 0.1),
        lambda f: L.whiten(f(ADVANTAGES), MASK),
        lambda f: L.explained_variance(f(VALUES), f(RETURNS), MASK),
        lambda f: L.masked_sum(f(VALUES), MASK),
        lambda f: L.masked_mean(f(VALUES), MASK),
    ):
        assert torch.equal(function(dirty), function(lambda x: x))
    x = dirty(VALUES).requires_grad_()
    (L.whiten(x, MASK) * RETURNS).sum().backward()
    assert x.grad.isfinite().all()
    s, clean = (
        torch.where(PRESENT, SCORES, garbage).requires_grad_(),
        SCORES.clone().requires_grad_(),
    )
    found, expected = L.ranking_loss(s, RANKS, PRESENT)[0], L.ranking_loss(clean, RANKS, PRESENT)[0]
    found.backward()
    expected.backward()
    assert torch.equal(found, expected) and torch.equal(s.grad, clean.grad)


def test_nan_on_a_real_token_is_not_hidden():
    new = NEW.clone()
    new[0, 2] = math.nan
    assert L.ppo_policy_loss(new, OLD, ADVANTAGES, MASK, 0.2)[0].isnan()
    assert L.value_loss(new, OLD, ADVANTAGES, MASK, 0.2)[0].isnan()


@pytest.mark.parametrize("width", [0, 1, 4])
def test_a_batch_of_empty_responses_survives(width):
    x, mask = rand(2, width), length_mask([0, 0], width)
    for loss, stats in (L.ppo_policy_loss(x, x, x, mask, 0.2), L.value_loss(x, x, x, mask, 0.2)):
        assert loss == 0 and all(v.isfinite() for v in stats.values())
    results = [
        L.whiten(x, mask),
        L.explained_variance(x, x, mask),
        *L.gae(x, x, mask, 1, 1),
        L.token_rewards(rand(2), x, mask, 0.1),
    ]
    assert all((r == 0).all() for r in results)


def test_shapes_that_would_broadcast_are_refused():
    square = length_mask([3, 2, 1])
    with pytest.raises(
        ValueError, match="one number per response token"
    ):  # (B,) against (B, R) with B = R
        L.ppo_policy_loss(rand(3, 3), rand(3, 3), rand(3), square, 0.2)
    with pytest.raises(ValueError, match="one number per response token"):
        L.value_loss(rand(3, 1), rand(3, 3), rand(3, 3), square)
    with pytest.raises(ValueError, match="one score per response"):
        L.at_last_token(rand(3, 1), square)


# --- rewards, advantages, whitening


def test_token_rewards_sum_and_place():
    scores, kl = rand(5, seed=8), rand(5, 7, seed=9)
    placed = L.at_last_token(scores, MASK)
    for i, length in enumerate(LENGTHS):
        row = torch.zeros(7, dtype=torch.float64)
        if length:
            row[length - 1] = scores[i]
        assert torch.equal(placed[i], row)
    rewards = L.token_rewards(scores, kl, MASK, 0.3)
    assert (rewards[~MASK] == 0).all()
    for i, length in enumerate(LENGTHS):
        expected = scores[i].item() - 0.3 * kl[i, :length].sum().item() if length else 0.0
        assert rewards[i].sum().item() == pytest.approx(expected)


def test_gae_is_the_double_sum():
    for seed in range(5):
        lengths = torch.randint(0, 9, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
        mask, r, v = length_mask(lengths, 9), rand(6, 9, seed=seed), rand(6, 9, seed=seed + 50)
        gamma, lam = 0.93, 0.81
        advantages, returns = L.gae(r, v, mask, gamma, lam)
        for i, length in enumerate(lengths):
            for t in range(9):
                expected = sum(
                    (gamma * lam) ** k
                    * (
                        r[i, t + k]
                        - v[i, t + k]
                        + (gamma * v[i, t + k + 1] if t + k + 1 < length else 0)
                    )
                    for k in range(length - t)
                )
                assert float(advantages[i, t]) == pytest.approx(float(expected), abs=1e-12)
                assert float(returns[i, t]) == pytest.approx(
                    float(expected + v[i, t]) if t < length else 0, abs=1e-12
                )


def test_gae_with_gamma_and_lambda_1_is_return_minus_value():
    advantages, returns = L.gae(RETURNS, VALUES, MASK, 1.0, 1.0)
    to_go = torch.where(MASK, RETURNS, 0.0).flip(1).cumsum(1).flip(1)
    assert torch.allclose(returns, torch.where(MASK, to_go, 0.0))
    assert torch.allclose(advantages, torch.where(MASK, to_go - VALUES, 0.0))


def test_whiten():
    x = 3 * ADVANTAGES + 5
    white = L.whiten(x, MASK)
    assert white[MASK].mean().abs() < 1e-12 and white[MASK].var(correction=0).sub(1).abs() < 1e-7
    assert (white[~MASK] == 0).all()
    one = length_mask([0, 1], 3)
    assert (L.whiten(rand(2, 3), one) == 0).all()
    equal = torch.full((4, 3), 0.1)  # float32: the rounding of the mean must not be blown up to 1
    assert L.whiten(equal, length_mask([3, 3, 3, 2])).abs().max() < 1e-3


def test_explained_variance():
    assert L.explained_variance(RETURNS, RETURNS, MASK) == 1
    assert L.explained_variance(RETURNS + 4, RETURNS, MASK).item() == pytest.approx(
        1
    )  # blind to a constant offset
    assert L.explained_variance(torch.ones_like(RETURNS), RETURNS, MASK).abs() < 1e-12
    real, left = RETURNS[MASK], (RETURNS - VALUES)[MASK]
    assert L.explained_variance(VALUES, RETURNS, MASK).item() == pytest.approx(
        (1 - left.var() / real.var()).item()
    )
    assert L.explained_variance(VALUES, torch.ones_like(RETURNS), MASK) == 0


def test_group_advantages():
    r = rand(6, 5, seed=11, scale=3.0) + 2
    rloo = L.group_advantages(r, "rloo")
    for p, g in itertools.product(range(6), range(5)):
        others = [r[p, k].item() for k in range(5) if k != g]
        assert rloo[p, g].item() == pytest.approx(r[p, g].item() - sum(others) / 4)
    assert rloo.sum(1).abs().max() < 1e-12
    assert torch.allclose(L.group_advantages(r, "grpo", divide_by_std=False) * 5 / 4, rloo)
    grpo = L.group_advantages(r, "grpo")
    assert torch.allclose(grpo.mean(1), f64(0.0), atol=1e-12) and torch.allclose(
        grpo.std(1), f64(1.0), atol=1e-5
    )
    plain = L.group_advantages(r, "reinforce")
    assert torch.allclose(plain, r - r.mean()) and plain.sum(1).abs().max() > 0.1
    assert torch.allclose(L.group_advantages(r[:, :1], "reinforce"), r[:, :1] - r[:, :1].mean())


@pytest.mark.parametrize(("kind", "factor"), [("rloo", 1.0), ("grpo", 2 / 3)])
def test_group_advantages_are_unbiased(kind, factor):
    """Over all groups of 3 samples from 3 actions the mean gradient is that of E r.

    GRPO's without std is (G-1)/G of it.
    """
    logits, reward = f64([0.3, -0.5, 0.9]).requires_grad_(), f64([1.0, -2.0, 0.5])
    (exact,) = torch.autograd.grad(logits.softmax(0) @ reward, logits)
    found = torch.zeros(3, dtype=torch.float64)
    for group in itertools.product(range(3), repeat=3):
        logp = logits.log_softmax(0)[list(group)]
        advantages = L.group_advantages(reward[list(group)][None], kind, divide_by_std=False)[0]
        assert abs(advantages.sum()) < 1e-12
        surrogate, _ = L.ppo_policy_loss(
            logp[:, None], logp[:, None].detach(), advantages[:, None], torch.ones(3, 1).bool(), 0.2
        )
        found -= logp.sum().exp().detach() * torch.autograd.grad(surrogate, logits)[0]
    assert torch.allclose(found, factor * exact, atol=1e-12)


def test_k3_in_the_loss_pulls_towards_the_reference():
    """On the policy's own samples its mean gradient is exactly that of KL(reference || policy)."""
    logits, ref = f64([0.3, -0.5, 0.9]).requires_grad_(), f64([0.0, 1.0, -1.0]).log_softmax(0)
    logp = logits.log_softmax(0)
    (found,) = torch.autograd.grad(logp.exp().detach() @ L.kl_estimates(logp, ref)[2], logits)
    (exact,) = torch.autograd.grad(L.exact_kl(ref, logits.log_softmax(0)), logits)
    assert torch.allclose(found, exact, atol=1e-12)


def test_asymmetric_clip_lets_good_tokens_rise_further():
    mask = torch.ones(1, 1).bool()
    cases = ((1.0, 1.25, 0, -1.25), (1.0, 1.3, 0, 0), (-1.0, 1.25, 1.25, 1.25), (-1.0, 0.75, 0, 0))
    for advantage, ratio, symmetric, asymmetric in cases:
        for clip_high, expected in ((None, symmetric), (0.28, asymmetric)):
            new = torch.full((1, 1), math.log(ratio), dtype=torch.float64, requires_grad=True)
            L.ppo_policy_loss(
                new, torch.zeros_like(new), f64([[advantage]]), mask, 0.2, None, clip_high
            )[0].backward()
            assert new.grad.item() == pytest.approx(expected), (advantage, ratio, clip_high)


def test_ensembles_of_scores():
    scores = f64([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])  # three models, two responses
    assert torch.allclose(L.combine_scores(scores, "mean"), f64([2.0, 1.0]))
    assert torch.allclose(L.combine_scores(scores, "min"), f64([1.0, 0.0]))
    assert torch.allclose(L.combine_scores(scores, "uwo", 0.3), f64([2 - 0.3 * 2 / 3, 1 - 0.3 * 2]))
    assert torch.equal(L.combine_scores(scores[:1], "uwo", 9.0), scores[0])
    with pytest.raises(ValueError, match="unknown ensemble 'max'"):
        L.combine_scores(scores, "max")


def test_group_advantages_of_equal_rewards_and_lone_samples():
    for kind, std in itertools.product(("rloo", "grpo", "reinforce"), (True, False)):
        for value, samples in itertools.product(
            (0.1, 0.7, 1.3), (2, 3, 5, 7)
        ):  # some of these means round in float32
            assert (L.group_advantages(torch.full((2, samples), value), kind, std) == 0).all()
    assert (
        L.group_advantages(f64([[1.0, 1.0 + 1e-9]]), "grpo").abs().max() < 1e-2
    )  # no signal: not blown up
    for kind in ("rloo", "grpo"):
        with pytest.raises(ValueError, match="at least 2"):
            L.group_advantages(rand(4, 1), kind)
    with pytest.raises(ValueError, match="choose from rloo"):
        L.group_advantages(rand(4, 2), "ppo")


# --- KL


@pytest.mark.parametrize(
    "mean, biases, deviations",
    [(0.1, (0, 0.002, 0), (20.0, 1.42, 1.42)), (1.0, (0, 0.25, 0), (2.00, 1.73, 1.70))],
)
def test_kl_estimators_reproduce_schulmans_table(mean, biases, deviations):
    """x ~ N(0, 1) against N(mean, 1), by 4 million samples and by quadrature."""
    true = mean**2 / 2
    grid = torch.linspace(-12, 12, 20001, dtype=torch.float64)
    density = torch.softmax(-grid.square() / 2, 0)
    for x, weight, sampled in (
        (rand(4_000_000, seed=12), f64(1 / 4_000_000), True),
        (grid, density, False),
    ):
        estimates = L.kl_estimates(-x.square() / 2, -(x - mean).square() / 2)
        for k, bias, deviation in zip(estimates, biases, deviations):
            average = (weight * k).sum()
            spread = (weight * (k - average).square()).sum().sqrt() / true
            error = 4 * deviation / 2000 if sampled else 1e-3  # 4 standard errors of the mean
            assert average.item() / true - 1 == pytest.approx(bias, abs=error)
            assert spread.item() == pytest.approx(deviation, rel=0.02 if sampled else 0.004)
        assert estimates[2].min() >= 0 and estimates[1].min() >= 0


def test_kl_estimates_against_exact_kl_on_a_categorical():
    logp, ref = rand(6, seed=13).log_softmax(0), rand(6, seed=14).log_softmax(0)
    p = logp.exp()
    exact = L.exact_kl(logp, ref)
    assert exact.item() == pytest.approx(
        sum(a * math.log(a / b) for a, b in zip(p.tolist(), ref.exp().tolist()))
    )
    k1, k2, k3 = ((p * k).sum() for k in L.kl_estimates(logp, ref))
    assert torch.allclose(k1, exact) and torch.allclose(k3, exact) and (k2 - exact).abs() > 1e-3
    tokens = torch.multinomial(
        p, 400_000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    for k in (0, 2):
        samples = L.kl_estimates(logp[tokens], ref[tokens])[k]
        assert (samples.mean() - exact).abs() < 4 * samples.std() / 400_000**0.5


def test_k3_keeps_its_digits_near_zero():
    tiny = torch.full((1,), 1e-4, dtype=torch.float32)
    assert L.kl_estimates(tiny, torch.zeros(1))[2].item() == pytest.approx(5e-9, rel=0.02)


def test_exact_kl_with_impossible_tokens():
    logp = f64([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]).log()
    ref = f64([[0.25, 0.25, 0.5], [0.0, 0.5, 0.5]]).log()
    assert torch.allclose(L.exact_kl(logp, ref), f64([math.log(2), math.log(2)]))
    assert L.exact_kl(ref[:1], logp[:1]).item() == math.inf


def test_adaptive_kl_coefficient():
    assert L.adapt_kl_coef(0.1, 6.0, 6.0, 512) == pytest.approx(0.1)
    assert L.adapt_kl_coef(0.1, 6.6, 6.0, 1000) == pytest.approx(0.1 * 1.01)
    assert L.adapt_kl_coef(0.1, 60.0, 6.0, 1000) == pytest.approx(
        0.1 * 1.02
    )  # the error is clipped at 0.2
    assert L.adapt_kl_coef(0.1, -5.0, 6.0, 1000, horizon=5000) == pytest.approx(0.1 * 0.96)
    assert L.adapt_kl_coef(0.1, 0.0, 6.0, 10**6) == pytest.approx(0.08)  # never below 0
    assert isinstance(L.adapt_kl_coef(0.1, torch.tensor(6.0), 6.0, 512), float)


# --- PPO


def test_ppo_statistics():
    old = torch.zeros(2, 3, dtype=torch.float64)
    new = f64([[0.5, -0.5, 0.1], [0.5, -0.5, 9.0]])
    advantages = f64([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    mask = length_mask([3, 2])
    _, stats = L.ppo_policy_loss(new, old, advantages, mask, 0.2)
    ratios = [math.exp(x) for x in (0.5, -0.5, 0.1, 0.5, -0.5)]
    assert stats["ratio_mean"].item() == pytest.approx(sum(ratios) / 5)
    assert stats["log_ratio_square"].item() == pytest.approx((4 * 0.25 + 0.01) / 5)
    assert stats["clip_fraction"].item() == pytest.approx(
        2 / 5
    )  # up with A > 0 and down with A < 0 are cut
    assert stats["approx_kl"].item() == pytest.approx(sum(r - 1 - math.log(r) for r in ratios) / 5)
    same = L.ppo_policy_loss(new, new, advantages, mask, 0.2)[1]
    assert [
        same[k].item() for k in ("ratio_mean", "log_ratio_square", "clip_fraction", "approx_kl")
    ] == [1, 0, 0, 0]


def test_ppo_advantage_per_response_and_no_gradient_to_constants():
    per_row = rand(5, 1, seed=15).requires_grad_()
    new, old = NEW.clone().requires_grad_(), OLD.clone().requires_grad_()
    loss, stats = L.ppo_policy_loss(new, old, per_row, MASK, 0.2)
    assert torch.equal(
        loss, L.ppo_policy_loss(NEW, OLD, per_row.detach().repeat(1, 7), MASK, 0.2)[0]
    )
    loss.backward()
    assert new.grad.abs().sum() > 0 and old.grad is None and per_row.grad is None
    assert not any(s.requires_grad for s in stats.values())


def test_extreme_log_ratios_stay_finite():
    new = torch.tensor([[800.0, -800.0, 300.0, -300.0, 0.1]]).requires_grad_()
    for sign in (1.0, -1.0):
        loss, stats = L.ppo_policy_loss(
            new, torch.zeros(1, 5), sign * torch.ones(1, 5), length_mask([5]), 0.2
        )
        new.grad = None
        loss.backward()
        assert loss.isfinite() and new.grad.isfinite().all() and new.grad[0, 4] != 0
        assert all(s.isfinite() for s in stats.values())
    found = L.dpo_loss(
        torch.tensor([500.0]), torch.tensor([-500.0]), torch.zeros(1), torch.zeros(1), 1.0, 0.1
    )[0]
    assert found.item() == pytest.approx(100, rel=1e-5)


def test_value_loss_by_hand():
    values, old, returns = f64([[1.0, 1.0, 0.0]]), f64([[0.0, 0.9, 0.0]]), f64([[2.0, 0.0, 0.0]])
    mask = length_mask([2], 3)
    loss, stats = L.value_loss(values, old, returns, mask, clip=0.2)
    assert loss.item() == pytest.approx(0.5 * ((0.2 - 2) ** 2 + 1) / 2)
    assert stats["value_clip_fraction"] == 0.5
    loss, stats = L.value_loss(values, old, returns, mask)
    assert loss.item() == pytest.approx(0.5 * (1 + 1) / 2) and stats["value_clip_fraction"] == 0


# --- rankings


def test_ranking_loss_brute_force_with_ties_and_ragged_k():
    prompts, margins = [], []
    for b in range(5):
        pairs = [
            (i, j)
            for i, j in itertools.permutations(range(4), 2)
            if PRESENT[b, i] and PRESENT[b, j] and RANKS[b, i] < RANKS[b, j]
        ]
        differences = [(SCORES[b, i] - SCORES[b, j]).item() for i, j in pairs]
        margins += differences
        if pairs:
            prompts.append(sum(math.log(1 + math.exp(-d)) for d in differences) / len(pairs))
    assert len(margins) == 6 + 5 + 0 + 3 + 2
    loss, stats = L.ranking_loss(SCORES, RANKS, PRESENT)
    assert loss.item() == pytest.approx(sum(prompts) / 4)
    assert stats["pairs"] == len(margins) and stats["margin"].item() == pytest.approx(
        sum(margins) / len(margins)
    )
    assert stats["accuracy"].item() == pytest.approx(sum(d > 0 for d in margins) / len(margins))
    total = L.ranking_loss(SCORES, RANKS, PRESENT, divisor=10)[0]
    assert total.item() == pytest.approx(sum(prompts) / 10)


def test_ranking_loss_of_a_fresh_model_is_ln_2_and_of_pure_ties_is_0():
    scores = torch.zeros(5, 4).double().requires_grad_()
    loss, stats = L.ranking_loss(scores, RANKS)
    assert loss.item() == pytest.approx(math.log(2)) and stats["accuracy"] == 0.5
    loss.backward()
    assert scores.grad[0, 0] < 0 < scores.grad[0, 3] and (scores.grad[2] == 0).all()
    loss, stats = L.ranking_loss(scores, torch.ones(5, 4))
    loss.backward()
    assert loss == 0 and stats["pairs"] == 0 and stats["accuracy"].isfinite()


def test_ranking_loss_with_two_responses_is_the_pair_loss():
    scores = f64([[2.0, -1.0], [0.5, 0.7]])
    loss, _ = L.ranking_loss(scores, torch.tensor([[1, 2], [2, 1]]))
    assert loss.item() == pytest.approx(
        (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-0.2))) / 2
    )


# --- DPO and relatives: a policy over two actions, action 0 always chosen, uniform reference


def descend(beta, steps, lr, **options):
    """Gradient descent on the logit; returns h, the log-ratio difference, at each step."""
    logit, half, path = f64([0.0]).requires_grad_(), f64([math.log(0.5)]), []
    for _ in range(steps):
        chosen, rejected = (
            torch.nn.functional.logsigmoid(logit),
            torch.nn.functional.logsigmoid(-logit),
        )
        loss = L.dpo_loss(chosen, rejected, half, half, beta, **options)[0].sum()
        (gradient,) = torch.autograd.grad(loss, logit)
        logit = (logit - lr * gradient).detach().requires_grad_()
        path.append(logit.item())
    return path


def test_ipo_and_cdpo_have_finite_optima_and_dpo_none():
    beta, epsilon = 0.5, 0.1
    finite = math.log((1 - epsilon) / epsilon) / beta
    assert descend(beta, 500, 10.0, label_smoothing=epsilon)[-1] == pytest.approx(finite, rel=1e-6)
    assert descend(beta, 500, 0.1, kind="ipo")[-1] == pytest.approx(1 / (2 * beta), rel=1e-6)
    path = descend(beta, 1000, 10.0)
    assert all(later > earlier for earlier, later in itertools.pairwise(path))
    assert (
        path[-1] > 2 * finite and path[-1] - path[499] > 1
    )  # like log(steps) / beta: doubling adds ln 2 / beta


def test_dpo_refuses_what_it_does_not_know():
    x = rand(2)
    for options in ({"kind": "ipo", "label_smoothing": 0.1}, {"kind": "hinge"}):
        with pytest.raises(ValueError, match="choose sigmoid"):
            L.dpo_loss(x, x, x, x, 0.1, **options)


# --- optimum of KL-penalised RL, best-of-n


def test_sampled_optimum_against_the_exact_one():
    counts, rewards, beta = torch.tensor([7, 5, 4, 3, 1]), f64([0.0, 1.0, -0.5, 2.0, 3.0]), 0.8
    p = counts / 20
    tilted = p * (rewards / beta).exp()
    best = tilted / tilted.sum()
    exact_reward, exact_kl = (best * rewards).sum(), (best * (best / p).log()).sum()
    everything = rewards.repeat_interleave(counts)[
        None
    ]  # 20 "samples" with exactly the reference's frequencies
    reward, kl, _ = L.sampled_optimum(everything, beta)
    assert torch.allclose(reward, exact_reward) and torch.allclose(kl, exact_kl)
    assert torch.allclose(kl, reward / beta - (rewards.div(beta).exp() * p).sum().log())
    draws = torch.multinomial(
        p, 200_000, replacement=True, generator=torch.Generator().manual_seed(1)
    )
    reward, kl, size = L.sampled_optimum(rewards[draws].reshape(2, -1), beta)
    assert (
        (reward - exact_reward).abs().max() < 0.02
        and (kl - exact_kl).abs().max() < 0.02
        and (size > 50).all()
    )
    for other in (0.5, 0.9, 1.0):  # no other policy does better under reward - beta * KL
        mix = other * p + (1 - other) * best
        penalised = (mix * rewards).sum() - beta * (mix * (mix / p).log()).sum()
        assert penalised < exact_reward - beta * exact_kl


def test_sampled_optimum_limits():
    reward, kl, size = L.sampled_optimum(torch.full((1, 64), 2.0).double(), 0.1)
    assert (
        reward.item() == pytest.approx(2) and kl.abs() < 1e-12 and size.item() == pytest.approx(64)
    )
    winner = torch.zeros(1, 64).double()
    winner[0, 5] = 1000
    reward, kl, size = L.sampled_optimum(winner, 0.1)
    assert (reward.item(), kl.item(), size.item()) == pytest.approx((1000, math.log(64), 1))


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_best_of_n_is_the_mean_over_all_subsets(n):
    proxy, scores = rand(2, 7, seed=16), rand(2, 7, seed=17)
    found = L.best_of_n(proxy, scores, n)
    for p in range(2):
        subsets = [
            scores[p, max(s, key=lambda i: proxy[p, i].item())].item()
            for s in itertools.combinations(range(7), n)
        ]
        assert found[p].item() == pytest.approx(sum(subsets) / len(subsets))
    assert torch.equal(L.best_of_n(proxy[0], scores[0], n), found[0])


def test_best_of_n_refuses_more_than_there_are():
    for n in (0, 8):
        with pytest.raises(ValueError, match="1 <= n <= N"):
            L.best_of_n(rand(7), rand(7), n)
    assert math.isfinite(L.best_of_n(rand(2000), rand(2000), 500).item())


def test_best_of_n_kl_bound_is_above_the_exact_kl():
    for n in (1, 2, 8, 64):
        p = [
            ((i + 1) / 10) ** n - (i / 10) ** n for i in range(10)
        ]  # 10 equally likely responses of distinct score
        exact = sum(x * math.log(10 * x) for x in p if x > 0)
        assert exact <= L.best_of_n_kl_bound(n) + 1e-12
    assert exact == pytest.approx(2.29, abs=0.005) and L.best_of_n_kl_bound(64) == pytest.approx(
        3.175, abs=5e-4
    )
    fine = (
        torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    )  # many responses: the bound is nearly reached
    p = fine**8 - (fine - 1e-5) ** 8
    exact = L.exact_kl(p.log(), torch.full_like(p, math.log(1e-5))).item()
    assert exact == pytest.approx(L.best_of_n_kl_bound(8), abs=1e-4)


# --- DPO's relatives


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_simpo_by_hand():
    loss, chosen, rejected = L.simpo_loss(
        f64([-4.0]), f64([-9.0]), f64([2.0]), f64([3.0]), beta=2.0, margin=0.5
    )
    assert (chosen.item(), rejected.item()) == (-4.0, -6.0)
    assert loss.item() == pytest.approx(-math.log(sigmoid(-4 + 6 - 0.5)))


def test_orpo_by_hand():
    p, q = 0.5, 0.2  # per token, geometric means over 2 and 3 tokens
    loss, chosen, rejected = L.orpo_loss(
        f64([2 * math.log(p)]), f64([3 * math.log(q)]), f64([2.0]), f64([3.0]), beta=0.3
    )
    odds, other = p / (1 - p), q / (1 - q)
    assert chosen.item() == pytest.approx(
        math.log(odds), abs=1e-12
    ) and rejected.item() == pytest.approx(math.log(other))
    assert loss.item() == pytest.approx(
        -math.log(p) - 0.3 * math.log(sigmoid(math.log(odds / other)))
    )


def test_orpo_survives_a_certain_response():
    x = torch.zeros(1, requires_grad=True)
    loss, *_ = L.orpo_loss(x, torch.tensor([-5.0]), torch.ones(1), torch.ones(1), 0.1)
    loss.sum().backward()
    assert loss.isfinite().all() and x.grad.isfinite().all()


def test_kto_by_hand():
    policy, ref, good = (
        f64([-3.0, -3.0, -8.0]),
        f64([-5.0, -5.0, -6.0]),
        torch.tensor([True, False, False]),
    )
    loss, reward = L.kto_loss(policy, ref, good, 1.5, beta=0.4, bad_weight=2.0)
    assert torch.allclose(reward, f64([0.8, 0.8, -0.8]))
    assert torch.allclose(
        loss,
        f64([1 - sigmoid(0.2), 2 * (1 - sigmoid(-0.2)), 2 * (1 - sigmoid(1.4))]),
    )
    start, _ = L.kto_loss(ref, ref, good, 0.0, beta=0.4)
    assert torch.equal(start, torch.full((3,), 0.5, dtype=torch.float64))


LOGPS = (-4 - rand(6, seed=1).abs(), -4 - rand(6, seed=2).abs())
REFS = (rand(6, seed=3), rand(6, seed=4))
PAIR_LENGTHS = (torch.arange(1, 7).double(), torch.arange(6, 0, -1).double())
PAIR_LOSSES = {
    "sigmoid": lambda c, r: L.dpo_loss(c, r, *REFS, 0.7)[0],
    "conservative": lambda c, r: L.dpo_loss(c, r, *REFS, 0.7, 0.2)[0],
    "ipo": lambda c, r: L.dpo_loss(c, r, *REFS, 0.7, 0.0, "ipo")[0],
    "simpo": lambda c, r: L.simpo_loss(c, r, *PAIR_LENGTHS, 2.0, 0.5)[0],
    "orpo": lambda c, r: L.orpo_loss(c, r, *PAIR_LENGTHS, 0.3)[0],
    "kto": lambda c, r: L.kto_loss(
        torch.cat([c, r]), torch.cat(REFS), torch.arange(12) < 6, 0.3, 0.7, 1.3
    )[0],
}


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_gradients_are_finite_differences(name):
    assert gradcheck(PAIR_LOSSES[name], [x.clone().requires_grad_() for x in LOGPS])


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_a_better_chosen_or_a_worse_rejected_response_lowers_the_loss(name):
    chosen, rejected = (x.clone().requires_grad_() for x in LOGPS)
    PAIR_LOSSES[name](chosen, rejected).sum().backward()
    if name in (
        "sigmoid",
        "simpo",
        "orpo",
        "kto",
    ):  # the others have finite optima, beyond which they pull back
        assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
    else:
        assert torch.allclose(chosen.grad, -rejected.grad)


def test_dpo_gradient_weighs_pairs_by_how_wrong_the_reward_is():
    """Rafailov 2023, section 4: beta * sigmoid(reward_rejected - reward_chosen)."""
    (pc, pr), (rc, rr), beta = [x.clone().requires_grad_() for x in LOGPS], REFS, 0.7
    loss, chosen, rejected = L.dpo_loss(pc, pr, rc, rr, beta)
    loss.sum().backward()
    assert torch.allclose(pc.grad, -beta * torch.sigmoid(rejected - chosen)) and torch.allclose(
        pr.grad, -pc.grad
    )


def test_what_both_sides_share_cancels():
    (pc, pr), (rc, rr), shared = LOGPS, REFS, rand(6, seed=9)
    for kind in ("sigmoid", "ipo"):
        plain, *_ = L.dpo_loss(pc, pr, rc, rr, 0.7, kind=kind)
        assert torch.allclose(
            L.dpo_loss(pc + shared, pr + shared, rc, rr, 0.7, kind=kind)[0], plain
        )
        assert torch.allclose(
            L.dpo_loss(pc, pr, rc - shared, rr - shared, 0.7, kind=kind)[0], plain
        )


def test_dpo_on_bradley_terry_preferences_ends_at_the_optimum_of_kl_penalised_rl():
    """The expected loss has zero gradient at reference * exp(r / beta) / Z (eq. 4), only there."""
    rewards, ref, beta = rand(5, seed=1), rand(5, seed=2).log_softmax(0), 0.4
    optimum = (ref + rewards / beta).log_softmax(0)
    i, j = torch.tensor(list(itertools.permutations(range(5), 2))).T
    for start, at_rest in ((optimum, True), (ref, False)):
        logits = start.clone().requires_grad_()
        p = logits.log_softmax(0)
        (
            L.dpo_loss(p[i], p[j], ref[i], ref[j], beta)[0] * torch.sigmoid(rewards[i] - rewards[j])
        ).sum().backward()
        assert (logits.grad.abs().max() < 1e-12) == at_rest


def test_ipo_stops_at_its_margin_and_starts_at_its_square():
    pc, margin = f64([0.0, 1 / 0.2]).requires_grad_(), 1 / 0.2  # h = 0 and h = 1 / (2 beta)
    loss, *_ = L.dpo_loss(pc, f64([0, 0]), f64([0, 0]), f64([0, 0]), 0.1, kind="ipo")
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([margin**2, 0]) and pc.grad.tolist() == pytest.approx(
        [-2 * margin, 0]
    )


def test_a_missing_reward_is_left_out_of_its_group():
    nan = math.nan
    rewards = torch.tensor([[1.0, nan, 4.0, 1.0], [nan, 2.0, nan, nan]])
    for kind in ("rloo", "grpo"):
        advantages = L.group_advantages(rewards, kind)
        alone = L.group_advantages(torch.tensor([[1.0, 4.0, 1.0]]), kind)
        assert advantages[0, [0, 2, 3]].tolist() == pytest.approx(alone[0].tolist())
        assert advantages[0, 1] == 0 and (advantages[1] == 0).all()
    advantages = L.group_advantages(rewards, "reinforce")
    assert advantages[1, 1] == 0 and advantages[0, 2] == 2  # the mean of all is 2
