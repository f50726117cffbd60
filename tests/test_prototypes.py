"""Codes and losses against linear programming, a convex solver and plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize

from latentspace.prototypes import (
    Prototypes,
    Queue,
    nt_xent,
    sinkhorn,
    swapped_prediction,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cosines(n, k, d=5, seed=0, dtype=torch.float64):
    """Similarities of random unit vectors, all pulled to one side: columns of unequal size."""
    z, c = (
        torch.randn(m, d, generator=seeded(seed + i), dtype=dtype) for i, m in enumerate((n, k))
    )
    z[:, 0] += 1.5
    return F.normalize(z, dim=1) @ F.normalize(c, dim=1).T


def linear_programme(scores):
    """The transport plan without entropy (n, K): row sums 1/n, column sums 1/K."""
    n, k = scores.shape
    rows = np.kron(np.eye(n), np.ones(k))
    columns = np.kron(np.ones(n), np.eye(k))
    margins = np.r_[np.full(n, 1 / n), np.full(k, 1 / k)]
    done = linprog(-scores.ravel(), A_eq=np.r_[rows, columns], b_eq=margins)
    assert done.success
    return done.x.reshape(n, k)


def entropic_plan(scores, epsilon):
    """Maximise <Q, S> + eps H(Q) through its smooth dual, by L-BFGS."""
    n, k = scores.shape

    def plan(x):
        return np.exp((scores + x[:n, None] + x[None, n:]) / epsilon - 1)

    def dual(x):
        q = plan(x)
        value = epsilon * q.sum() - x[:n].sum() / n - x[n:].sum() / k
        return value, np.r_[q.sum(1) - 1 / n, q.sum(0) - 1 / k]

    done = minimize(dual, np.zeros(n + k), jac=True, method="L-BFGS-B",
                    options={"maxiter": 20_000, "ftol": 1e-16, "gtol": 1e-11})  # fmt: skip
    return plan(done.x)


def entropy(q):
    return -np.sum(q * np.log(np.maximum(q, 1e-300)))


# --- sinkhorn -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(7, 3), (4, 6), (9, 9)])
def test_small_epsilon_solves_the_linear_programme(n, k):
    scores = cosines(n, k, seed=n)
    plan = sinkhorn(scores, 1e-3, 5_000).numpy() / n
    best = linear_programme(scores.numpy())
    np.testing.assert_allclose(plan, best, atol=2e-4)  # epsilon and rest of the iteration
    assert (plan * scores.numpy()).sum() == pytest.approx((best * scores.numpy()).sum(), abs=1e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 5.0])
def test_finite_epsilon_solves_the_entropic_problem(epsilon):
    scores = cosines(8, 5)
    plan = sinkhorn(scores, epsilon, 2_000).numpy() / 8
    np.testing.assert_allclose(plan, entropic_plan(scores.numpy(), epsilon), atol=1e-7)


def test_L4_the_scores_are_minus_the_cost():
    """The plan for the cost printed beside C'Z, with the sign forgotten, is worse than uniform."""
    scores = cosines(6, 4).numpy()
    right = sinkhorn(torch.tensor(scores), 0.05, 500).numpy() / 6
    wrong = sinkhorn(torch.tensor(-scores), 0.05, 500).numpy() / 6
    value = lambda q: (q * scores).sum() + 0.05 * entropy(q)  # noqa: E731
    assert value(wrong) < value(np.full((6, 4), 1 / 24)) < value(right)
    rng = np.random.default_rng(0)
    for _ in range(300):  # feasible neighbours: a move along a 2 x 2 minor keeps all margins
        (a, b), (i, j) = rng.choice(6, 2, False), rng.choice(4, 2, False)
        room = min(right[a, j], right[b, i]) * rng.uniform(0, 1)
        moved = right.copy()
        moved[[a, b], [i, j]] += room
        moved[[a, b], [j, i]] -= room
        assert value(moved) <= value(right) + 1e-12


