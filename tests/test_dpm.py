"""The split and merge mixture against scikit-learn, scipy and scikit-learn's contract."""

import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, wishart
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentspace.dirichlet import default_prior, label_statistics, log_marginal_likelihood
from latentspace.dpm import (
    DPMixture,
    accept_merges,
    accept_splits,
    learn_prior,
    principal_halves,
)

SIZES, CENTRES = (300, 150, 60, 200, 40), np.array([[0, 0], [9, 2], [3, 12], [-8, -6], [12, 12]])


def blobs(seed=0):
    """Five Gaussians of unequal sizes and shapes in the plane: x (750, 2), y."""
    rng = np.random.default_rng(seed)
    x, y = [], np.repeat(np.arange(5), SIZES)
    for k, (n, centre) in enumerate(zip(SIZES, CENTRES, strict=True)):
        shape = np.array([[1.0 + 0.3 * k, 0], [0.5, 1.2 - 0.2 * k]])
        x.append(rng.normal(size=(n, 2)) @ shape.T + centre)
    return np.concatenate(x), y


X, Y = blobs()


@parametrize_with_checks([DPMixture(random_state=0)])
def test_scikit_learn(estimator, check):
    check(estimator)


# --- the prior ---


def test_learned_psi_maximises_the_marginal_likelihood_with_its_hyperprior():
    x, labels = torch.tensor(X), torch.tensor(Y)
    stats, prior = label_statistics(x, labels, 5), default_prior(x, psi_scale=1.0)
    base = prior.psi
    best = learn_prior(prior, base, stats, steps=500)

    def objective(psi):
        hyper = wishart(4, base.numpy() / 4).logpdf(psi.numpy())
        return float(log_marginal_likelihood(prior._replace(psi=psi), stats).sum()) + hyper

    rng = np.random.default_rng(0)
    for _ in range(30):
        step = torch.tensor(np.eye(2) + 0.1 * rng.normal(size=(2, 2)))
        assert objective(step @ best.psi @ step.T) < objective(best.psi)
    assert objective(prior.psi) < objective(best.psi) - 1


def test_learned_psi_of_duplicates_stays_positive():
    x = torch.tensor(np.repeat(X[:4], 50, axis=0))
    prior = default_prior(x, psi_scale=1.0)
    stats = label_statistics(x, torch.arange(4).repeat_interleave(50), 4)
    psi = learn_prior(prior, prior.psi, stats, steps=1000).psi
    assert torch.linalg.eigvalsh(psi).min() > 0


# --- the moves ---


def test_principal_halves_are_two_means_of_each_cluster():
    labels = torch.tensor(np.minimum(Y, 2))  # the third cluster holds three blobs
    x = torch.tensor(X)
    halves = principal_halves(x, labels, label_statistics(x, labels, 3), steps=50).numpy()
    for k in range(3):
        own = labels.numpy() == k
        centred = X[own] - X[own].mean(0)
        axis = np.linalg.svd(centred, full_matrices=False)[2][0]
        step = (centred @ axis).std() * axis
        start = X[own].mean(0) + np.array([-step, step])
        theirs = KMeans(2, init=start, n_init=1, algorithm="lloyd", tol=0).fit_predict(X[own])
        assert adjusted_rand_score(halves[own], theirs) == 1


def test_splits_and_merges_are_decided_by_separation():
    x, generator = torch.tensor(X), torch.Generator().manual_seed(0)
    prior = learn_prior(default_prior(x), default_prior(x, psi_scale=1.0).psi,
                        label_statistics(x, torch.tensor(Y), 5))  # fmt: skip
    # Blob 0 cut at random, and blobs 1 and 2 as one cluster.
    coin = torch.tensor(np.random.default_rng(1).integers(2, size=300))
    first = label_statistics(x, torch.cat([coin, torch.tensor(Y[300:]) * 0 + 2]), 3)
    halves = [[t[:1] for t in first], [t[1:2] for t in first]]
    both = label_statistics(x, torch.tensor(Y), 5)
    a = type(both)(*(torch.cat([h, t[1:2]]) for h, t in zip(halves[0], both, strict=True)))
    b = type(both)(*(torch.cat([h, t[2:3]]) for h, t in zip(halves[1], both, strict=True)))
    accepted, log_ratio = accept_splits(a, b, prior, 10.0, generator)
    assert accepted.tolist() == [False, True]
    assert log_ratio[0] < -5 and log_ratio[1] > 5
    assert accept_merges(both, prior, 10.0, generator) == []
    pieces = torch.where(
        torch.tensor(Y) == 0, torch.cat([coin * 5, coin.new_zeros(450)]), torch.tensor(Y)
    )
    ((i, j, ratio),) = accept_merges(label_statistics(x, pieces, 6), prior, 10.0, generator)
    assert (i, j) == (0, 5) and ratio == pytest.approx(-float(log_ratio[0]))


