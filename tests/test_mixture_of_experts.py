"""The estimator: scikit-learn's contract, the whole pipeline on patches, bad input."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score, homogeneity_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.distributions import Bernoulli, Normal, kl_divergence

from latentspace import mixture_of_experts
from latentspace.estimators import draw_seed
from latentspace.images import image_tensor
from latentspace.latent_size import latent_size
from latentspace.mixture_of_experts import MixtureOfExperts
from latentspace.noise import DensityClusters
from latentspace.pretraining import pretrain

FAST = {"filters": 2, "views": None, "umap": False, "pretrain_epochs": 2, "manager_epochs": 20,
        "epochs": 2, "expert_epochs": 3, "batch_size": 20, "lr": 5e-3, "random_state": 0,
        "device": "cpu"}  # fmt: skip


@parametrize_with_checks([
    MixtureOfExperts("gaussian", 2, autoencoder=None, **FAST),
    MixtureOfExperts("gaussian", 2, autoencoder=None, vote=2, round_epochs=1, **FAST),
])  # fmt: skip
def test_scikit_learn(estimator, check):
    check(estimator)


def patches(n=90, shape=(8, 8)):
    """Images (n, h, w) with a bright patch in one of three places, and which."""
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    x = 0.1 * rng.random((n, *shape))
    half, third = shape[0] // 2, shape[1] // 3
    for i in range(n):
        x[i, half:, third * y[i] : third * (y[i] + 1)] += 0.8
    return x, y


X, Y = patches()


@pytest.fixture(scope="module")
def model():
    settings = FAST | {"expert_epochs": 60}
    return MixtureOfExperts("gaussian", 3, autoencoder=None, expert_dim=2, **settings).fit(X)


def test_what_it_returns(model):
    assert adjusted_rand_score(Y, model.labels_) == 1
    assert model.n_clusters_ == 3 and not model.noise_.any()
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_array_equal(p.argmax(1), model.labels_)
    assert model.transform(X).shape == (90, 2) and model.errors(X).shape == (90, 3)
    for k in range(3):
        own = model.labels_ == k
        np.testing.assert_allclose(model.codes(X, k)[own], model.transform(X)[own])
    assert np.abs(model.reconstruct(X) - X).mean() < 0.1
    assert len(model.history_) == model.n_iter_ == 2 and len(model.expert_history_) == 60


def test_experts_that_vote():
    """Labels by the least error, for each image and expert with torch's distributions."""
    wrong = Y.copy()
    wrong[:9] = (Y[:9] + 1) % 3
    settings = FAST | {"epochs": 0, "expert_epochs": 60, "vote": 2, "round_epochs": 5}
    model = MixtureOfExperts(wrong, autoencoder=None, expert_dim=2, **settings).fit(X)
    experts, x = model.network_.experts, torch.tensor(X, dtype=torch.float32)[:, None]
    with torch.no_grad():
        means, log_variances = experts.encode(x)
        logits = experts.decode(means)
    bounds = np.empty((90, 3))
    for k in range(3):
        pixels = Bernoulli(logits=logits[:, k], validate_args=False).log_prob(x).sum((1, 2, 3))
        code = Normal(means[:, k], (log_variances[:, k] / 2).exp())
        bounds[:, k] = pixels - kl_divergence(code, Normal(0.0, 1.0)).sum(1)
    np.testing.assert_array_equal(model.labels_, bounds.argmax(1))
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    chances = np.exp(bounds - bounds.max(1, keepdims=True))
    expected = chances / chances.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-3)
    np.testing.assert_array_equal(model.labels_, Y)
    assert np.abs(model.reconstruct(X) - X).mean() < 0.1
    assert model.n_iter_ == len(model.history_) == 0 and len(model.expert_history_) == 65
    without = clone(model).set_params(vote=0).fit(X)
    np.testing.assert_array_equal(without.manager_labels_, model.manager_labels_)
    np.testing.assert_array_equal(without.manager_labels_, without.labels_)


