"""Deep embedded clustering against loops, scipy and autograd; errata D1 to D4."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from scipy.stats import t as student

from latentspace.dec import (
    ClusterStatistics,
    clustering_gradients,
    clustering_loss,
    log_assignment,
    member_surprise,
    soft_assignment,
    soft_frequency,
    target_distribution,
    total_surprise,
)


def points(n=17, d=3, k=4, seed=0):
    """Points and centres with unequal spreads, far from the origin."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d)) * (1 + np.arange(d)) + [5, -3, 20][:d]
    m = rng.normal(size=(k, d)) * 2 + [5, -3, 20][:d]
    return torch.tensor(z), torch.tensor(m)


def lopsided(seed=0, sizes=(900, 90, 10)):
    """Assignments of points of clusters of very unequal size around their true centres."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    label = np.repeat(np.arange(3), sizes)
    z = torch.tensor(centres[label] + rng.normal(size=(len(label), 2)))
    return soft_assignment(z, torch.tensor(centres)), label


# --- assignments ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_assignment_is_the_ratio_of_student_densities(alpha):
    """In one dimension the kernel is scipy's t density up to a constant, with its scale at 1."""
    z, m = points(d=1)
    density = student(alpha).pdf(z.numpy() - m.numpy().T)
    expected = density / density.sum(1, keepdims=True)
    np.testing.assert_allclose(soft_assignment(z, m, alpha), expected, rtol=1e-10)


def test_assignment_pair_by_pair():
    z, m = points()
    for i in range(len(z)):
        kernel = [1 / (1 + sum((z[i, a] - c[a]) ** 2 for a in range(3))) for c in m]
        np.testing.assert_allclose(
            soft_assignment(z, m)[i], [float(v / sum(kernel)) for v in kernel], rtol=1e-9
        )


def test_assignment_keeps_its_digits_far_from_the_origin():
    z, m = points()
    near = soft_assignment(z, m)
    far = soft_assignment((z + 1e4).float(), (m + 1e4).float())
    np.testing.assert_allclose(far, near, atol=2e-3)  # float32 has 1e-3 at 1e4


def test_gradient_on_a_centre_is_finite():
    m = torch.zeros(2, 2, dtype=torch.float64)
    m[1] = 3
    z = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    soft_assignment(z, m)[0, 0].backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("z", "m", "alpha"),
    [(torch.ones(3, 2), torch.ones(2, 3), 1), (torch.ones(3), torch.ones(2, 3), 1),
     (torch.ones(3, 2), torch.ones(2, 2), 0)],
)  # fmt: skip
def test_assignment_refuses(z, m, alpha):
    with pytest.raises(ValueError, match="are not|positive"):
        soft_assignment(z, m, alpha)


# --- targets --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_target_rows_sum_to_one_and_sharpen(seed, k):
    z, m = points(k=k, seed=seed)
    q = soft_assignment(z, m)
    p = target_distribution(q, torch.full((k,), 2.7, dtype=q.dtype))
    torch.testing.assert_close(p.sum(1), torch.ones(len(z), dtype=q.dtype))
    assert (p.max(1).values >= q.max(1).values - 1e-12).all()  # equal weights only sharpen


def test_target_by_hand():
    q = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], dtype=torch.float64)
    u = [1.5, 1.5]
    expected = [[a**2 / u[0], b**2 / u[1]] for a, b in q.tolist()]
    expected = [[a / (a + b), b / (a + b)] for a, b in expected]
    np.testing.assert_allclose(target_distribution(q), expected)
    skew = target_distribution(q, torch.tensor([3.0, 1.0], dtype=torch.float64))
    shares = np.array([0.64 / 3, 0.04 / 1])
    np.testing.assert_allclose(skew[0], shares / shares.sum())


@pytest.mark.parametrize("weight", [[1.0, 0.0], [1.0, math.nan], [1.0]])
def test_target_refuses(weight):
    with pytest.raises(ValueError, match="positive numbers"):
        target_distribution(torch.full((3, 2), 0.5), torch.tensor(weight))


def loop_surprise(q, gamma, members_only):
    n, k = q.shape
    label = q.argmax(1)
    v = np.zeros(k)
    for j in range(k):
        own = [i for i in range(n) if label[i] == j]
        for i in own if members_only else range(n):
            ratio = n / max(len(own), 1)
            v[j] += math.sqrt(-ratio * (1 - q[i, j]) ** gamma * math.log(q[i, j]))
    return v


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_surprise_pair_by_pair(gamma):
    q = soft_assignment(*points(40, seed=5))
    expected = [loop_surprise(q.numpy(), gamma, only) for only in (True, False)]
    np.testing.assert_allclose(member_surprise(q, gamma), expected[0], rtol=1e-9)
    np.testing.assert_allclose(total_surprise(q, gamma), expected[1], rtol=1e-9)


def test_surprise_of_certain_points_and_empty_clusters():
    q = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.2, 0.1]], dtype=torch.float64)
    assert member_surprise(q)[1:].tolist() == [0, 0]
    assert torch.isfinite(total_surprise(q)).all()
    assert member_surprise(q)[0] == pytest.approx(math.sqrt(-0.09 * math.log(0.7)))


