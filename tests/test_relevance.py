"""The functions of neural mixtures against numpy, scipy and brute force; the errata T6 to T14."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit, softmax
from scipy.stats import entropy, multivariate_normal, skew
from torch import nn

from latentspace.relevance import (
    RelevanceNorm,
    cluster_scores,
    consistency_loss,
    em_loss,
    exact_posterior,
    mutual_information_loss,
    normalize_relevance,
    normalized_score_bound,
    sharpened_posterior,
    update_prior,
)


def numbers(*shape, seed=0, spread=True):
    """Doubles whose columns have unequal means and scales."""
    a = np.random.default_rng(seed).gamma(2.0, size=shape)
    return a * (1 + np.arange(shape[-1])) - np.arange(shape[-1]) ** 2 if spread else a


def by_hand(a, eps=1e-5):
    return (a - a.mean(0)) / np.sqrt(((a - a.mean(0)) ** 2).mean(0) + eps)


PRIOR = np.array([0.5, 0.2, 0.2, 0.1])


# --- normalisation --------------------------------------------------------------------------------


def test_normalize_relevance():
    a = numbers(37, 4)
    np.testing.assert_allclose(normalize_relevance(torch.tensor(a)), by_hand(a), atol=1e-12)
    x = torch.tensor(a, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_relevance, x)


def test_relevance_norm_is_batch_normalisation():
    """Three batches of unequal sizes, then the running statistics written out."""
    norm, mean, var = RelevanceNorm(4, momentum=0.3).double(), np.zeros(4), np.ones(4)
    for n in (5, 9, 20):
        a = numbers(n, 4, seed=n)
        np.testing.assert_allclose(norm(torch.tensor(a)), by_hand(a), atol=1e-12)
        mean, var = 0.7 * mean + 0.3 * a.mean(0), 0.7 * var + 0.3 * a.var(0, ddof=1)
    norm.eval()
    a = numbers(3, 4, seed=1)
    expected = (a - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(norm(torch.tensor(a)), expected, atol=1e-12)
    np.testing.assert_allclose(norm(torch.tensor(a[:1])), expected[:1], atol=1e-12)
    assert list(norm.state_dict()) == ["running_mean", "running_var"] and not list(
        norm.parameters()
    )


@pytest.mark.parametrize("norm", [normalize_relevance, RelevanceNorm(3)], ids=["batch", "module"])
@pytest.mark.parametrize("case", ["one point", "identical points", "a constant score"])
def test_degenerate_batches_are_zero(norm, case):
    a = torch.tensor(numbers(20, 3), dtype=torch.float32)
    if case == "one point":
        a, constant = a[:1], [0, 1, 2]
    elif case == "identical points":
        a, constant = a[:1].repeat(20, 1), [0, 1, 2]
    else:
        a[:, 1], constant = 0.1, [1]
    a.requires_grad_()
    normalized = norm(a)
    assert normalized[:, constant].abs().max() <= 1e-3 * a.abs().max()
    em_loss(normalized, sharpened_posterior(normalized)).backward()
    assert torch.isfinite(a.grad).all()
    if len(constant) == 1:
        assert normalized[:, 0].std() > 0.9


def test_one_point_does_not_touch_the_running_statistics():
    norm = RelevanceNorm(2)
    norm(torch.tensor([[3.0, 4.0]]))
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1]
    assert torch.isfinite(norm.eval()(torch.tensor([[3.0, 4.0]]))).all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (torch.tensor([[1.0, math.nan], [0.0, 1.0]]), "NaN"),
        (torch.tensor([[1.0, math.inf], [0.0, 1.0]]), "NaN or infinity"),
        (torch.zeros(3), r"\(n, K\)"),
        (torch.zeros(0, 3), r"\(n, K\)"),
        (torch.zeros(2, 3, dtype=torch.int64), "floats"),
    ],
)
def test_bad_scores(scores, message):
    for norm in (normalize_relevance, RelevanceNorm(2)):
        with pytest.raises(ValueError, match=message):
            norm(scores)


def test_bad_arguments():
    a = torch.zeros(4, 3)
    for call in (
        lambda: RelevanceNorm(0),
        lambda: RelevanceNorm(3, momentum=0),
        lambda: RelevanceNorm(2)(a),
        lambda: normalized_score_bound(0),
        lambda: cluster_scores(a, gamma=0),
        lambda: exact_posterior(a, gamma=-1),
        lambda: em_loss(a, a[:2]),
        lambda: em_loss(a, a, gamma=math.nan),
        lambda: consistency_loss(a, a[:, :2]),
        lambda: mutual_information_loss(a, a[:2]),
        lambda: update_prior(a[0], a, rate=1.5),
    ):
        with pytest.raises(ValueError):
            call()


# --- posteriors and losses ------------------------------------------------------------------------


def test_posteriors():
    a = numbers(11, 4)
    x, log_prior = torch.tensor(a, requires_grad=True), torch.tensor(np.log(PRIOR))
    h = expit(a / 3)
    np.testing.assert_allclose(cluster_scores(x, 3.0).detach(), h)
    np.testing.assert_allclose(sharpened_posterior(x), softmax(a, 1))
    np.testing.assert_allclose(sharpened_posterior(x, log_prior), softmax(a + np.log(PRIOR), 1))
    np.testing.assert_allclose(exact_posterior(x, 3.0), h / h.sum(1, keepdims=True))
    weighted = h * PRIOR
    expected = weighted / weighted.sum(1, keepdims=True)
    np.testing.assert_allclose(exact_posterior(x, 3.0, log_prior), expected)
    assert not sharpened_posterior(x).requires_grad and not exact_posterior(x).requires_grad


def test_em_loss():
    a, p = numbers(11, 4), softmax(numbers(11, 4, seed=1), 1)
    x = torch.tensor(a, requires_grad=True)
    plain = -(p * log_expit(a / 3)).sum() / 11
    assert em_loss(x, torch.tensor(p), 3.0).item() == pytest.approx(plain, rel=1e-12)
    loss = em_loss(x, torch.tensor(p), 3.0, torch.tensor(np.log(PRIOR)))
    assert loss.item() == pytest.approx(plain - (p * np.log(PRIOR)).sum() / 11, rel=1e-12)
    loss.backward()
    np.testing.assert_allclose(x.grad, -p / (11 * 3) * (1 - expit(a / 3)), rtol=1e-9)


def test_em_loss_holds_the_posterior_fixed():
    x = torch.tensor(numbers(6, 3), requires_grad=True)
    p = x.softmax(1)
    assert em_loss(x.detach(), p).requires_grad is False
    assert consistency_loss(p, x.detach().log_softmax(1)).requires_grad is False


def test_em_loss_far_from_zero():
    x = torch.tensor([[-3e4, 3e4]], dtype=torch.float32)
    loss = em_loss(x, torch.tensor([[0.5, 0.5]]), 1.0)
    assert loss.item() == pytest.approx(1.5e4)


def test_update_prior():
    p = softmax(numbers(9, 4), 1)
    updated = update_prior(torch.tensor(PRIOR), torch.tensor(p), 0.25)
    np.testing.assert_allclose(updated, 0.75 * PRIOR + 0.25 * p.mean(0))
    assert updated.sum().item() == pytest.approx(1)


def test_consistency_loss():
    p, q = softmax(numbers(7, 4), 1), softmax(numbers(7, 4, seed=3), 1)
    p[2] = [0, 1, 0, 0]
    expected = np.mean([entropy(a, b) for a, b in zip(p, q, strict=True)])
    loss = consistency_loss(torch.tensor(p), torch.tensor(np.log(q)))
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_mutual_information_loss():
    """H(A) + H(B) - H(A, B) of the symmetrised joint distribution."""
    p, q = softmax(numbers(7, 4), 1), softmax(numbers(7, 4, seed=3), 1)
    joint = sum(np.outer(a, b) + np.outer(b, a) for a, b in zip(p, q, strict=True)) / 14
    information = 2 * entropy(joint.sum(0)) - entropy(joint.ravel())
    loss = mutual_information_loss(torch.tensor(p), torch.tensor(q))
    assert loss.item() == pytest.approx(-information, abs=1e-9)
    hard = torch.eye(3, dtype=torch.float64)[[0, 0, 1, 2, 2, 2]]
    expected = -entropy([2, 1, 3])
    assert mutual_information_loss(hard, hard).item() == pytest.approx(expected, abs=1e-9)


# --- errata ---------------------------------------------------------------------------------------


def test_T6_the_bound_needs_the_entropy_of_the_posterior():
    """A mixture of two unequal Gaussians: log L = Q + H; printed is Q alone."""
    rng = np.random.default_rng(0)
    x = np.r_[rng.normal(0, 1, (40, 2)), rng.normal(2, 0.6, (25, 2))]
    weight, means, scales = (0.7, 0.3), ((0, 0), (1.5, 2)), (1.2, 0.8)
    joint = np.stack(
        [
            w * multivariate_normal(m, s**2 * np.eye(2)).pdf(x)
            for w, m, s in zip(weight, means, scales, strict=True)
        ],
        1,
    )
    posterior = joint / joint.sum(1, keepdims=True)
    likelihood = np.log(joint.sum(1)).sum()
    q = (posterior * np.log(joint)).sum()
    assert abs(q - likelihood) > 5  # eq. 4.3 as printed is not the likelihood where it should touch
    assert q + entropy(posterior, axis=1).sum() == pytest.approx(likelihood, rel=1e-12)
    for _ in range(20):  # any other weights give a lower bound
        p = rng.dirichlet([1, 1], len(x))
        assert (p * np.log(joint)).sum() + entropy(p, axis=1).sum() < likelihood


@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_T7_the_bound_on_a_normalised_score(n, seed):
    rng = np.random.default_rng(seed)
    a = torch.tensor(rng.standard_t(1, (n, 1)))
    assert normalize_relevance(a).abs().max() <= math.sqrt(n - 1) * (1 + 1e-9)
    assert normalized_score_bound(n) == pytest.approx(math.sqrt(n - 1))


def test_T7_one_outlier_exceeds_the_printed_bound():
    a = torch.zeros(128, 1, dtype=torch.float64)
    a[17] = 1e6
    largest = normalize_relevance(a).max().item()
    assert largest > 127 / math.sqrt(128)  # 11.2253, printed as a bound
    assert largest == pytest.approx(normalized_score_bound(128), rel=1e-9)
    assert largest == pytest.approx(11.26943, abs=1e-5)
    unbiased = (a / a.std()).max() - (a / a.std()).mean()
    assert unbiased.item() == pytest.approx(127 / math.sqrt(128), rel=1e-9)


def test_T8_the_interval_is_not_the_linear_part():
    z = normalized_score_bound(128) / 5
    slope = expit(z) * (1 - expit(z))
    assert slope / 0.25 == pytest.approx(0.343, abs=1e-3)
    tangent = 0.5 + z / 4
    assert expit(z) == pytest.approx(0.905, abs=1e-3) and tangent > 1


def mean_score(a, gamma):
    return cluster_scores(normalize_relevance(torch.tensor(a), 1e-12), gamma).mean(0).numpy()


def test_T9_the_mean_is_one_half_less_the_skewness():
    a = np.random.default_rng(0).gamma(0.5, size=(400, 3)) * [1, -1, 5]
    for gamma in (5.0, 10.0):
        deviation = mean_score(a, gamma) - 0.5
        assert (abs(deviation) > 1e-5).all()  # eq. 4.14 prints 0
        leading = -skew(a, axis=0) / (48 * gamma**3)
        np.testing.assert_allclose(deviation, leading, rtol=0.35 if gamma == 5 else 0.12)


def outliers_mean(n, gamma, m=1):
    """m equal outliers among n, by adding up."""
    a = np.r_[np.ones(m), np.zeros(n - m)]
    return expit((a - a.mean()) / a.std() / gamma).mean()


@pytest.mark.parametrize(
    ("gamma", "outliers", "deviation"), [(5.0, 1, 1.238e-3), (1.0, 8, 3.020e-2)]
)
def test_T9_equal_outliers_are_the_worst_case(gamma, outliers, deviation):
    """Ascent on |mean - 1/2| over all scores ends at the value of a few equal outliers."""
    n = 128
    best = min(range(1, n // 2), key=lambda m: outliers_mean(n, gamma, m))
    assert best == outliers
    worst = outliers_mean(n, gamma, best)
    assert 0.5 - worst == pytest.approx(deviation, rel=1e-3)
    a = np.zeros((n, 1))
    a[5 : 5 + outliers] = 1
    np.testing.assert_allclose(mean_score(a, gamma), worst, atol=1e-9)

    def objective(a):
        x = torch.tensor(a[:, None], requires_grad=True)
        value = cluster_scores(normalize_relevance(x, 1e-12), gamma).mean()
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()[:, 0]

    found = [
        minimize(objective, np.random.default_rng(s).gamma(0.1, size=n), jac=True).fun
        for s in range(3)
    ]
    assert min(found) == pytest.approx(worst, rel=2e-4)
    assert min(found) > worst - 1e-9


def test_T9_the_worst_case_over_all_batch_sizes():
    """It is a share of outliers: in a large batch many are worse than one."""
    shares = [(263, 1, 5.0, 1.320e-3), (2630, 10, 5.0, 1.320e-3), (1600, 100, 1.0, 3.020e-2)]
    for n, m, gamma, deviation in shares:
        assert 0.5 - outliers_mean(n, gamma, m) == pytest.approx(deviation, rel=1e-3)
    for n in (4, 50, 263, 512, 900, 1600):
        deviations = [0.5 - outliers_mean(n, 5.0, m) for m in range(1, n // 2)]
        assert max(deviations) < 1.3205e-3
    assert 0.5 - outliers_mean(4096, 5.0, 16) > 1.9 * (0.5 - outliers_mean(4096, 5.0, 1))


def test_T10_running_statistics_explain_the_printed_means():
    """.498, .507, .504 lie beyond what batch statistics allow, within what running ones do."""
    printed = np.array([0.498, 0.507, 0.504])
    rounding = 0.0005
    allowed = abs(outliers_mean(128, 5.0) - 0.5)
    assert (abs(printed - 0.5) - rounding > allowed).all()
    rng = np.random.default_rng(0)
    norm = RelevanceNorm(3).double()
    norm.running_mean += torch.tensor([0.0, 2, 5])
    norm.running_var *= torch.tensor([1.0, 9, 0.25])
    norm.eval()
    a = rng.normal([0, 2, 5], [1, 3, 0.5], (2000, 128, 3))
    means = cluster_scores(norm(torch.tensor(a.reshape(-1, 3)))).reshape(2000, 128, 3).mean(1)
    spread = means.std(0).numpy()
    np.testing.assert_allclose(spread, 1 / (4 * 5 * math.sqrt(128)), rtol=0.06)
    assert (abs(printed - 0.5) < 2 * spread).all()


def test_T11_the_integral_is_not_what_is_equalised():
    """Data crowded in a corner of the unit square: equal means, unequal integrals."""
    rng = np.random.default_rng(0)
    data = np.r_[rng.normal(0.2, 0.05, (900, 2)), rng.random((100, 2))]
    uniform = rng.random((200_000, 2))
    directions = np.array([[1.0, 0], [-1.0, 0]])
    norm = RelevanceNorm(2, momentum=1.0).double()
    means = cluster_scores(norm(torch.tensor(data @ directions.T))).mean(0)
    np.testing.assert_allclose(means, 0.5, atol=2e-3)  # under the data
    norm.eval()
    integrals = cluster_scores(norm(torch.tensor(uniform @ directions.T))).mean(0).numpy()
    assert abs(integrals[0] - integrals[1]) > 0.2  # eq. 4.17: both 0.5 V


def test_T11_twice_the_score_times_the_density_of_the_data_is_a_density():
    """On a line, by quadrature against a skew density of the data."""
    x = np.linspace(0, 12, 24_001)
    density = x * np.exp(-x)
    density /= np.trapezoid(density, x)
    mean = np.trapezoid(x * density, x)
    std = math.sqrt(np.trapezoid((x - mean) ** 2 * density, x))
    for sign in (1, -1):
        h = expit(sign * (x - mean) / std / 5)
        assert np.trapezoid(2 * h * density, x) == pytest.approx(1, abs=1e-3)
        assert abs(np.trapezoid(h, x) / 12 - 0.5) > 0.05


def test_T12_the_printed_score_is_not_normalised():
    """Eq. 4.12's first form on raw scores has another mean than eq. 4.14's."""
    a = numbers(50, 3)
    printed = expit(a / 5).mean(0)
    assert (abs(printed - 0.5) > 0.03).all()
    np.testing.assert_allclose(mean_score(a, 5.0), 0.5, atol=2e-3)


def hard(sizes):
    """Scores of a hard partition: 1 for the own cluster, 0 for the others."""
    return np.repeat(np.eye(len(sizes)), sizes, axis=0)


def normalized(a):
    return normalize_relevance(torch.tensor(a), 1e-12)


@pytest.mark.parametrize(
    ("k", "exact", "cooled", "sharpened"),
    [(2, 0.550, 0.599, 0.881), (10, 0.129, 0.178, 0.757), (20, 0.071, 0.116, 0.838)],
)
def test_T13_the_softmax_is_no_approximation_of_the_posterior(k, exact, cooled, sharpened):
    a = normalized(hard([12] * k))

    def own(posterior):
        return posterior.amax(1).mean().item()

    assert own(exact_posterior(a)) == pytest.approx(exact, abs=6e-4)
    assert own(sharpened_posterior(a / 5)) == pytest.approx(cooled, abs=6e-4)
    assert own(sharpened_posterior(a)) == pytest.approx(sharpened, abs=6e-4)
    assert own(sharpened_posterior(a)) > 1.5 * own(exact_posterior(a))
    assert own(sharpened_posterior(a / 10)) == pytest.approx(exact, abs=0.012)  # 2 gamma


def test_T13_the_likelihood_is_content_with_noise():
    """Of exact densities h_j / (its mean): noise that sums to zero is as good as a partition."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(1280, 10)) * (1 + np.arange(10))

    def evidence(a):
        h = cluster_scores(normalized(a)).numpy()
        return np.log((h / h.mean(0)).mean(1)).mean()

    a = by_hand(noise, 0)
    for _ in range(50):  # rows and columns in turn: scores of variance 1 that sum to zero
        a = by_hand(a - a.mean(1, keepdims=True), 0)
    partition = evidence(hard([128] * 10))
    assert abs(partition) < 1e-9 and -1e-6 < evidence(a) <= 1e-12
    assert -evidence(noise) > 2e-4  # noise as it comes
    expected = -(by_hand(noise, 0).mean(1) ** 2).mean() / (8 * 25)
    assert evidence(noise) == pytest.approx(expected, rel=0.03)
    one = rng.normal(size=(500, 1))
    assert evidence(np.hstack([one, -one])) == pytest.approx(0, abs=1e-9)