@pytest.mark.parametrize("latent_dim", [2, None])
def test_it_starts_from_what_pretraining_finds(latent_dim):
    x = image_tensor(X)
    settings = {"filters": 2, "views": None, "batch_size": 20, "lr": 5e-3, "device": "cpu"}
    done = pretrain(x, latent_dim=latent_dim, wide_dim=9, wide_epochs=1, epochs=3, umap=False,
                    seed=draw_seed(7), cache=False, **settings)  # fmt: skip
    changed = {"pretrain_epochs": 3, "random_state": 7}
    model = MixtureOfExperts(wide_dim=9, latent_dim=latent_dim, **FAST | changed).fit(X)
    np.testing.assert_array_equal(model.initial_labels_, done.found.labels)


def test_a_fit_writes_no_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    MixtureOfExperts(latent_dim=2, **FAST).fit(X)
    assert not list(tmp_path.iterdir())


def test_each_expert_paints_its_cluster(model):
    means = np.stack([X[c == Y].mean(0) for c in range(3)])
    for k in range(3):
        drawn = model.sample(k, 20, random_state=1)
        assert drawn.shape == (20, 8, 8) and drawn.min() >= 0 and drawn.max() <= 1
        nearest = np.abs(means - drawn.mean(0)).sum((1, 2)).argmin()
        assert nearest == Y[model.labels_ == k][0]
    np.testing.assert_array_equal(model.sample(1, 3, 0), model.sample(1, 3, 0))
    assert not np.array_equal(model.sample(1, 3, 0), model.sample(1, 3, 1))


def test_a_walk_changes_one_number_of_the_code(model):
    steps = model.walk(2, 1, [-1, 0, 2])
    z = torch.tensor([[0.0, -1.0], [0.0, 0.0], [0.0, 2.0]])
    with torch.no_grad():
        expected = model.network_.experts.grey(z[:, None].repeat(1, 3, 1))[:, 2, 0]
    np.testing.assert_allclose(steps, expected.numpy(), atol=1e-6)
    for k, unit in ((3, 0), (0, 2), (0, -1)):
        with pytest.raises(ValueError, match="to"):
            model.walk(k, unit, [0])


@pytest.mark.parametrize("channels", [1, 3])
def test_sides_that_are_no_powers_of_two(channels):
    x, y = patches(60, (5, 9))
    x = np.repeat(x[..., None], channels, 3)
    model = MixtureOfExperts(y, autoencoder=None, **FAST | {"likelihood": "gaussian"}).fit(x)
    assert model.image_shape_ == (channels, 5, 9)
    assert model.reconstruct(x).shape == ((60, 5, 9) if channels == 1 else x.shape)


def test_rows_are_flattened_images():
    rows = 50 * X.reshape(90, -1) - 7
    settings = FAST | {"image_shape": (8, 8)}
    model = MixtureOfExperts(Y, autoencoder=None, **settings).fit(rows)
    scaled = (rows - rows.min()) / np.ptp(rows)
    other = MixtureOfExperts(Y, autoencoder=None, **FAST).fit(scaled.reshape(90, 8, 8))
    np.testing.assert_allclose(model.predict_proba(rows), other.predict_proba(
        scaled.reshape(90, 8, 8)), atol=1e-4)  # fmt: skip
    assert model.reconstruct(rows).shape == rows.shape and model.sample(0, 4).shape == (4, 64)
    with pytest.raises(ValueError, match="image_shape"):
        model.set_params(image_shape=(8, 9)).fit(rows)


def test_labels_that_are_given_and_noise_that_is_not_learned():
    labels = np.where(np.arange(90) % 9 == 0, -1, Y)
    wrong = labels.copy()
    model = MixtureOfExperts(wrong, autoencoder=None, **FAST).fit(X)
    np.testing.assert_array_equal(model.noise_, labels < 0)
    assert adjusted_rand_score(Y, model.labels_) == 1  # refused images get an expert too
    soft = np.eye(3)[Y]
    assert MixtureOfExperts(soft, autoencoder=None, **FAST).fit(X).n_clusters_ == 3


def test_from_images_to_clusters_without_labels():
    """Codes, their clusters and noise; a cluster may be a part of a class, hardly of two."""
    x, y = patches(150)
    model = MixtureOfExperts(**FAST | {"pretrain_epochs": 20, "latent_dim": 2}).fit(x)
    found = model.initial_labels_
    np.testing.assert_array_equal(model.noise_, found < 0)
    assert 2 <= model.n_clusters_ == found.max() + 1
    assert homogeneity_score(y[~model.noise_], found[~model.noise_]) > 0.8