def test_a_neighbour_is_another_cluster_and_a_cluster_merges_once():
    """Official code counts the cluster itself among its three nearest, which leaves two."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(900, 1)))
    stats = label_statistics(x, torch.arange(900) % 9, 9)  # one Gaussian: every merge is good
    generator = torch.Generator().manual_seed(0)
    prior = default_prior(x, kappa=1.0, psi_scale=1.0)
    pairs = accept_merges(stats, prior, 1.0, generator, neighbours=8)
    members = [k for i, j, _ in pairs for k in (i, j)]
    assert len(pairs) == 4 and len(set(members)) == 8
    assert [r for *_, r in pairs] == sorted((r for *_, r in pairs), reverse=True)
    gaps = (stats.mean - stats.mean.T).abs().fill_diagonal_(math.inf)
    nearest = gaps.argmin(1).tolist()
    one = accept_merges(stats, prior, 1.0, generator, neighbours=1)
    assert one and all(i < j and (nearest[i] == j or nearest[j] == i) for i, j, _ in one)


# --- the estimator ---


@pytest.mark.parametrize("initial", [1, 7, 30])
@pytest.mark.parametrize("coarsening", [None, 660.0])
def test_finds_five_from_any_start(initial, coarsening):
    model = DPMixture(initial, coarsening=coarsening, random_state=0).fit(X)
    assert model.n_clusters_ == 5
    assert adjusted_rand_score(Y, model.labels_) > 0.98
    before, after = model.events_.before, model.events_.after
    assert (after - before).tolist() == [
        1 if kind == "split" else -1 for kind in model.events_.kind
    ]
    history = model.history_
    assert history.splits.sum() - history.merges.sum() == len(before[after > before]) - len(
        before[after < before]
    )
    assert history.n_clusters.iloc[-1] == 5 and len(history) == model.n_iter_


def test_density_and_assignments_are_the_mixtures():
    model = DPMixture(random_state=0).fit(X)
    parts = zip(model.weights_, model.means_, model.covariances_, strict=True)
    joint = np.stack([w * multivariate_normal(m, c).pdf(X) for w, m, c in parts], 1)
    np.testing.assert_allclose(model.score_samples(X), np.log(joint.sum(1)), rtol=1e-8)
    np.testing.assert_allclose(
        model.predict_proba(X), joint / joint.sum(1, keepdims=True), atol=1e-8
    )
    np.testing.assert_array_equal(model.predict(X), joint.argmax(1))
    assert adjusted_rand_score(model.predict(X), model.labels_) > 0.98
    assert model.weights_.sum() == pytest.approx(1)
    mean = model.score_samples(X).mean()
    assert model.history_.log_likelihood.iloc[-1] == pytest.approx(mean, abs=0.02)


def test_a_seed_repeats_and_pickles():
    a, b = (DPMixture(9, random_state=3).fit(X) for _ in range(2))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    again = pickle.loads(pickle.dumps(a))
    np.testing.assert_array_equal(again.predict(X), a.predict(X))


def test_callback_sees_every_round():
    seen = []
    model = DPMixture(random_state=0).fit(X, callback=lambda epoch, s: seen.append((epoch, s)))
    assert [epoch for epoch, _ in seen] == list(range(1, model.n_iter_ + 1))
    ends = [int(s.labels.max()) + 1 for _, s in seen]
    assert ends == model.history_.n_clusters.tolist()
    np.testing.assert_allclose(seen[-1][1].means, model.means_, atol=0.05)


@pytest.mark.parametrize("factor", [1e8, 1e-150])
def test_units_and_origin_do_not_matter(factor):
    reference = DPMixture(random_state=0).fit(X)
    model = clone(reference).fit(X * factor)
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    np.testing.assert_allclose(model.means_, reference.means_ * factor, rtol=1e-6)
    moved = clone(reference).fit(X + 1e6)
    assert adjusted_rand_score(moved.labels_, reference.labels_) == 1
    difference = reference.score_samples(X) - model.score_samples(X * factor)
    np.testing.assert_allclose(difference, 2 * math.log(factor), rtol=1e-6)


# --- bad input ---


def test_degenerate_data():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(12, 40))  # fewer points than dimensions
    cases = {
        "identical": np.full((30, 3), 5.0),
        "one point": X[:1],
        "two points": X[:2],
        "duplicates": np.repeat(X[[0, 310, 460]], 40, axis=0),
        "constant feature": np.column_stack([X, np.full(len(X), 0.1)]),
        "copied feature": np.column_stack([X, X[:, 0]]),
        "wide": wide,
        "one dimension": X[:, :1],
    }
    for name, x in cases.items():
        for coarsening in (None, 660.0):
            model = DPMixture(coarsening=coarsening, random_state=0).fit(x)
            for part in (model.weights_, model.means_, model.covariances_, model.predict_proba(x)):
                assert np.isfinite(part).all(), name
            assert model.labels_.max() + 1 == model.n_clusters_ == len(model.weights_), name
            if name in ("identical", "one point"):
                assert model.n_clusters_ == 1
            if name == "duplicates":
                assert model.n_clusters_ == 3
            if name == "constant feature":
                assert adjusted_rand_score(Y, model.labels_) > 0.98
    more = DPMixture(20, random_state=0).fit(cases["duplicates"])  # fewer distinct points than K
    assert more.n_clusters_ == 3


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"alpha": 0}, "alpha must be"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"kappa": -1.0}, "kappa must be"),
        ({"nu": 0.5}, "nu > d - 1"),
        ({"psi_scale": 0.0}, "psi_scale must be"),
        ({"psi_scale": "auto"}, "psi_scale must be"),
        ({"coarsening": 0}, "coarsening must be"),
        ({"coarsening": math.inf}, "coarsening must be"),
        ({"initial_clusters": 0}, "initial_clusters must be"),
        ({"initial_clusters": 751}, "n_samples=750"),
        ({"max_iter": 0}, "max_iter"),
        ({"neighbours": 0}, "neighbours"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DPMixture(**parameters).fit(X)


def test_bad_data():
    holes = X.copy()
    holes[3, 1] = np.nan
    model = DPMixture(random_state=0).fit(X)
    for x, message in [(holes, "NaN"), (X[0], "2D array"), (X[:0], "0 sample")]:
        with pytest.raises(ValueError, match=message):
            clone(model).fit(x)
        with pytest.raises(ValueError, match=message):
            model.predict(x)
    with pytest.raises(ValueError, match="3 features"):
        model.predict(np.column_stack([X, X[:, 0]]))
