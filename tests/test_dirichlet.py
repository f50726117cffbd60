"""The conjugate family against Student-t chains, scipy and enumeration; errata L7 and L9."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln, multigammaln
from scipy.stats import invwishart, multivariate_normal, multivariate_t, wishart

from latentspace.dirichlet import (
    NIW,
    Statistics,
    combine,
    crp_expected_tables,
    crp_log_probability,
    crp_sample,
    crp_table_distribution,
    default_prior,
    e_step,
    gaussian_log_density,
    label_statistics,
    learn_prior,
    log_hastings_merge,
    log_hastings_split,
    log_marginal_likelihood,
    map_estimate,
    map_weights,
    posterior,
    select,
    sufficient_statistics,
    temper,
)

MEAN = np.array([0.4, -1.0, 2.0])
PSI = np.array([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.7]])
KAPPA, NU = 0.6, 5.5


def prior():
    return NIW(*(torch.tensor(v, dtype=torch.float64) for v in (MEAN, KAPPA, PSI, NU)))


def sample(n, seed=0):
    """Points (n, 3) with unequal variances, correlated, away from the origin."""
    rng = np.random.default_rng(seed)
    mix = np.array([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-0.5, 0.2, 2.0]])
    return rng.normal(size=(n, 3)) @ mix.T + [3.0, -1.0, 0.5]


def stats_of(*groups):
    x = torch.tensor(np.concatenate(groups))
    labels = torch.cat([torch.full((len(g),), k) for k, g in enumerate(groups)])
    return label_statistics(x, labels, len(groups))


# --- statistics ---


def test_soft_statistics_are_the_loops():
    rng = np.random.default_rng(1)
    x, r = sample(9), rng.uniform(size=(9, 2)) ** 3
    ours = sufficient_statistics(torch.tensor(x), torch.tensor(r))
    for k in range(2):
        count = sum(r[:, k])
        mean = sum(r[i, k] * x[i] for i in range(9)) / count
        scatter = sum(r[i, k] * np.outer(x[i] - mean, x[i] - mean) for i in range(9))
        assert ours.count[k] == pytest.approx(count, rel=1e-12)
        np.testing.assert_allclose(ours.mean[k], mean, rtol=1e-12)
        np.testing.assert_allclose(ours.scatter[k], scatter, rtol=1e-10, atol=1e-12)


def test_hard_statistics_are_numpys_and_blocks_add_up():
    x = torch.tensor(sample(9001))  # more rows than one block
    labels = torch.from_numpy(np.random.default_rng(2).choice(4, 9001, p=[0.6, 0.3, 0.1, 0.0]))
    hard = label_statistics(x, labels, 4)
    soft = sufficient_statistics(x, torch.eye(4).double()[labels])
    for a, b in zip(hard, soft, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    own = x[labels == 1].numpy()
    np.testing.assert_allclose(hard.scatter[1] / len(own), np.cov(own.T, ddof=0), rtol=1e-10)
    assert [float(part[3].abs().sum()) for part in hard] == [0, 0, 0]


def test_statistics_far_from_the_origin_keep_their_digits():
    x = sample(50)
    near, far = stats_of(x), stats_of(x + 1e7)
    torch.testing.assert_close(near.scatter, far.scatter, rtol=1e-6, atol=1e-6)


def test_combine_is_the_union_also_with_nothing():
    a, b, c = sample(4, 1), sample(7, 2) + 5, sample(0, 3)
    ours = combine(stats_of(a, b, c), stats_of(b, c, c))
    both = stats_of(np.concatenate([a, b]), b, c)
    for mine, theirs in zip(ours, both, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_temper_undoes_repetition():
    x = sample(6)
    repeated = temper(stats_of(np.repeat(x, 4, axis=0)), 0.25)
    for mine, theirs in zip(repeated, stats_of(x), strict=True):
        torch.testing.assert_close(mine, theirs)
    for power in (0, 1.5, -1, math.nan):
        with pytest.raises(ValueError, match="power"):
            temper(repeated, power)


def test_statistics_of_malformed_input():
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"\(N, d\) and \(N, K\)"):
        sufficient_statistics(x, torch.zeros(4, 3))
    with pytest.raises(ValueError, match="there are 2 clusters"):
        label_statistics(x, torch.tensor([0, 1, 2, 1, 0]), 2)


# --- the conjugate family ---


def chained_student_t(x, kappa=KAPPA):
    """ln f by predicting each point from those before it, with textbook updates in numpy."""
    mean, psi, nu, total = MEAN, PSI, NU, 0.0
    for point in x:
        df = nu - len(mean) + 1
        shape = psi * (kappa + 1) / (kappa * df)
        total += multivariate_t(mean, shape, df).logpdf(point)
        psi = psi + kappa / (kappa + 1) * np.outer(point - mean, point - mean)
        mean, kappa, nu = (kappa * mean + point) / (kappa + 1), kappa + 1, nu + 1
    return total, NIW(mean, kappa, psi, nu)


@pytest.mark.parametrize("n", [1, 2, 13])
def test_marginal_likelihood_is_the_chain_of_predictives(n):
    x = sample(n)
    total, after = chained_student_t(x)
    ours = log_marginal_likelihood(prior(), stats_of(x))
    assert float(ours[0]) == pytest.approx(total, rel=1e-10)
    for mine, theirs in zip(posterior(prior(), stats_of(x)), after, strict=True):
        np.testing.assert_allclose(mine[0], theirs, rtol=1e-10)


@pytest.mark.parametrize(("kappa", "least", "most"), [(KAPPA, 0.5, 1.0), (1e-4, 0.0, 0.001)])
def test_L9_scatter_about_the_map_mean_is_not_the_marginal_likelihood(kappa, least, most):
    """Official code sums the scatter about m*, not about the mean; psi* is then too large.

    How much is lost depends on kappa: nothing to speak of at the code's own 1e-4.
    """
    x = sample(2) + 2
    given = prior()._replace(kappa=torch.tensor(kappa, dtype=torch.float64))
    stats = stats_of(x)
    exact, _ = chained_student_t(x, kappa)
    mode = posterior(given, stats).mean[0].numpy()
    about_mode = torch.tensor((x - mode).T @ (x - mode))[None]
    coded = log_marginal_likelihood(given, Statistics(stats.count, stats.mean, about_mode))
    assert least < exact - float(coded[0]) < most
    assert float(log_marginal_likelihood(given, stats)[0]) == pytest.approx(exact, rel=1e-10)


def test_clusters_of_a_batch_do_not_mix():
    a, b = sample(5, 1), sample(11, 2) + 4
    both = log_marginal_likelihood(prior(), stats_of(a, np.empty((0, 3)), b))
    expected = [chained_student_t(a)[0], 0.0, chained_student_t(b)[0]]
    np.testing.assert_allclose(both, expected, rtol=1e-10, atol=1e-12)


def test_map_estimate_is_the_joint_mode():
    x = sample(12)
    means, covariances = map_estimate(prior(), stats_of(x))
    mean, covariance = means[0].numpy(), covariances[0].numpy()

    def log_joint(mu, sigma):
        return (
            invwishart(NU, PSI).logpdf(sigma)
            + multivariate_normal(MEAN, sigma / KAPPA).logpdf(mu)
            + multivariate_normal(mu, sigma).logpdf(x).sum()
        )

    best = log_joint(mean, covariance)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            step = size * rng.normal(size=(3, 3))
            sigma = (np.eye(3) + step) @ covariance @ (np.eye(3) + step).T
            assert log_joint(mean + size * rng.normal(size=3), sigma) < best
        assert log_joint(mean, covariance * (1 + size)) < best
        assert log_joint(mean, covariance / (1 + size)) < best


def test_an_empty_cluster_has_the_priors_mode():
    means, covariances = map_estimate(prior(), stats_of(np.empty((0, 3))))
    np.testing.assert_allclose(means[0], MEAN)
    np.testing.assert_allclose(covariances[0], PSI / (NU + 3 + 2), rtol=1e-12)


def test_weights():
    ours = map_weights(torch.tensor([6.0, 0.0, 3.0]), 1.5)
    np.testing.assert_allclose(ours, np.array([6.5, 0.5, 3.5]) / 10.5, rtol=1e-6)


@pytest.mark.parametrize("constant", [1, 3])
def test_default_prior_is_positive_definite_on_constant_features(constant):
    x = torch.tensor(sample(20))
    x[:, :constant] = 7.0
    ours = default_prior(x, psi_scale=0.2)
    assert torch.linalg.eigvalsh(ours.psi).min() > 0
    assert torch.isfinite(log_marginal_likelihood(ours, stats_of(x.numpy()))).all()
    if constant == 1:
        covariance = np.cov(x.numpy()[:, 1:].T, ddof=0)
        np.testing.assert_allclose(ours.psi[1:, 1:], 0.2 * covariance, rtol=1e-8)
        assert float(ours.psi[0, 0]) == pytest.approx(0.2e-6 * covariance.diagonal().max())
    assert float(ours.nu) == 5
    for bad in ({"kappa": 0}, {"psi_scale": -1}, {"nu": 2}):
        with pytest.raises(ValueError, match="needs kappa > 0"):
            default_prior(x, **bad)


def test_default_prior_follows_the_data_through_every_linear_map():
    """So its units drop out: the evidence for a cut does not depend on them."""
    x = torch.tensor(sample(60))
    a = torch.tensor([[1e-5, 0.0, 0.0], [2.0, -3.0, 0.5], [4e4, 1e4, 1e4]], dtype=torch.float64)
    y = x @ a.T - 30
    ours, theirs = default_prior(x), default_prior(y)
    torch.testing.assert_close(theirs.psi, a @ ours.psi @ a.T, rtol=1e-6, atol=0)
    ratios = [
        log_hastings_split(stats_of(z[:25].numpy()), stats_of(z[25:].numpy()), prior, 10.0)
        for z, prior in ((x, ours), (y, theirs))
    ]
    torch.testing.assert_close(*ratios, rtol=1e-6, atol=1e-6)


def test_default_prior_is_positive_definite_on_copies():
    x = torch.tensor(sample(60))
    psi = default_prior(torch.cat([x, x], 1)).psi
    assert torch.linalg.eigvalsh(psi).min() > 0
    torch.testing.assert_close(psi[:3, :3], default_prior(x).psi, rtol=1e-4, atol=1e-6)


def test_learned_psi_maximises_the_marginal_likelihood_with_its_hyperprior():
    groups = [sample(n, seed) + 9 * seed for seed, n in enumerate((30, 60, 15, 40))]
    stats, prior = stats_of(*groups), default_prior(torch.tensor(np.concatenate(groups)))
    base = 10 * prior.psi
    best = learn_prior(prior, base, stats, steps=500)

    def objective(psi):
        hyper = wishart(5, base.numpy() / 5).logpdf(psi.numpy())
        return float(log_marginal_likelihood(prior._replace(psi=psi), stats).sum()) + hyper

    rng = np.random.default_rng(0)
    for _ in range(30):
        step = torch.tensor(np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
        assert objective(step @ best.psi @ step.T) < objective(best.psi)
    assert objective(prior.psi) < objective(best.psi) - 1


def test_learned_psi_of_duplicates_stays_positive():
    x = torch.tensor(np.repeat(sample(4), 50, axis=0))
    prior = default_prior(x, psi_scale=1.0)
    stats = label_statistics(x, torch.arange(4).repeat_interleave(50), 4)
    psi = learn_prior(prior, prior.psi, stats, steps=1000).psi
    assert torch.linalg.eigvalsh(psi).min() > 0


# --- ratios ---


def log_partition(groups, alpha):
    """Log joint of a partition and its data, with scipy: the CRP's and each block's marginal."""
    total, n = 0.0, sum(len(g) for g in groups)
    for g in groups:
        total += math.log(alpha) + gammaln(len(g)) + chained_student_t(g)[0]
    return total - sum(math.log(alpha + i) for i in range(n))


@pytest.mark.parametrize("alpha", [0.3, 10.0])
def test_L7_the_ratio_is_that_of_the_two_posteriors(alpha):
    a, b, rest = sample(5, 1), sample(9, 2) + 1, sample(4, 3)
    expected = log_partition([a, b, rest], alpha) - log_partition(
        [np.concatenate([a, b]), rest], alpha
    )
    ours = log_hastings_split(stats_of(a), stats_of(b), prior(), alpha)
    assert float(ours[0]) == pytest.approx(expected, rel=1e-9)


def test_L7_the_inverse_is_not_the_parent_samplers_merge():
    """Chang and Fisher's merge also counts how the halves would have been proposed."""
    alpha, n = 10.0, np.array([100, 100])
    proposal = gammaln(alpha) - gammaln(alpha + n.sum())
    proposal += (gammaln(alpha / 2 + n) - gammaln(alpha / 2)).sum()
    assert proposal == pytest.approx(-140, abs=1)
    a, b = sample(100, 1), sample(100, 2) + [1.0, 0, 0]
    merge = log_hastings_merge(stats_of(a), stats_of(b), prior(), alpha)
    parent = log_partition([np.concatenate([a, b])], alpha) - log_partition([a, b], alpha)
    assert float(merge[0]) == pytest.approx(parent, rel=1e-9)
    assert float(merge[0]) > 0 > float(merge[0]) + proposal  # the two samplers disagree here


