"""Muon: the orthogonalisation against an SVD, a step by hand, AdamW elsewhere; the schedules."""

import copy

import pytest
import torch

from minirlhf.optim import Muon, cosine_decay, linear_decay, orthogonalise


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_orthogonalise_keeps_directions_and_evens_out_sizes(shape):
    G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    X = orthogonalise(G)
    sizes = U.T @ X @ Vh.T  # diagonal if X has G's singular vectors
    assert (sizes - sizes.diag().diag()).abs().max() < 1e-4
    assert sizes.diag().min() > 0.6 and sizes.diag().max() < 1.3 and S.max() / S.min() > 2
    torch.testing.assert_close(orthogonalise(1000 * G), X, atol=1e-4, rtol=1e-4)


def test_a_step_by_hand():
    p = torch.nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(1)))
    group = {"params": [p], "orthogonal": True, "weight_decay": 0.1}
    optimizer, momentum = Muon([group], lr=0.02, betas=(0.9, 0.95)), torch.zeros(6, 4)
    for seed in range(3):
        before, grad = (
            p.detach().clone(),
            torch.randn(6, 4, generator=torch.Generator().manual_seed(9 + seed)),
        )
        p.grad = grad.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * grad
        step = orthogonalise(0.05 * grad + 0.95 * momentum)
        torch.testing.assert_close(
            p.detach(), before * (1 - 0.02 * 0.1) - 0.02 * 0.2 * 6**0.5 * step
        )


def test_the_other_groups_are_adamw():
    a = torch.nn.Parameter(torch.randn(7, generator=torch.Generator().manual_seed(2)))
    b = copy.deepcopy(a)
    ours = Muon(
        [{"params": [a], "orthogonal": False}], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1
    )
    theirs = torch.optim.AdamW([b], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for seed in range(4):
        a.grad = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(a, b)


def test_schedules_rise_fall_and_end():
    for decay, last in ((linear_decay, 1 / 90), (cosine_decay, 0.1)):
        factors = [decay(step, 100, warmup=10) for step in range(100)]
        assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
        assert factors[10] == 1 and factors[-1] == pytest.approx(last, abs=1e-3)
        assert factors[10:] == sorted(factors[10:], reverse=True)
    assert linear_decay(0, 1) == cosine_decay(0, 1) == 1


def test_at_most_half_of_a_short_run_is_warm_up():
    for decay in (linear_decay, cosine_decay):
        factors = [decay(step, 6, warmup=10) for step in range(6)]
        assert factors[:4] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1, 1]
        assert factors[3:] == sorted(factors[3:], reverse=True) and factors[-1] < 0.5