def test_T13_the_exact_posterior_has_a_ceiling():
    """The largest score there is at n = 128, the nine others at 0."""
    a = torch.zeros(1, 10, dtype=torch.float64)
    a[0, 3] = normalized_score_bound(128)
    assert exact_posterior(a).max().item() == pytest.approx(0.167, abs=5e-4)
    assert sharpened_posterior(a).max().item() > 0.999


def test_T13_a_smaller_gamma_is_as_sharp_and_prefers_the_partition_turned_over():
    """Ten equal clusters: scores 3 inside, -1/3 outside, or the same with the other sign."""
    partition = normalized(hard([12] * 10))
    own = expit(30) / (expit(30) + 9 * expit(-10 / 3))
    assert exact_posterior(partition, 0.1).max().item() == pytest.approx(own, abs=1e-9)
    assert own > sharpened_posterior(partition).max().item()
    for gamma in (5, 1, 0.1):
        values = {
            sign: np.log(expit(sign * 3 / gamma) + 9 * expit(-sign / (3 * gamma)))
            for sign in (1, -1)
        }
        for sign, value in values.items():
            h = cluster_scores(sign * partition, gamma)
            assert h.sum(1).log().mean().item() == pytest.approx(value, abs=1e-9)
        assert values[-1] > values[1]
    assert values[-1] - values[1] > 1.8  # at 0.1
    assert torch.logsumexp(partition, 1).mean() > torch.logsumexp(-partition, 1).mean() + 0.7