def test_L3_the_problem_is_convex():
    """A mixture of feasible plans is feasible and at least as good as the mean of their values."""
    rng = np.random.default_rng(1)
    scores = cosines(5, 3).numpy()
    value = lambda q: (q * scores).sum() + 0.1 * entropy(q)  # noqa: E731
    for _ in range(60):
        a, b = (sinkhorn(torch.tensor(rng.normal(size=(5, 3))), 0.5, 100).numpy() / 5 for _ in "ab")
        t = rng.uniform()
        mixed = t * a + (1 - t) * b
        np.testing.assert_allclose(mixed.sum(0), 1 / 3, atol=1e-9)
        assert value(mixed) >= t * value(a) + (1 - t) * value(b) - 1e-12


def test_L2_the_last_factor_belongs_to_the_columns():
    """P_ij = exp(-lambda (m_i + n_j + C_ij) - 1): stationary; the printed exp(-lambda m_j) is not.

    With m and n from the plan's own margins, dL/dP must vanish.
    """
    strength, cost = 4.0, -cosines(6, 4).numpy()
    plan = sinkhorn(torch.tensor(-cost), 1 / strength, 2_000).numpy() / 6
    # Multipliers, up to the constant that they share: from the stationarity of row 0 and column 0.
    gradient = cost + (1 + np.log(plan)) / strength
    n = -gradient[0]
    m = -(gradient[:, 0] + n[0])
    lagrangian_gradient = lambda p: cost + (1 + np.log(p)) / strength + m[:, None] + n  # noqa: E731
    factor = lambda x: np.exp(-strength * x - 0.5)  # noqa: E731
    kernel = np.exp(-strength * cost)
    corrected = factor(m)[:, None] * kernel * factor(n)
    printed = factor(m)[:, None] * kernel * factor(m[:4])
    assert abs(lagrangian_gradient(corrected)).max() < 1e-12
    np.testing.assert_allclose(corrected, plan, rtol=1e-9)
    assert abs(lagrangian_gradient(printed)).max() > 0.05
    assert abs(printed.sum(0) - 1 / 4).max() > 0.05


def test_L5_codes_are_n_times_the_plan():
    """The expansion -z'Cq/tau + log sum exp equals the cross-entropy only if q sums to 1."""
    scores = cosines(8, 5)
    codes = sinkhorn(scores, 0.05)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-12)
    normaliser = (scores / 0.1).logsumexp(1)
    for q, holds in ((codes, True), (codes / 8, False)):  # codes / 8: the columns of the plan
        cross_entropy = -(q * (scores / 0.1).log_softmax(1)).sum(1).mean()
        expansion = (normaliser - (q * scores).sum(1) / 0.1).mean()
        assert torch.isclose(cross_entropy, expansion) == holds


def test_L6_large_epsilon_makes_codes_uniform():
    """Codes do not collapse onto one prototype: they all become 1/K."""
    scores = cosines(8, 5)
    codes = sinkhorn(scores, 1e4, 3)
    np.testing.assert_allclose(codes, 1 / 5, atol=1e-3)
    spread = [sinkhorn(scores, e, 300).amax(1).mean() for e in (0.01, 0.1, 1, 10)]
    assert spread == sorted(spread, reverse=True)


@pytest.mark.parametrize(("ratio", "learns"), [(0.4, True), (0.8, False)])
def test_L6_epsilon_must_be_below_tau_times_the_agreement_of_the_views(ratio, learns):
    """Gaussian inputs of which two views correlate at 0.6; a linear network."""
    torch.manual_seed(0)
    tau, rho = 0.1, 0.6
    network, prototypes = torch.nn.Linear(6, 5), Prototypes(8, 5)
    optimizer = torch.optim.SGD([*network.parameters(), *prototypes.parameters()], 0.1, 0.9)
    for _ in range(300):
        prototypes.normalise()
        common, own = torch.randn(256, 6), torch.randn(2, 256, 6)
        views = rho**0.5 * common + (1 - rho) ** 0.5 * own
        scores = prototypes(F.normalize(network(views), dim=-1))
        codes = torch.stack([sinkhorn(s, ratio * tau) for s in scores])
        optimizer.zero_grad()
        swapped_prediction(scores, codes, tau).backward()
        optimizer.step()
    uniformity = (torch.special.entr(codes).sum(-1) / math.log(8)).mean()
    assert (uniformity < 0.85) if learns else (uniformity > 0.99)