def test_a_side_without_points_is_never_split_off():
    a = sample(6)
    empty = np.empty((0, 3))
    ours = log_hastings_split(stats_of(a, empty), stats_of(empty, a), prior(), 1.0)
    assert (ours == -math.inf).all()


@given(seed=st.integers(0, 10**6), n=st.tuples(st.integers(1, 30), st.integers(1, 30)))
@settings(deadline=None, max_examples=15)
def test_ratio_by_the_closed_form(seed, n):
    """Against ln f written out with scipy's multigammaln, at random sizes and places."""
    a, b = sample(n[0], seed), sample(n[1], seed + 1) + 2

    def log_f(x):
        count, mean = len(x), x.mean(0)
        psi = PSI + (x - mean).T @ (x - mean)
        shift = mean - MEAN
        psi = psi + KAPPA * count / (KAPPA + count) * np.outer(shift, shift)
        return (
            -count * 3 / 2 * math.log(math.pi)
            + multigammaln((NU + count) / 2, 3)
            - multigammaln(NU / 2, 3)
            + NU / 2 * np.linalg.slogdet(PSI)[1]
            - (NU + count) / 2 * np.linalg.slogdet(psi)[1]
            + 3 / 2 * math.log(KAPPA / (KAPPA + count))
        )

    expected = math.log(2.5) + gammaln(n[0]) + gammaln(n[1]) - gammaln(sum(n))
    expected += log_f(a) + log_f(b) - log_f(np.concatenate([a, b]))
    ours = log_hastings_split(stats_of(a), stats_of(b), prior(), 2.5)
    assert float(ours[0]) == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_separation_decides_and_alpha_hardly_matters():
    """100 + 100 points at means (-s, 0), (s, 0): the ratio rises with s and changes its sign."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(2, 100, 2))
    vague = NIW(torch.zeros(2).double(), torch.tensor(1e-4), 0.005 * torch.eye(2).double(),
                torch.tensor(4.0))  # fmt: skip

    def ratio(s, alpha=10.0):
        return float(
            log_hastings_split(stats_of(left - [s, 0]), stats_of(right + [s, 0]), vague, alpha)[0]
        )

    ratios = [ratio(s) for s in (1, 2, 3, 5)]
    assert ratios == sorted(ratios) and ratios[0] < -30 and ratios[2] > 30
    assert ratio(2, 1000.0) - ratio(2, 0.1) == pytest.approx(math.log(1e4))


# --- the mixture ---


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_densities_are_scipys(dtype, rtol):
    x = sample(5000)  # more rows than one block
    means = np.array([[3.0, -1, 0.5], [-2.0, 8.0, 1.0]])
    covariances = np.stack([PSI, np.diag([0.1, 3.0, 1.0])])
    theirs = np.stack(
        [multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)], 1
    )
    tensors = [torch.tensor(v).to(dtype) for v in (x, means, covariances)]
    np.testing.assert_allclose(gaussian_log_density(*tensors), theirs, rtol=rtol)
    weights = torch.tensor([0.7, 0.3], dtype=dtype)
    r, log_density = e_step(tensors[0], weights, *tensors[1:])
    joint = np.exp(theirs) * [0.7, 0.3]
    # rtol of responsibilities is the absolute error of log densities, of order 100 here.
    np.testing.assert_allclose(r, joint / joint.sum(1, keepdims=True), atol=100 * rtol)
    np.testing.assert_allclose(log_density, np.log(joint.sum(1)), rtol=10 * rtol)


def test_e_step_far_from_every_cluster():
    x = torch.tensor([[1e6, 0.0], [0.0, -1e6]]).double()
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    r, log_density = e_step(
        x, torch.tensor([0.5, 0.5]), means, torch.eye(2).double().repeat(2, 1, 1)
    )
    np.testing.assert_allclose(r, [[1, 0], [0.5, 0.5]], atol=1e-4)  # squares of 1e12
    assert torch.isfinite(log_density).all()


def test_select_takes_masks_and_slices():
    stats = stats_of(sample(3, 1), sample(4, 2), sample(6, 3))
    assert select(stats, torch.tensor([True, False, True])).count.tolist() == [3, 6]
    assert select(stats, slice(1, None)).mean.shape == (2, 3)


# --- the Chinese restaurant ---


def partitions(n):
    """All set partitions of n customers, as tuples of tables in order of opening."""
    seatings = [(0,)]
    for _ in range(n - 1):
        seatings = [s + (t,) for s in seatings for t in range(max(s) + 2)]
    return seatings


def seat_by_seat(seating, alpha):
    p = 1.0
    for i, table in enumerate(seating):
        size = seating[:i].count(table)
        p *= (size or alpha) / (alpha + i)
    return p


@pytest.mark.parametrize("alpha", [0.4, 3.0])
def test_restaurant_is_exact(alpha):
    n, tables = 6, np.zeros(7)
    for seating in partitions(n):
        p = seat_by_seat(seating, alpha)
        sizes = [seating.count(t) for t in range(max(seating) + 1)]
        tables[len(sizes)] += p
        assert crp_log_probability(sizes, alpha) == pytest.approx(math.log(p))
    assert tables.sum() == pytest.approx(1)  # the enumeration is complete
    np.testing.assert_allclose(crp_table_distribution(n, alpha), tables, rtol=1e-12)
    assert crp_expected_tables(n, alpha) == pytest.approx(tables @ np.arange(n + 1))


def test_seating_follows_the_distribution():
    alpha, n, draws = 1.7, 4, 4000
    generator = torch.Generator().manual_seed(0)
    seen = [tuple(crp_sample(n, alpha, generator)[0].tolist()) for _ in range(draws)]
    for seating in partitions(n):
        p = seat_by_seat(seating, alpha)
        error = math.sqrt(p * (1 - p) / draws)
        assert abs(seen.count(seating) / draws - p) < 4.5 * error
    assert set(seen) == set(partitions(n))


def test_seats_and_sizes_of_many():
    seating, sizes = crp_sample(5000, 20.0, torch.Generator().manual_seed(1))
    first = [int((seating == t).nonzero()[0, 0]) for t in range(len(sizes))]
    assert first == sorted(first) and sizes.min() > 0
    assert sizes.tolist() == np.bincount(seating).tolist() and sizes.sum() == 5000
    p = crp_table_distribution(5000, 20.0)
    mean = p @ np.arange(5001)
    std = math.sqrt(p @ (np.arange(5001) - mean) ** 2)
    assert abs(len(sizes) - mean) < 4 * std


def test_bad_restaurants():
    for call in (crp_sample, crp_expected_tables, crp_table_distribution):
        for n, alpha in itertools.product((0, 3), (1.0, 0.0, -2.0)):
            if n and alpha > 0:
                continue
            with pytest.raises(ValueError, match="alpha > 0"):
                call(n, alpha)
    for sizes in ([], [3, 0]):
        with pytest.raises(ValueError, match=">= 1"):
            crp_log_probability(sizes, 1.0)