@pytest.mark.parametrize("refused", [True, False])
def test_hdbscan_that_refuses_everything_or_finds_one_cluster(refused, monkeypatch):
    n, k = len(X), 0 if refused else 1
    found = DensityClusters(np.full(n, k - 1), np.full(n, float(k)), np.ones((n, k)), np.ones(k))
    monkeypatch.setattr(mixture_of_experts, "density_clusters", lambda points, cache: found)
    model = MixtureOfExperts(autoencoder=None, **FAST)
    if refused:
        with pytest.warns(UserWarning, match="no clusters"):
            model.fit(X)
    else:
        model.fit(X)
    assert model.n_clusters_ == 1 and (model.labels_ == 0).all() and not model.noise_.any()
    assert model.reconstruct(X).shape == X.shape


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("autoencoder", [None, "VAE"])
@pytest.mark.parametrize("init", ["gaussian", Y])
def test_constant_images(init, autoencoder):
    x = np.full((90, 4, 4), 0.5)
    model = MixtureOfExperts(init, 3, autoencoder=autoencoder, **FAST).fit(x)
    assert np.isfinite(model.reconstruct(x)).all() and np.isfinite(model.sample(0, 2)).all()
    assert (model.expert_dims_ == 1).all()


def test_sizes_of_experts_follow_their_clusters():
    rng = np.random.default_rng(0)
    x = X.copy()
    x[Y == 0] = np.tile(X[0], (30, 1, 1)) * rng.random((30, 1, 1))  # one direction only
    model = MixtureOfExperts(Y, autoencoder=None, expert_dim="own", **FAST).fit(x)
    expected = [latent_size(x[k == Y].reshape(30, -1).astype(np.float32), 0.95) for k in range(3)]
    np.testing.assert_array_equal(model.expert_dims_, expected)
    assert model.expert_dims_[0] == 1 < model.expert_dims_[1]
    mean = clone(model).set_params(expert_dim="mean").fit(x)
    assert (mean.expert_dims_ == round(np.mean(expected))).all()


@pytest.mark.parametrize(
    ("settings", "x", "message"),
    [
        ({"init": "gaussian"}, X, "n_clusters"),
        ({"init": "gaussian", "n_clusters": 5}, X[:4], "n_samples=4 should be >= n_clusters=5"),
        ({"init": np.arange(4)}, X, "90 labels"),
        ({"init": np.full(90, -1)}, X, "at least one"),
        ({"init": np.full((90, 3), 0.5)}, X, "probabilities"),
        ({"init": Y.astype(float)}, X, "integer labels"),
        ({"init": np.arange(90) * 2}, X, "n_samples=90 should be >= n_clusters=179"),
        ({"init": "gaussian", "n_clusters": 2}, X * np.nan, "finite"),
        ({"init": "gaussian", "n_clusters": 2}, 2 * X, r"\[0, 1\]"),
        ({"alpha": -1.0}, X, "alpha"),
        ({"expert_dim": "most"}, X, "expert_dim"),
        ({"autoencoder": "GAN"}, X, "autoencoder"),
    ],
)
def test_bad_input(settings, x, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfExperts(**{"autoencoder": None} | FAST | settings).fit(x)


def test_questions_that_have_no_answer(model):
    with pytest.raises(NotFittedError):
        MixtureOfExperts().sample(0)
    for k in (-1, 3):
        with pytest.raises(ValueError, match="experts 0 to 2"):
            model.sample(k)
    with pytest.raises(ValueError, match="n must be"):
        model.sample(0, 0)
    with pytest.raises(ValueError, match="those of fit"):
        model.predict(X[:, :7])


def test_an_interrupted_fit_leaves_it_as_it_was(model):
    before, p = dict(vars(model)), model.predict_proba(X)

    def stop(epoch, mixture):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(X[:40], callback=stop)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(model.predict_proba(X), p)


def test_a_seed_repeats_and_no_global_state_is_touched():
    state = torch.get_rng_state()
    one, two = (MixtureOfExperts(Y, autoencoder=None, **FAST).fit(X) for _ in range(2))
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    assert torch.equal(torch.get_rng_state(), state)
