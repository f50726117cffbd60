"""The estimator DeepKDE against scikit-learn's contract, scipy's densities and a bare loop."""

import math
import pickle
import random

import numpy as np
import pytest
import torch
from scipy.stats import chi, chi2, kstest, multivariate_normal, norm
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentspace.data import moons
from latentspace.deepkde import DeepKDE
from latentspace.networks import Autoencoder
from latentspace.training.checkpoints import seed_of

SMALL = {"hidden": (8,), "epochs": 3, "batch_size": 60, "random_state": 0, "device": "cpu"}
IRIS = load_iris()
X, Y = IRIS.data, IRIS.target
X2, Y2 = X[50:], Y[50:]  # two classes, 1 and 2
COLUMNS = ["pdf", "js", "cluster", "reconstruction"]


@parametrize_with_checks([DeepKDE(hidden=(16,), epochs=25, device="cpu", random_state=0)])
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def mixture():
    return DeepKDE(latent_dim=4, radius=3.0, **SMALL).fit(X, Y)


@pytest.fixture(scope="module")
def normal():
    return DeepKDE(target="normal", latent_dim=2, **SMALL).fit(X2, Y2)


# --- what it returns ------------------------------------------------------------------------------


def test_latent_points_are_the_encoders(mixture):
    """By hand from the fitted weights: standardise, Linear, BatchNorm, PReLU, Linear."""
    (linear, bn, prelu), last = mixture.network_.encoder
    x = (X - X.mean(0)) / X.std(0)
    h = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    h = (h - bn.running_mean.numpy()) / np.sqrt(bn.running_var.numpy() + bn.eps)
    h = h * bn.weight.detach().numpy() + bn.bias.detach().numpy()
    h = np.where(h > 0, h, prelu.weight.item() * h)
    z = h @ last.weight.detach().numpy().T + last.bias.detach().numpy()
    np.testing.assert_allclose(mixture.transform(X), z, atol=1e-10)
    assert list(mixture.get_feature_names_out()) == [f"deepkde{i}" for i in range(4)]


def test_predict_is_the_nearest_centre(mixture):
    z = mixture.transform(X)
    np.testing.assert_array_equal(mixture.centres_, 3 * np.eye(3, 4))
    nearest = [min(range(3), key=lambda c: math.dist(p, mixture.centres_[c])) for p in z]
    np.testing.assert_array_equal(mixture.predict(X), nearest)
    assert len(set(nearest)) > 1


def test_predict_proba_is_bayes_rule(mixture):
    z = mixture.transform(X)
    likelihood = np.stack([multivariate_normal(c).pdf(z) for c in mixture.centres_], 1)
    posterior = likelihood / likelihood.sum(1, keepdims=True)
    np.testing.assert_allclose(mixture.predict_proba(X), posterior, rtol=1e-9)
    np.testing.assert_allclose(mixture.score_samples(X), np.log(likelihood.mean(1)), rtol=1e-9)


def test_normal_target(normal):
    z = normal.transform(X2)
    np.testing.assert_array_equal(normal.predict(X2), np.where(z[:, 0] > 0, 2, 1))
    expected = multivariate_normal(np.zeros(2)).logpdf(z)
    np.testing.assert_allclose(normal.score_samples(X2), expected, rtol=1e-9)
    assert not hasattr(normal, "predict_proba") and not hasattr(normal, "centres_")
    assert hasattr(DeepKDE(), "predict_proba")


def test_inverse_transform(mixture):
    z = mixture.transform(X)
    x = mixture.inverse_transform(z)
    assert x.shape == X.shape
    scaled = torch.tensor((X - X.mean(0)) / X.std(0))
    with torch.no_grad():
        _, reconstructed = mixture.network_(scaled)
    np.testing.assert_allclose(x, reconstructed.numpy() * X.std(0) + X.mean(0))
    for bad, message in [(z[:, :3], "3 columns"), (z * np.nan, "NaN"), (z[0], "2D array")]:
        with pytest.raises(ValueError, match=message):
            mixture.inverse_transform(bad)


def test_labels_may_be_strings(mixture):
    names = IRIS.target_names[Y]
    named = clone(mixture).fit(X, names)
    np.testing.assert_array_equal(named.classes_, IRIS.target_names)
    np.testing.assert_array_equal(named.predict(X), IRIS.target_names[mixture.predict(X)])


def test_history(mixture, normal):
    for model in (mixture, normal):
        assert list(model.history_.columns) == ["epoch", "loss", *COLUMNS]
        assert model.history_.epoch.tolist() == [1, 2, 3] and model.n_iter_ == 3
        np.testing.assert_allclose(
            model.history_.loss,
            model.history_[["pdf", "cluster", "reconstruction"]] @ model.weights,
            rtol=1e-5,
        )
        entropy = (model.history_.pdf - 2 * model.history_.js).to_numpy()
        d = model.transform(X2).shape[1]
        one = d / 2 * math.log(2 * math.pi * math.e)
        most = one + (math.log(3) if model.target == "mixture" else 0)
        assert (entropy <= most + 1e-5).all() and (entropy >= one - 1e-5).all()
        assert model.history_.attrs["seconds"] > 0


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_a_term_of_weight_zero_is_not_computed(left_out):
    weights = [0.5, 0.3, 0.2]
    weights[left_out] = 0
    model = DeepKDE(**SMALL | {"weights": weights}).fit(X, Y)
    gone = [["pdf", "js"], ["cluster"], ["reconstruction"]][left_out]
    assert set(model.history_.columns) == {"epoch", "loss", *COLUMNS} - set(gone)