def loss_of(a, posterior):
    a = normalized(a)
    return em_loss(a, posterior(a)).item()


def test_T13_with_exact_posteriors_the_loss_is_almost_flat():
    partitions = hard([12] * 10), hard([119] + [1] * 9)
    sharp = [loss_of(a, sharpened_posterior) for a in partitions]
    exact = [loss_of(a, exact_posterior) for a in partitions]
    assert sharp[1] - sharp[0] > 0.14 and 0 < exact[1] - exact[0] < 0.005
    assert exact == pytest.approx([0.690, 0.693], abs=6e-4)


@pytest.mark.parametrize(
    ("sizes", "loss"),
    [([64, 64], 0.622), ([32, 96], 0.635), ([8, 120], 0.668), ([1, 127], 0.688)],
)
def test_T14_balanced_partitions_are_the_best(sizes, loss):
    assert loss_of(hard(sizes), sharpened_posterior) == pytest.approx(loss, abs=6e-4)
    assert loss_of(hard([64, 64]), sharpened_posterior) <= loss + 6e-4


def test_T14_ten_clusters_and_the_trivial_solutions():
    balanced = loss_of(hard([12] * 10), sharpened_posterior)
    giant = loss_of(hard([119] + [1] * 9), sharpened_posterior)
    assert balanced == pytest.approx(0.508, abs=6e-4) and giant == pytest.approx(0.655, abs=2e-3)
    rng = np.random.default_rng(0)
    same = np.repeat(rng.normal(size=(128, 1)), 10, axis=1)
    expected = math.log(2) + 1 / (8 * 25)
    assert loss_of(same, sharpened_posterior) == pytest.approx(expected, abs=1e-3)
    # Without normalisation the loss has no minimum: all scores grow together.
    grown = torch.full((128, 10), 30.0)
    assert em_loss(grown, sharpened_posterior(grown)).item() < 0.003