class TestD1:
    """Eq. (4) divides by u + v above and by v below."""

    def test_printed_rows_do_not_sum_to_one(self):
        q, _ = lopsided()
        u, v = soft_frequency(q), member_surprise(q)
        printed = (q**2 / (u + v)) / (q**2 / v).sum(1, keepdim=True)
        assert (printed.sum(1) < 0.999).all()
        divergence = (printed * (printed / q).log()).sum(1).mean()
        assert divergence < 0  # no divergence is negative
        corrected = target_distribution(q, u + v)
        np.testing.assert_allclose(corrected.sum(1), 1)
        assert np.mean([entropy(p, r) for p, r in zip(corrected, q, strict=True)]) > 0


class TestD2:
    """Eq. (5) takes the root of ln q, and j is free and summed at once."""

    def test_printed_root_is_nan(self):
        q, _ = lopsided()
        size = q.argmax(1).bincount().double()
        inside = size.sum() / size * (1 - q) ** 2 * q.log()
        assert (inside <= 0).all()
        assert inside.sqrt().isnan().all()
        assert torch.isfinite(total_surprise(q)).all()


class TestD3:
    """Summed over all points the weight works against minorities; DEC's does not, nor members'."""

    @pytest.mark.parametrize("seed", range(5))
    def test_who_is_lifted(self, seed):
        q, _ = lopsided(seed)
        u = soft_frequency(q)

        def lift(weight):
            return (weight[0] / weight).tolist()  # 1/w of each cluster over that of the largest

        assert lift(u)[2] > 4
        assert max(lift(u + total_surprise(q))[1:]) < 0.5
        assert lift(u + member_surprise(q))[2] > 4


class TestD4:
    """Eq. (7) and (8): the index, and what they need of p."""

    @pytest.mark.parametrize("alpha", [1.0, 3.0])
    @pytest.mark.parametrize("proper", [True, False])
    def test_against_autograd(self, alpha, proper):
        z, m = points(seed=2)
        p = target_distribution(soft_assignment(z, m, alpha))
        if not proper:
            p = p * torch.linspace(0.3, 1.7, len(p), dtype=p.dtype)[:, None]
        z.requires_grad_(), m.requires_grad_()
        (clustering_loss(p, z, m, alpha) * len(z)).backward()
        by_hand = clustering_gradients(z.detach(), m.detach(), p, alpha)
        torch.testing.assert_close(by_hand[0], z.grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(by_hand[1], m.grad, rtol=1e-9, atol=1e-12)

    def test_printed_form_fails_for_rows_that_do_not_sum_to_one(self):
        z, m = points(seed=2)
        q = soft_assignment(z, m)
        p = 0.6 * target_distribution(q)
        kernel = 1 / (1 + torch.cdist(z, m) ** 2)
        printed = 2 * ((kernel * (p - q))[..., None] * (z[:, None] - m)).sum(1)
        assert (printed - clustering_gradients(z, m, p)[0]).abs().max() > 0.05


def test_loss_is_the_mean_divergence():
    z, m = points(seed=4)
    q = soft_assignment(z, m).numpy()
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=len(q))
    p[0] = [0, 0, 1, 0]
    expected = np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    assert float(clustering_loss(torch.tensor(p), z, m)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="q is"):
        clustering_loss(torch.tensor(p[:, :3]), z, m)


def test_log_assignment_is_finite_where_the_assignment_vanishes():
    z = torch.tensor([[0.0], [1e15]], dtype=torch.float32)
    log_q = log_assignment(z, torch.tensor([[0.0], [1.0]]))
    assert torch.isfinite(log_q).all()


# --- statistics pooling ---------------------------------------------------------------------------


def test_pooled_statistics_settle_on_those_of_the_clusters():
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1, 2], [70, 20, 10])
    h = rng.normal(size=(100, 2)) * np.array([1, 3, 0.5])[label, None]
    h += np.array([[0, 5], [7, -2], [1, 1]])[label]
    pooling = ClusterStatistics(4, 2)
    h, label = torch.tensor(h, dtype=torch.float32), torch.tensor(label)
    for _ in range(300):
        out = pooling(h, label)
    for j, size in enumerate((70, 20, 10)):
        rows = h[label == j]
        np.testing.assert_allclose(pooling.mean[j], rows.mean(0), atol=1e-4)
        np.testing.assert_allclose(pooling.variance[j], rows.var(0, correction=0), atol=1e-3)
        assert float(pooling.share[j]) == pytest.approx((size + 1) / 104, abs=1e-4)
    assert out.shape == (100, 7)
    assert torch.equal(out[:, :2], h)
    assert (pooling.variance[3] == 1).all()  # a cluster that never occurs keeps its start
    np.testing.assert_allclose(out[95, 3:5], pooling.mean[2])


def test_pooled_statistics_rest_in_evaluation_and_carry_no_gradient():
    pooling = ClusterStatistics(2, 3)
    h = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    label = torch.tensor([0, 1] * 4)
    pooling(h, label)
    before = [b.clone() for b in pooling.buffers()]
    out = pooling.eval()(h, label)
    assert all(torch.equal(a, b) for a, b in zip(before, pooling.buffers(), strict=True))
    (gradient,) = torch.autograd.grad(out.sum(), h)
    assert torch.equal(gradient, torch.ones_like(h))


def test_pooled_statistics_refuse():
    with pytest.raises(ValueError, match="momentum"):
        ClusterStatistics(2, 3, 0)
    with pytest.raises(ValueError, match="do not fit"):
        ClusterStatistics(2, 3)(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