def test_callback_and_history():
    model = DeepKDE(**SMALL)
    seen = []
    model.fit(X, Y, callback=lambda epoch, network: seen.append((epoch, network.training)))
    assert seen == [(1, False), (2, False), (3, False)]
    assert model.history_.epoch.tolist() == [1, 2, 3] and model.n_iter_ == 3
    assert model.history_.attrs["seconds"] > 0


# --- how it trains --------------------------------------------------------------------------------


def same(a, b):
    weights = a.network_.state_dict(), b.network_.state_dict()
    return all(torch.equal(p, q) for p, q in zip(*(w.values() for w in weights), strict=True))


def test_same_seed_same_numbers():
    model = DeepKDE(**SMALL)
    first, second = clone(model).fit(X, Y), clone(model).fit(X, Y)
    other = clone(model).set_params(random_state=1).fit(X, Y)
    assert same(first, second) and first.history_.equals(second.history_)
    assert not same(first, other)
    copied = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(copied.transform(X), first.transform(X))


def test_global_random_states_are_left_alone():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    DeepKDE(**SMALL).fit(X, Y)
    assert draws() == expected


def log_kde(x, y, h, left_out=None):
    """Mean log density over the full matrix; ``left_out[i]`` names column i's own row."""
    log_kernel = -(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / (
        2 * h * h
    )
    own = torch.zeros(len(x), len(y), dtype=torch.bool)
    for i, j in enumerate(left_out or []):
        own[i, j] = j >= 0
    log_kernel = log_kernel.masked_fill(own, -math.inf)
    count = len(y) - own.sum(1)
    d = x.shape[1]
    return (log_kernel.logsumexp(1) - count.log()).mean() - d * math.log(h * math.sqrt(2 * math.pi))


def by_hand(x, labels, seed, *, normal, epochs, size, lr, drop_epoch, weights):
    """Train without `fit`, with the formulas written out; losses per epoch: total and terms."""
    n, d = len(x), 2
    k = 1 if normal else 3
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Autoencoder(x.shape[1], d if normal else 3, (8,))
    d = d if normal else 3
    centres = torch.zeros(1, d) if normal else 3 * torch.eye(3)
    threshold = min(chi(d).ppf(0.99), 3 / math.sqrt(2))
    h = size ** (-1 / (d + 4))
    optimizer = torch.optim.Adam(network.parameters())
    history = []
    for epoch in range(1, epochs + 1):
        optimizer.param_groups[0]["lr"] = lr if epoch <= drop_epoch else lr / 10
        shuffle = torch.Generator().manual_seed(seed_of(seed, epoch, "order"))
        order = torch.randperm(n, generator=shuffle)
        source = torch.Generator().manual_seed(seed_of(seed, epoch, "step", 0))
        rows = []
        for start in range(0, n - size + 1, size):
            chosen = order[start : start + size]
            z = network.encoder(x[chosen])
            component = torch.randint(k, (size,), generator=source)
            target = centres[component] + torch.randn(size, d, generator=source)
            half = size // 2
            rows_q = torch.randperm(size, generator=source)[:half].tolist()
            rows_p = torch.randperm(size, generator=source)[:half].tolist()
            both = torch.cat([z[rows_q], target[rows_p]])
            own_q = [rows_q.index(i) if i in rows_q else -1 for i in range(size)]
            own_p = [half + rows_p.index(i) if i in rows_p else -1 for i in range(size)]
            pdf = log_kde(z, z, h, list(range(size)))
            pdf = pdf - log_kde(z, both, h, own_q) - log_kde(target, both, h, own_p)
            if normal:
                side = torch.where(labels[chosen] == 0, z[:, 0], -z[:, 0])
                cluster = torch.relu(side).mean()
            else:
                length = (z - centres[labels[chosen]]).square().sum(1).sqrt()
                cluster = torch.relu(length - threshold).mean()
            residual = x[chosen] - network.decoder(z)
            terms = torch.stack([pdf, cluster, residual.square().sum(1).sqrt().mean()])
            loss = terms @ torch.tensor(weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows.append([loss.item(), *terms.tolist()])
        history.append(np.mean(rows, 0))
    return np.array(history)


@pytest.mark.parametrize("normal", [False, True], ids=["mixture", "normal"])
def test_history_equals_a_bare_loops(normal):
    x, y = (X2, Y2 - 1) if normal else (X, Y)
    settings = {"epochs": 3, "lr": 0.02, "drop_epoch": 2, "weights": (0.6, 0.3, 0.1)}
    model = DeepKDE(
        target="normal" if normal else "mixture",
        radius=3.0,
        hidden=(8,),
        batch_size=31,  # odd, and the last rows of an epoch are left out
        random_state=5,
        device="cpu",
        **settings,
    ).fit(x, y)
    seed = int(np.random.RandomState(5).randint(2**31 - 1))
    theirs = by_hand(x, torch.tensor(y), seed, normal=normal, size=31, **settings)
    ours = model.history_[["loss", "pdf", "cluster", "reconstruction"]]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"target": "uniform"}, "'target' parameter of DeepKDE must be"),
        ({"target": "normal"}, "3 classes"),
        ({"latent_dim": 2}, "do not fit into 2"),
        ({"weights": (0.5, -0.1, 0.6)}, "three non-negative"),
        ({"weights": (0.5, 0.5)}, "three non-negative"),
        ({"weights": (0, 0, 0)}, "three non-negative"),
        ({"weights": (math.nan, 1, 0)}, "three non-negative"),
        ({"radius": 0.0}, "'radius' parameter .* must be a float in the range"),
        ({"radius": math.nan}, "'radius' parameter"),
        ({"radius": math.inf}, "'radius' parameter"),
        ({"threshold": -1.0}, "'threshold' parameter"),
        ({"batch_size": 3}, "'batch_size' parameter"),
        ({"epochs": 0}, "'epochs' parameter"),
        ({"epochs": 2.5}, "'epochs' parameter"),
        ({"floor": -0.1}, "'floor' parameter"),
        ({"floor": 0.1, "leave_one_out": False}, "the weight of what is left out"),
        ({"lr": -0.1}, "'lr' parameter"),
        ({"progress": 2}, "'progress' parameter"),
        ({"random_state": "a"}, "'random_state' parameter"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DeepKDE(**SMALL | parameters).fit(X, Y)


def test_bad_data(mixture):
    holes = X.copy()
    holes[3, 1] = np.nan
    for x, y, message in [
        (holes, Y, "NaN"),
        (X, np.zeros(150), "1 class"),
        (X[:3], Y[:3], "minimum of 4"),
        (X, Y[:-1], "inconsistent numbers"),
        (X, X[:, 0], "continuous"),
        (X[:0], Y[:0], "0 sample"),
    ]:
        with pytest.raises(ValueError, match=message):
            DeepKDE(**SMALL).fit(x, y)
    with pytest.raises(ValueError, match="NaN"):
        mixture.predict(holes)
    with pytest.raises(ValueError, match="3 features"):
        mixture.transform(X[:, :3])


def test_constant_features_are_harmless():
    """Also where rounding leaves a constant a standard deviation just above 0."""
    constant = np.column_stack([X, np.full(150, 5.0), np.full(150, 0.1), np.full(150, 1e9 + 0.1)])
    model = DeepKDE(**SMALL).fit(constant, Y)
    z = model.transform(constant)
    assert np.isfinite(z).all() and np.ptp(z) > 0
    assert np.isfinite(model.inverse_transform(z)).all()


def test_a_batch_larger_than_the_data_is_the_data():
    model = DeepKDE(**SMALL | {"batch_size": 10**6}).fit(X, Y)
    assert len(model.history_) == 3


# --- it learns ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moon_sets():
    return [moons(2000, seed=seed)[:2] for seed in (3, 4)]


SHAPES = {
    "mixture": {"target": "mixture", "weights": (0.5, 0.5, 0)},
    "normal": {"target": "normal", "weights": (0.3, 0.7, 0)},
}


def train(moon_sets, **parameters):
    """Accuracy on new moons, and how far they are from the target (0 to 1).

    The distance is the largest Kolmogorov-Smirnov statistic of their squared radii around the
    centres against chi-square and of their coordinates against the normal distribution.
    """
    (x, y), (x_new, y_new) = moon_sets
    model = DeepKDE(
        hidden=(32, 32),
        epochs=60,
        drop_epoch=42,
        batch_size=500,
        random_state=0,
        device="cpu",
        **parameters,
    ).fit(x, y)
    centres = model.centres_[y_new] if model.target == "mixture" else 0
    z = model.transform(x_new) - centres
    distances = [kstest((z**2).sum(1), chi2(2).cdf), *(kstest(axis, norm.cdf) for axis in z.T)]
    return model.score(x_new, y_new), max(test.statistic for test in distances)


@pytest.mark.parametrize("shape", SHAPES)
def test_moons_take_the_target_density(shape, moon_sets):
    accuracy, distance = train(moon_sets, **SHAPES[shape])
    assert accuracy > 0.97 and distance < 0.08


def test_without_the_density_term_they_do_not(moon_sets):
    accuracy, distance = train(moon_sets, weights=(0, 1, 0))
    assert accuracy > 0.97 and distance > 0.2