def test_T14_any_balanced_partition_is_as_good():
    rng = np.random.default_rng(0)
    a = hard([12] * 10)
    shuffled = a[rng.permutation(len(a))]
    expected = loss_of(a, sharpened_posterior)
    assert loss_of(shuffled, sharpened_posterior) == pytest.approx(expected, rel=1e-12)


def test_T14_training_climbs_the_log_sum_exp():
    """The gradient with p held fixed is, to first order in 1 / gamma, that of another function."""
    x = torch.tensor(numbers(128, 10), requires_grad=True)
    a = normalize_relevance(x, 1e-12)
    other = -a.logsumexp(1).mean()
    (wanted,) = torch.autograd.grad(other, x, retain_graph=True)
    for gamma, error in ((5.0, 0.5), (50.0, 0.05), (500.0, 0.005)):
        loss = em_loss(a, sharpened_posterior(a), gamma)
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert (2 * gamma * gradient - wanted).norm() < error * wanted.norm()
    p = a.softmax(1)  # the loss with p moving along has another gradient, whatever gamma is
    moving = -(p * torch.nn.functional.logsigmoid(a / 500)).sum(1).mean()
    (gradient,) = torch.autograd.grad(moving, x)
    assert (1000 * gradient - wanted).norm() > 0.2 * wanted.norm()


