"""DEC, IDEC and StatDEC on small data: what each trains, what it keeps, how it fails."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentspace.autoencoders import PlainAutoencoder, pretrain
from latentspace.dec import member_surprise, soft_assignment
from latentspace.statdec import DEC, IDEC, StatDEC
from latentspace.training import predict

SMALL = {"n_clusters": 3, "latent_dim": 2, "hidden": (16, 8), "pretrain_epochs": 30, "epochs": 8,
         "batch_size": 32, "n_init": 3, "random_state": 0, "device": "cpu"}  # fmt: skip
METHODS = [DEC, IDEC, StatDEC]
X, Y = make_blobs(
    [60, 40, 20], cluster_std=[0.5, 1, 0.7], centers=np.array([[0, 0], [9, 0], [0, 9]]) @
    np.array([[1, 0.5, 0, 2, -1], [0, 1, 1.5, -1, 1]]), random_state=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def shared():
    x = torch.tensor(X / np.sqrt((X**2).mean()), dtype=torch.float32)
    return pretrain(x, 2, (16, 8), epochs=60, batch_size=32, seed=3, device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_finds_three_groups(method):
    model = method(**SMALL).fit(X)
    assert adjusted_rand_score(Y, model.labels_) > 0.9
    assert model.labels_.shape == (120,) and model.cluster_centers_.shape == (3, 2)
    assert len(model.history_) == model.n_iter_ <= 8
    assert np.isfinite(model.history_).all(axis=None)


@pytest.mark.parametrize("method", METHODS)
def test_predictions_agree_with_the_fit(method):
    model = method(**SMALL).fit(X)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    z, centres = torch.tensor(model.transform(X)), torch.tensor(model.cluster_centers_)
    np.testing.assert_allclose(model.predict_proba(X), soft_assignment(z, centres), atol=1e-6)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1, atol=1e-6)


def test_losses_of_the_siblings():
    """On history's rows, which log both parts: each weighs them as its paper does."""
    weighed = {IDEC: (0.1, 1), StatDEC: (0.1, 0.9)}
    for method, (clustering, reconstruction) in weighed.items():
        h = method(**SMALL).fit(X).history_
        expected = clustering * h["clustering"] + reconstruction * h["reconstruction"]
        np.testing.assert_allclose(h["loss"], expected, rtol=1e-4)
    h = DEC(**SMALL).fit(X).history_  # which has no reconstruction
    np.testing.assert_array_equal(h["loss"], h["clustering"])
    assert "reconstruction" not in h


def test_the_same_autoencoder_makes_a_paired_start(shared):
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    models = [method(autoencoder=shared, **SMALL).fit(X) for method in METHODS]
    for model in models[1:]:
        np.testing.assert_array_equal(model.initial_labels_, models[0].initial_labels_)
    for name, value in shared.state_dict().items():
        assert torch.equal(value, before[name])


def test_idec_keeps_a_decoder_that_works_and_dec_does_not(shared):
    long = SMALL | {"epochs": 40, "tol": 0.0, "autoencoder": shared}
    errors = {}
    for method in (DEC, IDEC):
        model = method(**long).fit(X)
        x = model._tensor(X)
        errors[method] = float((predict(model.network_, x) - x).square().mean())
    assert errors[IDEC] < 0.5 * errors[DEC]


@pytest.mark.parametrize("method", METHODS)
def test_one_batch_an_epoch_renews_alike(method, shared):
    """With all points in one batch, a target of the batch is that of the epoch."""
    whole = SMALL | {"batch_size": len(X), "lr": 0.01, "tol": 0.0, "autoencoder": shared}
    epoch, batch = (method(renewal=r, **whole).fit(X) for r in ("epoch", "batch"))
    np.testing.assert_allclose(batch.transform(X), epoch.transform(X), atol=1e-4)
    apart = [method(renewal=r, **whole | {"batch_size": 32}).fit(X) for r in ("epoch", "batch")]
    assert not np.allclose(apart[0].transform(X), apart[1].transform(X), atol=1e-3)


def test_a_batch_makes_its_own_target(shared):
    """The loss and its gradient against DEC's formulas in numpy, whatever the epoch's target is."""
    network = copy.deepcopy(shared)
    network.centres = torch.nn.Parameter(torch.tensor([[0.0, 1], [2, 0], [-1, -1]]))
    x = torch.tensor(X[::9] / np.sqrt((X**2).mean()), dtype=torch.float32)
    wrong = torch.full((len(x), 3), 1 / 3)
    labels = torch.zeros(len(x), dtype=torch.long)
    found = DEC(renewal="batch", **SMALL)._step(network, (x, wrong, labels), None)["loss"]
    found.backward()

    difference = network.encoder(x).detach().double().numpy()[:, None] - np.array(
        [[0.0, 1], [2, 0], [-1, -1]]
    )
    kernel = 1 / (1 + (difference**2).sum(2))
    q = kernel / kernel.sum(1, keepdims=True)
    p = q**2 / q.sum(0)
    p /= p.sum(1, keepdims=True)
    np.testing.assert_allclose(found.item(), (p * np.log(p / q)).sum(1).mean(), rtol=1e-4)
    pull = -2 * ((kernel * (p - q))[:, :, None] * difference).mean(0)
    np.testing.assert_allclose(network.centres.grad, pull, rtol=1e-3, atol=1e-6)