@pytest.mark.parametrize(("ratio", "uniformity"), [(0.8, 0.0), (1.25, 1.0)])
def test_L6_without_equal_use_tau_itself_parts_the_two_collapses(ratio, uniformity):
    """What all views share correlates at 1: below tau it grows to one prototype, above it dies."""
    torch.manual_seed(0)
    tau = 0.1
    network, prototypes = torch.nn.Linear(6, 5), Prototypes(8, 5)
    optimizer = torch.optim.SGD([*network.parameters(), *prototypes.parameters()], 0.1, 0.9)
    for _ in range(600):
        prototypes.normalise()
        views = 0.6**0.5 * torch.randn(256, 6) + 0.4**0.5 * torch.randn(2, 256, 6)
        scores = prototypes(F.normalize(network(views), dim=-1))
        codes = (scores.detach() / (ratio * tau)).softmax(-1)
        optimizer.zero_grad()
        swapped_prediction(scores, codes, tau).backward()
        optimizer.step()
    mean_code = codes.mean((0, 1))
    assert torch.special.entr(mean_code).sum() / math.log(8) == pytest.approx(uniformity, abs=0.05)
    assert (codes - mean_code).abs().max() < 0.1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-3, 2), st.integers(0, 99))
def test_margins(n, k, log_epsilon, seed):
    scores = cosines(n, k, seed=seed)
    codes = sinkhorn(scores, 10**log_epsilon, 3)
    assert codes.shape == (n, k)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-9)
    assert (codes >= 0).all()
    if log_epsilon > -1:
        np.testing.assert_allclose(
            sinkhorn(scores, 10**log_epsilon, 3_000).sum(0), n / k, rtol=1e-6
        )


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_few_iterations_are_the_papers(iterations):
    """Columns first, then rows, from exp(scores / epsilon): by hand on the matrix."""
    q = np.exp(cosines(8, 5).numpy() / 0.05)
    for _ in range(iterations):
        q = q / q.sum(0) / 5
        q = q / q.sum(1, keepdims=True) / 8
    np.testing.assert_allclose(sinkhorn(cosines(8, 5), 0.05, iterations), 8 * q, rtol=1e-9)


def test_three_iterations_leave_the_prototypes_unequal():
    """At the paper's setting only the images' margins are exact."""
    use = sinkhorn(cosines(8, 5), 0.05, 3).sum(0) / 8 * 5
    assert 0.02 < abs(use - 1).max() < 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("epsilon", [1e-38, 1e-6, 1e-2, 0.05, 1e6])
def test_no_precision_and_no_epsilon_overflows(dtype, epsilon):
    scores = cosines(64, 20).to(dtype)
    codes = sinkhorn(scores, epsilon)
    assert codes.dtype == torch.float32
    assert codes.isfinite().all()
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-5)
    if epsilon >= 1e-2:
        exact = sinkhorn(scores.double(), epsilon)
        np.testing.assert_allclose(codes, exact, atol=1e-4)


def test_plain_exponentials_fail_where_the_logarithms_do_not():
    """float16 exp(score / 0.05) is infinite from a score of .56 on; float32 at .01 from .89."""
    assert torch.exp(torch.tensor(0.9, dtype=torch.float16) / 0.05).isinf()
    assert torch.exp(torch.tensor(0.9) / 0.01).isinf()


def test_identical_images_share_the_prototypes_equally():
    codes = sinkhorn(cosines(1, 6).expand(12, 6), 0.05, 50)
    np.testing.assert_allclose(codes, 1 / 6, rtol=1e-9)


def test_more_prototypes_than_images():
    codes = sinkhorn(cosines(3, 12), 0.01, 3_000)
    np.testing.assert_allclose(codes.sum(0), 3 / 12, rtol=1e-3)
    assert (codes > 1e-3).sum(1).min() >= 4  # K / n prototypes each, or more
    np.testing.assert_allclose(sinkhorn(cosines(1, 4), 0.05), 1 / 4, rtol=1e-9)  # one image


