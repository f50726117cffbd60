"""The split and merge mixture against scikit-learn, scipy and scikit-learn's contract."""

import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from scipy.stats import multivariate_normal, ortho_group
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentspace.split_merge import DPMixture

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
from five_blobs import X, Y


@parametrize_with_checks([DPMixture(random_state=0)])
def test_scikit_learn(estimator, check):
    check(estimator)


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
    assert (before[1:].values == after[:-1].values).all()
    assert before.iloc[0] == initial and after.iloc[-1] == 5
    history = model.history_
    for kind in ("split", "merge"):
        assert history[f"{kind}s"].sum() == (model.events_.kind == kind).sum()
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


MIX = np.array([[2.0, -1e4], [0.5, 3e2]])
CHANGES = {
    "origin": lambda x: x + 1e6,
    "huge": lambda x: x * 1e140,
    "tiny": lambda x: x * 1e-150,
    "units": lambda x: x * [1e6, -1e-3],
    "rotation": lambda x: x @ ortho_group.rvs(2, random_state=0),
    "any linear map": lambda x: x @ MIX,
    "order of features": lambda x: x[:, ::-1],
    "copies": lambda x: np.c_[x, x, x],
    "mixtures": lambda x: x @ np.random.default_rng(0).normal(size=(2, 10)),
    "constant": lambda x: np.c_[x, np.full(len(x), 0.1)],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("options", [{}, {"psi_scale": 0.1, "initial_clusters": 8}], ids=str)
def test_a_linear_map_or_a_redundant_feature_changes_nothing(change, options):
    reference = DPMixture(random_state=0, **options).fit(X)
    model = clone(reference).fit(change(X))
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    if change(X).shape[1] == 2:
        matrix = change(np.eye(2)) - change(np.zeros((2, 2)))
        jump = math.log(abs(matrix[0, 0])) + math.log(abs(matrix[1, 1])) if matrix[0, 1] == 0 else (
            np.linalg.slogdet(matrix)[1]
        )  # fmt: skip
        difference = reference.score_samples(X) - model.score_samples(change(X))
        np.testing.assert_allclose(difference, jump, rtol=1e-6, atol=1e-6)


def test_the_order_of_the_points_does_not_matter():
    order = np.random.default_rng(0).permutation(len(X))
    a, b = DPMixture(random_state=0).fit(X), DPMixture(random_state=0).fit(X[order])
    np.testing.assert_array_equal(a.labels_[order], b.labels_)


def test_units_hide_no_cluster():
    """Two groups six standard deviations apart on the short axis of the data."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=1000)
    x = np.c_[rng.normal(0, 100, size=1000), rng.normal(size=1000) + 6 * y]
    model = DPMixture(random_state=0).fit(x)
    assert model.n_clusters_ == 2 and adjusted_rand_score(y, model.labels_) > 0.98


@pytest.mark.parametrize("mix", [None, (4, 10)])
def test_collinear_features_hide_no_cluster(mix):
    """Three groups 13 standard deviations apart."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=600)
    x = rng.normal(size=(600, 4)) + 13 / math.sqrt(2) * np.eye(4)[y]
    x = np.c_[x, x, x] if mix is None else x @ rng.normal(size=mix)
    model = DPMixture(random_state=0).fit(x)
    assert model.n_clusters_ == 3 and adjusted_rand_score(y, model.labels_) == 1
    assert model.covariances_.shape == (3, x.shape[1], x.shape[1])


def test_covariances_are_those_of_the_clusters():
    model = DPMixture(random_state=0).fit(X * [1e3, 1.0])
    for k in range(5):
        own = X[model.labels_ == k] * [1e3, 1.0]
        if len(own) > 100:
            ratio = model.covariances_[k] / np.cov(own.T)
            np.testing.assert_allclose(np.diag(ratio), 1, atol=0.25)
            np.testing.assert_allclose(model.means_[k], own.mean(0), rtol=1e-3, atol=0.01)


# --- a fit that does not end, and fits at once ---


def stop(epoch, _):
    if epoch == 2:
        raise KeyboardInterrupt


def test_an_interrupted_fit_leaves_the_estimator_as_it_was():
    model = DPMixture(random_state=0)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, callback=stop)
    with pytest.raises(NotFittedError):
        model.predict(X)
    before = vars(model.fit(X)).copy()
    expected = model.predict_proba(X)
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.c_[X * 1e3, X[:, 0] ** 2], callback=stop)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_threads_do_not_change_results_nor_the_callers_state():
    models = [DPMixture(9, random_state=seed) for seed in (0, 1) for _ in range(3)]
    torch.manual_seed(11), np.random.seed(11)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(11), np.random.seed(11)
    run = Parallel(n_jobs=3, backend="threading")
    labels = run(delayed(lambda m: m.fit(X).labels_)(model) for model in models)
    assert (torch.rand(1), np.random.rand()) == expected
    for seed in (0, 1):
        alone = DPMixture(9, random_state=seed).fit(X).labels_
        for found in labels[3 * seed : 3 * seed + 3]:
            np.testing.assert_array_equal(found, alone)


def test_import_brings_nothing_that_fit_alone_needs():
    """Beyond what torch and scikit-learn's base class load by themselves."""
    code = (
        "import sys, torch, sklearn.base; before = set(sys.modules); import latentspace.deepdpm, "
        "latentspace.split_merge; print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "latentspace.moves" in loaded
    own = {name for name in loaded if name.split(".")[0] in ("latentspace", "__mp_main__")}
    assert {name.split(".")[0] for name in loaded - own} <= set(sys.stdlib_module_names)


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
        ({"alpha": 0}, "'alpha' parameter"),
        ({"alpha": math.nan}, "'alpha' parameter"),
        ({"kappa": -1.0}, "'kappa' parameter"),
        ({"nu": 0.5}, "nu > d - 1"),
        ({"psi_scale": 0.0}, "'psi_scale' parameter"),
        ({"psi_scale": "auto"}, "'psi_scale' parameter"),
        ({"coarsening": 0}, "'coarsening' parameter"),
        ({"coarsening": math.inf}, "'coarsening' parameter"),
        ({"initial_clusters": 0}, "'initial_clusters' parameter"),
        ({"initial_clusters": 751}, "n_samples=750"),
        ({"max_iter": 0}, "'max_iter' parameter"),
        ({"neighbours": 0}, "'neighbours' parameter"),
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