def test_weights_of_the_targets():
    q = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    weights = {t: StatDEC(target=t)._weight(q) for t in ("frequency", "equal", "members")}
    torch.testing.assert_close(weights["frequency"], torch.tensor([1.5, 1.5]))
    torch.testing.assert_close(weights["equal"], torch.ones(2))
    torch.testing.assert_close(weights["members"] - weights["frequency"], member_surprise(q))


def test_pooling_starts_silent(shared):
    """Before training, the decoder with statistics is the decoder without them."""
    pooled = StatDEC(**SMALL)._pooled(shared).eval()
    z = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    for label in range(3):
        labels = torch.full((7,), label)
        torch.testing.assert_close(pooled(z, labels), shared.decoder(z))


def test_pooling_needs_two_hidden_layers():
    with pytest.raises(ValueError, match="2 hidden layers"):
        StatDEC(**SMALL | {"hidden": (8,)}).fit(X)
    StatDEC(pooling=False, **SMALL | {"hidden": (8,)}).fit(X)


def test_stops_when_labels_rest():
    still = DEC(tol=1.0, **SMALL).fit(X)  # less than all labels change
    assert still.n_iter_ == 1
    assert DEC(tol=0.0, **SMALL).fit(X).n_iter_ == 8


def test_callback_sees_each_target():
    seen = {}
    model = IDEC(tol=0.0, **SMALL).fit(X, callback=seen.__setitem__)
    assert list(seen) == list(range(1, 9))
    np.testing.assert_array_equal(seen[8], model.labels_)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("changed", "message"),
    [({"n_clusters": 0}, "n_clusters"), ({"n_clusters": 121}, "n_samples=120"),
     ({"lr": 0.0}, "lr"), ({"epochs": 0}, "epochs"), ({"tol": -1.0}, "tol"),
     ({"renewal": "step"}, "renewal")],
)  # fmt: skip
def test_refusals(method, changed, message):
    with pytest.raises(ValueError, match=message):
        method(**SMALL | changed).fit(X)


def test_own_refusals():
    for changed in ({"weight": 1.5}, {"target": "all"}, {"pooling": 2}):
        with pytest.raises(ValueError, match=next(iter(changed))):
            StatDEC(**SMALL, **changed).fit(X)
    with pytest.raises(ValueError, match="NaN"):
        DEC(**SMALL).fit(np.where(X[3, 1] == X, np.nan, X))


@pytest.mark.parametrize("renewal", ["epoch", "batch"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "degenerate",
    [np.full((40, 5), 3.0), np.zeros((40, 5)), np.repeat(X[:2], 20, 0)],
    ids=["identical", "zeros", "two distinct points, three clusters"],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_degenerate_data_give_finite_answers(method, degenerate, renewal):
    """Fewer distinct points than clusters: equal points share a cluster, nothing is NaN."""
    model = method(renewal=renewal, **SMALL).fit(degenerate)
    assert np.isfinite(model.transform(degenerate)).all()
    assert np.isfinite(model.history_).all(axis=None)
    np.testing.assert_allclose(model.predict_proba(degenerate).sum(1), 1, atol=1e-6)
    for row in np.unique(degenerate, axis=0):
        assert len(set(model.labels_[(degenerate == row).all(1)])) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_cluster_without_members_stays_a_cluster(method, shared):
    """A centre far from all points: no row has it, its share is small and positive, all finite."""

    class Far(method):
        def _weight(self, q):
            assert (q.sum(0) > 0).all()
            return super()._weight(q)

        def _step(self, network, batch, generator):
            with torch.no_grad():
                network.centres[2] = 1e3
            return super()._step(network, batch, generator)

    model = Far(autoencoder=shared, **SMALL | {"tol": 0.0}).fit(X)
    assert set(model.labels_) == {0, 1}
    assert np.isfinite(model.predict_proba(X)).all() and np.isfinite(model.history_).all(axis=None)


@pytest.mark.parametrize("renewal", ["epoch", "batch"])
def test_an_interrupted_fit_changes_nothing(renewal):
    def stop(epoch, labels):
        raise KeyboardInterrupt

    model = DEC(renewal=renewal, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, callback=stop)
    with pytest.raises(NotFittedError):
        model.predict(X)
    before = model.fit(X).predict_proba(X)
    with pytest.raises(KeyboardInterrupt):
        model.fit(-3 * X[:50], callback=stop)
    np.testing.assert_array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("renewal", ["epoch", "batch"])
@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_fit_in_any_unit(method, renewal):
    first, again, tiny = (method(renewal=renewal, **SMALL).fit(x) for x in (X, X.copy(), 1e-9 * X))
    np.testing.assert_array_equal(first.transform(X), again.transform(X))
    assert adjusted_rand_score(first.labels_, tiny.labels_) == 1
    assert clone(first).get_params() == first.get_params()


def test_mirrored_widths():
    network = PlainAutoencoder(6, 2, (5, 4))
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
    assert shapes == [(5, 6), (4, 5), (2, 4), (4, 2), (5, 4), (6, 5)]


@parametrize_with_checks(
    [m(**SMALL | {"n_clusters": 2, "pretrain_epochs": 20, "epochs": 4}) for m in METHODS]
    + [DEC(renewal="batch", **SMALL | {"n_clusters": 2, "pretrain_epochs": 20, "epochs": 4})]
)
def test_scikit_learn(estimator, check):
    check(estimator)