def test_sinkhorn_bad_input():
    scores = cosines(4, 3)
    for epsilon in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="epsilon"):
            sinkhorn(scores, epsilon)
    with pytest.raises(ValueError, match="iterations"):
        sinkhorn(scores, 0.05, 0)
    for bad in (scores[0], scores[:0], scores[None]):
        with pytest.raises(ValueError, match="non-empty"):
            sinkhorn(bad, 0.05)
    scores[2, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        sinkhorn(scores, 0.05)


def test_codes_carry_no_gradient():
    assert not sinkhorn(cosines(4, 3).requires_grad_(), 0.05).requires_grad


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("v", "g"), [(2, 2), (5, 2), (3, 1)])
def test_swapped_prediction_by_loops(v, g):
    scores = torch.stack([cosines(6, 4, seed=s) for s in range(v)])
    codes = torch.stack([sinkhorn(s, 0.1) for s in scores[:g]])
    losses = []
    for i in range(g):
        for j in range(v):
            for n in range(6):
                if i != j:
                    p = np.exp(scores[j, n].numpy() / 0.2)
                    losses.append(-sum(codes[i, n].numpy() * np.log(p / p.sum())))
    assert swapped_prediction(scores, codes, 0.2).item() == pytest.approx(
        np.mean(losses), rel=1e-12
    )


def test_swapped_prediction_bad_input():
    scores = torch.zeros(3, 4, 5)
    for s, q in ((scores, scores[:, :3]), (scores[:1], scores[:1]), (scores[:2], scores)):
        with pytest.raises(ValueError, match="do not fit"):
            swapped_prediction(s, q)
    with pytest.raises(ValueError, match="temperature"):
        swapped_prediction(scores, scores, 0)


def test_nt_xent_by_loops():
    z = F.normalize(torch.randn(2, 5, 3, generator=seeded(), dtype=torch.float64), dim=-1)
    flat = z.reshape(10, 3).numpy()
    losses = []
    for i in range(10):
        others = [math.exp(flat[i] @ flat[j] / 0.3) for j in range(10) if j != i]
        losses.append(-math.log(math.exp(flat[i] @ flat[(i + 5) % 10] / 0.3) / sum(others)))
    assert nt_xent(z, 0.3).item() == pytest.approx(np.mean(losses), rel=1e-12)
    with pytest.raises(ValueError, match="n >= 2"):
        nt_xent(z[:, :1])
    with pytest.raises(ValueError, match="temperature"):
        nt_xent(z, -1)


# --- prototypes and queue -------------------------------------------------------------------------


def test_prototypes_are_unit_vectors_and_can_be_frozen():
    torch.manual_seed(0)
    prototypes = Prototypes(5, 3)
    z = torch.randn(2, 4, 3)
    torch.testing.assert_close(prototypes(z)[1, 2, 4], z[1, 2] @ prototypes.weight[4])
    assert not prototypes(z, frozen=True).requires_grad
    direction = F.normalize(prototypes.weight.detach(), dim=1).clone()
    with torch.no_grad():
        prototypes.weight.mul_(torch.arange(1.0, 6)[:, None])
    prototypes.normalise()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes.weight.detach(), direction)


def test_queue_is_first_in_first_out():
    queue, pushed = Queue(2, 5, 1), []
    for i in range(4):
        z = torch.stack([torch.full((2, 1), float(i)), torch.full((2, 1), 10.0 + i)])
        assert queue.full == (i >= 3)
        queue.push(z)
        pushed = [float(i)] * 2 + pushed
    assert queue.rows[0, :, 0].tolist() == pushed[:5]
    assert queue.rows[1, :, 0].tolist() == [10 + value for value in pushed[:5]]
    queue.push(torch.full((2, 9, 1), 7.0))  # a batch longer than the queue
    assert queue.rows.eq(7).all()
    assert set(queue.state_dict()) == {"rows", "count"}
