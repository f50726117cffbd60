"""Training steps against bare loops, networks against counts, the estimator's contract."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from latentspace.networks import convnet, mlp
from latentspace.neural_mixture import NeuralMixture, em_step, two_fold_step
from latentspace.relevance import RelevanceNorm
from latentspace.training import batches, fit
from latentspace.training.checkpoints import seed_of

SMALL = {"n_clusters": 3, "hidden": (8,), "epochs": 3, "batch_size": 31, "device": "cpu"}
SMALL |= {"random_state": 0}
X, Y = make_blobs(
    [60, 40, 20], cluster_std=[0.5, 1, 0.7], centers=[[0, 0], [6, 0], [0, 8]], random_state=0
)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


def jitter(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator)


@parametrize_with_checks(
    [NeuralMixture(hidden=(16,), epochs=60, batch_size=32, lr=0.01, device="cpu", random_state=0)]
)
def test_scikit_learn(estimator, check):
    check(estimator)


# --- the steps ------------------------------------------------------------------------------------


def star(a):
    return (a - a.mean(0)) / (a.var(0, unbiased=False) + 1e-5).sqrt()


def fresh():
    torch.manual_seed(7)
    model = nn.Sequential(mlp(2, 3, (8,)), RelevanceNorm(3))
    return model, torch.tensor(X, dtype=torch.float32)


def bare_loop(two_fold, gamma=4.0, epochs=2, size=31):
    """Algorithm 3 (or its EM half alone) written out; final scores and losses of each epoch."""
    model, x = fresh()
    network = model[0]
    em = torch.optim.Adam(network.parameters(), 0.01)
    consistency = torch.optim.Adam(network.parameters(), 0.02)
    history = []
    for epoch in range(1, epochs + 1):
        shuffle = torch.Generator().manual_seed(seed_of(3, epoch, "order"))
        order = torch.randperm(len(x), generator=shuffle)
        source = torch.Generator().manual_seed(seed_of(3, epoch, "step", 0))
        rows = []
        for start in range(0, len(x) - size + 1, size):
            batch = x[order[start : start + size]]
            copies = batch + 0.1 * torch.randn(batch.shape, generator=source)
            a, b = star(network(batch)), star(network(copies))
            p = a.detach().exp() / a.detach().exp().sum(1, keepdim=True)
            likelihood = torch.sigmoid(a / gamma).log() + torch.sigmoid(b / gamma).log()
            loss = -(p * likelihood).sum(1).mean()
            em.zero_grad()
            loss.backward()
            em.step()
            row = [loss.item()]
            if two_fold:
                p = star(network(batch)).softmax(1).detach()
                q = star(network(copies)).softmax(1)
                divergence = (p * (p.log() - q.log())).sum(1).mean()
                consistency.zero_grad()
                divergence.backward()
                consistency.step()
                row = [divergence.item(), *row]
            rows.append(row)
        history.append(np.mean(rows, 0))
    return star(network(x)).detach(), np.array(history)


@pytest.mark.parametrize("two_fold", [False, True], ids=["em", "two-fold"])
def test_steps_equal_a_bare_loop(two_fold):
    model, x = fresh()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    step = em_step(4.0, jitter)
    if two_fold:
        step = two_fold_step(optimizer, jitter, 4.0)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
    loader = batches(x, batch_size=31, drop_last=True)
    history = fit(model, loader, step, optimizer=optimizer, epochs=2, seed=3, progress=False)
    scores, expected = bare_loop(two_fold)
    # Not the weights: the last bias has no gradient but rounding, which Adam makes a random walk.
    torch.testing.assert_close(star(model[0](x)).detach(), scores, rtol=1e-3, atol=1e-4)
    columns = ["loss", "em"] if two_fold else ["loss"]
    np.testing.assert_allclose(history[columns], expected, rtol=1e-4)


def test_both_halves_move_the_weights():
    model, x = fresh()
    before = model[0][0].weight.detach().clone()
    em = torch.optim.SGD(model.parameters(), 0.1)
    values = two_fold_step(em, jitter)(model, (x,), torch.Generator().manual_seed(0))
    moved = model[0][0].weight.detach().clone()
    assert not torch.equal(before, moved)
    assert all(w.grad is None for w in model.parameters())
    values["loss"].backward()
    assert model[0][0].weight.grad.abs().max() > 0


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "size", "millions"),
    [
        ("C64 M C128 M C256 F32", 28, 0.77),
        ("C64 C64 M C128 C128 M C256 C256", 32, 1.309),
        ("C64 C64 M C128 C128 M C256 C256 M C256 C256", 96, 2.694),
    ],
)
def test_networks_have_the_parameters_counted_by_hand(plan, size, millions):
    network = convnet(plan, (size, size), 10)
    count = sum(w.numel() for w in network.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.0025)
    assert network(torch.rand(2, 1 if size == 28 else 3, size, size)).shape == (2, 10)


def test_mlp_is_2_32_32_10():
    shapes = [tuple(w.shape) for w in mlp(2, 10).parameters() if w.ndim == 2]
    assert shapes == [(32, 2), (32, 32), (10, 32)]


@pytest.mark.parametrize("plan", ["C4 X", "F8 C4", "F8 M", "M M M M", "C"])
def test_bad_plans(plan):
    with pytest.raises(ValueError, match="cannot be built"):
        convnet(plan, (8, 8), 3)


# --- the estimator --------------------------------------------------------------------------------


def test_it_finds_blobs():
    model = NeuralMixture(3, hidden=(32,), epochs=80, lr=0.01, batch_size=40, random_state=1)
    labels = model.fit_predict(X)
    assert adjusted_rand_score(Y, labels) > 0.7
    np.testing.assert_array_equal(model.predict(X), labels)
    assert list(model.history_.columns) == ["epoch", "loss"] and model.n_iter_ == 80


@pytest.mark.parametrize("standardize", [True, False])
def test_predictions_are_the_networks(standardize):
    """By hand from the fitted weights, normalised by running statistics."""
    model = NeuralMixture(**SMALL, standardize=standardize).fit(X)
    (first, _, last), norm = model.model_
    w = [p.detach().double().numpy() for p in (first.weight, first.bias, last.weight, last.bias)]
    x = (X - X.mean(0)) / X.std(0) if standardize else X
    hidden = np.maximum(x @ w[0].T + w[1], 0)
    a = hidden @ w[2].T + w[3]
    a = (a - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + 1e-5)
    np.testing.assert_array_equal(model.predict(X), a.argmax(1))
    p = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(X), p, atol=1e-5)
    one = model.predict_proba(X[5:6])
    np.testing.assert_allclose(one, p[5:6], atol=1e-5)


@pytest.mark.parametrize("augment", [None, jitter], ids=["em", "two-fold"])
def test_same_seed_same_numbers(augment):
    first, second, other = (
        NeuralMixture(**SMALL | {"random_state": s}, augment=augment).fit(X) for s in (0, 0, 1)
    )
    assert first.history_.equals(second.history_)
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    assert not first.history_.equals(other.history_)
    assert ("em" in first.history_) == (augment is not None)
    if augment is None:
        copied = pickle.loads(pickle.dumps(first))
        np.testing.assert_array_equal(copied.predict(X), first.predict(X))


def test_callback():
    seen = []
    NeuralMixture(**SMALL).fit(X, callback=lambda epoch, model: seen.append(epoch))
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("colour", [False, True])
def test_images(colour):
    images = np.stack([IMAGES, 255 - IMAGES, IMAGES // 2], 3) if colour else IMAGES
    model = NeuralMixture(4, plan="C4 M C6 F5", epochs=2, batch_size=20, random_state=0)
    model.set_params(augment=lambda x, g: jitter(x, g).clamp(0, 1))
    labels = model.fit_predict(images)
    assert labels.shape == (40,) and set(labels) <= set(range(4))
    assert model.predict_proba(images[:3]).shape == (3, 4)
    x = torch.tensor(images, dtype=torch.float64)[..., None] / 255
    x = (x[..., 0] if colour else x).movedim(-1, 1)
    grey = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1) if colour else x[:, 0]
    wide = F.pad(grey[:, None], (1,) * 4, mode="replicate")[:, 0]
    blurred = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    right = blurred[:, :, 2:] - blurred[:, :, :-2]
    got = model.model_[0][0](x.float())[:, 0]
    torch.testing.assert_close(got, right.float(), atol=1e-5, rtol=1e-4)
    other = images[..., 0] if colour else np.stack([images] * 3, 3)
    for bad in (images[:, 1:], other):
        with pytest.raises(ValueError, match="those of fit were"):
            model.predict(bad)
    with pytest.raises(ValueError, match="must be images"):
        model.predict(X)
    np.testing.assert_array_equal(model.predict(images / 255), labels)
    model.set_params(augment=None).fit(X)  # and then vectors
    assert model.predict(X).shape == (120,)


def test_rotated_copies_have_no_say_in_running_statistics():
    """What is scored later are originals: only they enter the running mean."""
    model, x = fresh()
    far = lambda x, g: x + 1000  # noqa: E731
    em_step(4.0, far)(model, (x,), None)
    expected = 0.1 * model[0](x).mean(0)
    torch.testing.assert_close(model[1].running_mean, expected)


# --- bad and degenerate input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "'n_clusters' parameter"),
        ({"n_clusters": 121}, "n_samples=120 should be >= n_clusters=121"),
        ({"n_clusters": 40}, "batch_size=31 should be >= n_clusters=40"),
        ({"gamma": 0.0}, "'gamma' parameter"),
        ({"gamma": math.nan}, "'gamma' parameter"),
        ({"lr": -1.0}, "'lr' parameter"),
        ({"consistency_lr": 0.0}, "'consistency_lr' parameter"),
        ({"epochs": 0}, "'epochs' parameter"),
        ({"augment": 3}, "'augment' parameter"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        NeuralMixture(**SMALL | parameters).fit(X)


def test_bad_data():
    holes = X.copy()
    holes[3, 1] = np.nan
    for bad, message in [
        (holes, "NaN"),
        (X[:2], "n_samples=2"),
        (X[:0], "0 sample"),
        (IMAGES.astype(float), "or bytes"),
        (IMAGES.astype(int), "uint8 or floats"),
        (IMAGES[..., None].repeat(2, 3), "must be images"),
    ]:
        with pytest.raises(ValueError, match=message):
            NeuralMixture(**SMALL).fit(bad)
    model = NeuralMixture(**SMALL).fit(X)
    for bad, message in [(holes, "NaN"), (X[:, :1], "1 features"), (IMAGES, "dim 3")]:
        with pytest.raises(ValueError, match=message):
            model.predict(bad)


def test_degenerate_data_have_defined_results():
    same = NeuralMixture(**SMALL).fit(np.full((40, 2), 3.3))
    assert len(set(same.labels_)) == 1 and np.isfinite(same.predict_proba(X)).all()
    constant = np.column_stack([X, np.full(len(X), 0.1)])
    assert np.isfinite(NeuralMixture(**SMALL).fit(constant).predict_proba(constant)).all()
    one = NeuralMixture(**SMALL | {"n_clusters": 1}).fit(X[:1])
    assert one.labels_.tolist() == [0] and one.predict_proba(X).tolist() == [[1.0]] * 120
    assert set(NeuralMixture(**SMALL | {"n_clusters": 1}).fit_predict(X)) == {0}


def test_clone_keeps_parameters():
    model = NeuralMixture(5, plan="C4 F3", gamma=2.0)
    assert clone(model).get_params() == model.get_params()