def test_T14_free_scores_end_above_the_balanced_partition_in_the_loss():
    """Trained without a network: a worse loss and a better log-sum-exp than equal clusters."""
    a = torch.tensor(np.random.default_rng(0).normal(size=(120, 10)), requires_grad=True)
    optimizer = torch.optim.Adam([a], 0.02)
    for _ in range(1000):
        scores = normalize_relevance(a)
        optimizer.zero_grad()
        em_loss(scores, sharpened_posterior(scores)).backward()
        optimizer.step()
    scores, balanced = normalize_relevance(a.detach()), normalized(hard([12] * 10))
    assert scores.logsumexp(1).mean() > balanced.logsumexp(1).mean() + 5e-3
    assert em_loss(scores, sharpened_posterior(scores)) > 0.5079 + 1e-3


def test_T12_a_prior_in_the_loss_has_no_gradient():
    x = torch.tensor(numbers(11, 4), requires_grad=True)
    p, log_prior = softmax(numbers(11, 4, seed=1), 1), torch.tensor(np.log(PRIOR))
    with_prior = em_loss(x, torch.tensor(p), log_prior=log_prior)
    without = em_loss(x, torch.tensor(p))
    assert (with_prior - without).item() == pytest.approx(-(p.mean(0) @ np.log(PRIOR)))
    gradients = [torch.autograd.grad(loss, x)[0] for loss in (with_prior, without)]
    assert torch.equal(*gradients)


# --- as a regulariser -----------------------------------------------------------------------------


def test_it_hangs_on_a_gate():
    """It teaches two gates to part their inputs, and cannot see a bias that favours one of them."""
    torch.manual_seed(0)
    gate, x = nn.Linear(5, 2), torch.randn(200, 5)
    with torch.no_grad():
        gate.bias[0] = 4
    optimizer = torch.optim.SGD(gate.parameters(), 5.0)
    losses = []
    for _ in range(100):
        a = normalize_relevance(gate(x))
        loss = em_loss(a, sharpened_posterior(a))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert gate.bias.grad.abs().max() < 1e-6
    assert losses[-1] < losses[0] - 0.005
    assert torch.corrcoef(gate(x).T)[0, 1] < -0.99
    assert 0.4 < normalize_relevance(gate(x)).argmax(1).float().mean() < 0.6
    assert gate(x).argmax(1).float().mean() < 0.1
