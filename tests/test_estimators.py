"""What holds for every estimator: units, layouts, threads, interrupted fits, random states."""

import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn
from torchvision.models import vit_b_16

from latentspace import data
from latentspace.deepkde import DeepKDE
from latentspace.estimators import column_scales, draw_seed, initial_weights
from latentspace.mixture_of_experts import MixtureOfExperts
from latentspace.multipath_classifier import MultiPathClassifier
from latentspace.networks import classifier
from latentspace.neural_mixture import NeuralMixture
from latentspace.swav import SwAV

SHAPES = data.load("colour-shapes", "test")
IMAGES, SHAPE = SHAPES.x[:48], SHAPES.y[:48]
MOONS = data.moons(400, seed=3)
SEEDED = {"random_state": 0, "device": "cpu"}


def jitter(x, generator):
    return x + 0.05 * torch.randn(x.shape, generator=generator)


EXPERTS = {"latent_dim": 2, "umap": False, "filters": 1, "expert_dim": 2, "pretrain_epochs": 1,
           "manager_epochs": 1, "epochs": 2, "expert_epochs": 1}  # fmt: skip

# Name: (estimator, data to fit, labels, other data of another unit).
CASES = {
    "DeepKDE": (
        DeepKDE(hidden=(8,), epochs=3, batch_size=100, **SEEDED), MOONS.x, MOONS.y, 9 * MOONS.x + 7
    ),
    "DeepKDE to a normal": (
        DeepKDE("normal", hidden=(8,), epochs=3, batch_size=100, **SEEDED),
        MOONS.x, MOONS.y, 9 * MOONS.x + 7,
    ),
    "MixtureOfExperts": (
        MixtureOfExperts("gaussian", 2, **EXPERTS, views=None, **SEEDED),
        MOONS.x, None, 9 * MOONS.x + 7,
    ),
    "MixtureOfExperts on images": (
        MixtureOfExperts("gaussian", 2, **EXPERTS, **SEEDED), IMAGES, None, 255 - IMAGES[:20]
    ),
    "MultiPathClassifier": (
        MultiPathClassifier("R F8 R", epochs=3, **SEEDED), MOONS.x, MOONS.y, 9 * MOONS.x + 7
    ),
    "MultiPathClassifier on images": (
        MultiPathClassifier("R C4 M R F8", epochs=2, batch_size=16, shift=1, flip=True, **SEEDED),
        IMAGES, SHAPE, 255 - IMAGES[:20],
    ),
    "NeuralMixture": (
        NeuralMixture(3, (8,), epochs=3, augment=jitter, **SEEDED), MOONS.x, None, 9 * MOONS.x + 7
    ),
    "NeuralMixture on images": (
        NeuralMixture(3, plan="C4 M F8", epochs=2, batch_size=16, **SEEDED),
        IMAGES, None, 255 - IMAGES[:20],
    ),
    "SwAV": (
        SwAV(4, dim=4, global_size=8, local_size=6, n_local=1, epochs=2, batch_size=16, **SEEDED),
        IMAGES, None, IMAGES[:20, ..., :1],
    ),
}  # fmt: skip
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
on_images = {name: case for name, case in CASES.items() if case[1].ndim > 2}
on_vectors = [case for case in CASES.values() if case[1].ndim == 2]


def answers(model, x):
    """All that a fitted model says of ``x``."""
    names = ("predict", "predict_proba", "transform", "decision_function", "score_samples", "gates")
    return {name: getattr(model, name)(x) for name in names if hasattr(model, name)}


def assert_same(a, b):
    assert a.keys() == b.keys() and a
    for name in a:  # gates are a list of arrays
        pairs = zip(a[name], b[name], strict=True) if name == "gates" else [(a[name], b[name])]
        for one, other in pairs:
            np.testing.assert_array_equal(one, other)


# --- initial weights and seeds --------------------------------------------------------------------


def build():
    modules = [
        nn.Linear(3, 4), nn.Conv2d(3, 4, 3), nn.PReLU(), nn.BatchNorm1d(3), nn.Embedding(5, 3),
        nn.MultiheadAttention(8, 2), nn.LSTM(3, 4), nn.TransformerEncoderLayer(8, 2),
        nn.Bilinear(2, 3, 4), nn.utils.parametrizations.orthogonal(nn.Linear(3, 3)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), vit_b_16(),
        *(classifier(name, 3, 4) for name in ("cnn", "resnet8", "resnet18")),
    ]  # fmt: skip
    drawn = [
        torch.rand(3), torch.randn(20), torch.randint(5, (3,)), torch.randperm(9),
        torch.rand_like(torch.zeros(4)), torch.randn_like(torch.zeros(40)),
        torch.normal(0.0, 1.0, (3,)), nn.init.trunc_normal_(torch.empty(99)),
        nn.init.orthogonal_(torch.empty(4, 4)), torch.empty(5).exponential_(),
    ]  # fmt: skip
    return [*drawn, *(v for module in modules for v in module.state_dict().values())]


def test_initial_weights_are_those_of_the_seed_and_touch_no_global_state():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = build()
    before = torch.get_rng_state()
    with initial_weights(5):
        found = build()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(found) == len(expected) > 200
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_generator_that_is_given_stays_in_use():
    def draw():
        return torch.randn(4, generator=torch.Generator().manual_seed(1))

    with initial_weights(5):
        inside = draw()
    assert torch.equal(inside, draw())


def test_seeds_follow_random_state():
    assert draw_seed(3) == draw_seed(np.random.RandomState(3)) == draw_seed(np.int64(3))
    source = np.random.RandomState(3)
    assert draw_seed(source) != draw_seed(source)


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1.0, 1e-12, 1e12, 1e-300, 1e300])
def test_column_scales_are_mean_and_deviation_in_any_unit(unit):
    rng = np.random.default_rng(0)
    x = rng.normal([3, -50, 0], [1, 20, 1e-6], (200, 3))
    mean, scale = column_scales(x * unit)
    np.testing.assert_allclose(mean / unit, x.mean(0), rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(scale / unit, x.std(0), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_constant_columns(dtype):
    """They are told by the last places of their own numbers, not by a number in some unit."""
    eps = np.finfo(dtype).eps
    value = np.array([0, 5, 0.1, 1e9, 1e-20, -7e25], dtype)
    still = np.tile(value, (50, 1))
    mean, scale = column_scales(still)
    np.testing.assert_array_equal(mean, value)
    np.testing.assert_array_equal(scale, 1)
    last_place = still.copy()
    last_place[::2] *= 1 + eps
    np.testing.assert_array_equal(column_scales(last_place)[1], 1)
    moving = still.copy()
    moving[::2] *= 1 + 100 * eps
    np.testing.assert_array_less(column_scales(moving)[1][1:] / abs(value[1:]), 100 * eps)
    assert (column_scales(moving)[1][1:] != 1).all()


@pytest.mark.parametrize("unit", [1e-12, 1e12])
@pytest.mark.parametrize("make", [
    lambda: DeepKDE(hidden=(16,), epochs=30, batch_size=200, **SEEDED),
    lambda: NeuralMixture(2, (16,), epochs=30, lr=0.01, **SEEDED),
    lambda: MultiPathClassifier("R F16 R", epochs=30, **SEEDED),
], ids=["DeepKDE", "NeuralMixture", "MultiPathClassifier"])  # fmt: skip
def test_moons_in_any_unit(make, unit):
    x, y = MOONS.x.astype(float), MOONS.y

    def share(x):
        right = (make().fit(x, y).predict(x) == y).mean()
        return max(right, 1 - right)

    accuracy = share(x)
    assert accuracy > 0.7
    assert share(x * unit) == pytest.approx(accuracy, abs=0.015)


# --- layouts and types ----------------------------------------------------------------------------


def on_disk(x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def read_only(x, tmp_path):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "reversed": lambda x, _: x[::-1].copy()[::-1],
    "mirrored": lambda x, _: x[..., ::-1].copy()[..., ::-1],
    "every other": lambda x, _: np.repeat(x, 2, 1)[:, ::2],
    "column-major": lambda x, _: np.asfortranarray(x),
    "byte order": lambda x, _: x.astype(x.dtype.newbyteorder(">")),
    "memory-mapped": on_disk,
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@each
def test_the_layout_of_an_array_changes_nothing(case, layout, tmp_path):
    model, x, y, _ = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = clone(model).fit(x, y)
        other = clone(model).fit(layout(x, tmp_path), y)
        assert_same(answers(other, layout(x, tmp_path)), answers(clean, x))
        if hasattr(model, "inverse_transform"):
            z = clean.transform(x)
            np.testing.assert_array_equal(
                clean.inverse_transform(layout(z, tmp_path)), clean.inverse_transform(z)
            )


@pytest.mark.parametrize("case", on_vectors, ids=lambda case: type(case[0]).__name__)
def test_vectors_of_every_type(case):
    model, x, y, _ = case
    whole = np.rint(20 * (x + 2)).clip(0, 100)
    clean = clone(model).fit(whole.astype(float), y)
    expected = answers(clean, whole.astype(float))
    for dtype in "bhilqBHILQefdg":
        assert_same(answers(clean, whole.astype(dtype)), expected)
    frame = pd.DataFrame(whole, columns=["a", "b"])
    assert_same(answers(clone(model).fit(frame, y), frame), expected)


@pytest.mark.parametrize("case", on_images.values(), ids=on_images)
def test_images_have_one_contract(case):
    """Bytes or floats in [0, 1], with or without an axis of one channel."""
    model, x, y, _ = case
    x = x[..., 0]
    clean = clone(model).fit(x, y)
    expected = answers(clean, x)
    assert_same(answers(clone(model).fit(x[..., None], y), x[..., None]), expected)
    for dtype in "fd":
        floats = (x.astype(np.float32) / np.float32(255)).astype(dtype)
        assert_same(answers(clean, floats), expected)
    for bad in (x.astype(int), x.astype(float), x[0], x[..., None].repeat(2, 3), -(x / 255.0)):
        with pytest.raises(ValueError, match="must"):
            clean.predict(bad)
        if bad.ndim > 2 or isinstance(model, SwAV):  # to the others a matrix is vectors
            with pytest.raises(ValueError, match="must"):
                clone(model).fit(bad, y)


# --- threads --------------------------------------------------------------------------------------


@each
def test_threads_change_nothing(case):
    model, x, y, _ = case
    python, numpy_, torch_ = np.random.get_state(), np.random.get_state()[1], torch.get_rng_state()
    expected = answers(clone(model).fit(x, y), x)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: answers(clone(model).fit(x, y), x), range(8)))
    finally:
        sys.setswitchinterval(interval)
    for each_answer in found:
        assert_same(each_answer, expected)
    assert torch.equal(torch.get_rng_state(), torch_)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_)
    assert np.random.get_state()[2] == python[2]


def test_weights_drawn_in_threads_are_those_of_each_seed():
    start = threading.Barrier(4)

    def weights(seed):
        start.wait()
        with initial_weights(seed):
            return [nn.Linear(9, 9).weight for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        for seed, found in enumerate(pool.map(weights, range(4))):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                assert all(torch.equal(w, nn.Linear(9, 9).weight) for w in found)


# --- interrupted and repeated fits ----------------------------------------------------------------


def interrupt(epoch, model):
    if epoch == 2:
        raise KeyboardInterrupt


@each
def test_an_interrupted_fit_leaves_the_estimator_as_it_was(case):
    model, x, y, other = case
    y_other = None if y is None else y[: len(other)]
    fresh = clone(model)
    with pytest.raises(KeyboardInterrupt):
        fresh.fit(x, y, callback=interrupt)
    assert vars(fresh).keys() == vars(clone(model)).keys()
    with pytest.raises(NotFittedError):
        fresh.predict(x)

    fitted = clone(model).fit(x, y)
    before, state = answers(fitted, x), dict(vars(fitted))
    with pytest.raises(KeyboardInterrupt):
        fitted.fit(other, y_other, callback=interrupt)
    assert vars(fitted).keys() == state.keys()
    assert all(vars(fitted)[name] is value for name, value in state.items())
    assert_same(answers(fitted, x), before)
    with pytest.raises(ValueError):
        fitted.set_params(epochs=-1).fit(x, y)
    assert_same(answers(fitted, x), before)


def test_a_fit_trains_a_copy_of_the_backbone():
    backbone = classifier("cnn", 3, 1)
    weights = {name: value.clone() for name, value in backbone.state_dict().items()}
    model = clone(CASES["SwAV"][0]).set_params(backbone=backbone).fit(IMAGES)
    assert model.backbone is backbone
    assert all(torch.equal(weights[name], v) for name, v in backbone.state_dict().items())
    assert not torch.equal(model.network_.backbone.body[0].weight, weights["body.0.weight"])


def test_a_second_fit_forgets_the_first():
    model = clone(CASES["DeepKDE"][0]).fit(MOONS.x, MOONS.y)
    model.set_params(target="normal").fit(MOONS.x, MOONS.y)
    assert not hasattr(model, "centres_") and not hasattr(model, "predict_proba")
    mixture = clone(CASES["NeuralMixture on images"][0]).fit(IMAGES).fit(MOONS.x)
    assert not hasattr(mixture, "image_shape_") and mixture.predict(MOONS.x).shape == (400,)
    mixture.fit(IMAGES)
    assert not hasattr(mixture, "mean_") and not hasattr(mixture, "n_features_in_")
    paths = clone(CASES["MultiPathClassifier on images"][0]).fit(IMAGES, SHAPE)
    paths.set_params(plan=None).fit(MOONS.x, MOONS.y)
    assert not hasattr(paths, "image_shape_") and paths.predict(MOONS.x).shape == (400,)


@each
def test_parameters_changed_after_a_fit_have_no_say(case):
    model, x, y, _ = case
    fitted = clone(model).fit(x, y)
    before = answers(fitted, x)
    changes = {"target": "normal", "standardize": False, "n_clusters": 7, "global_size": 16}
    changes |= {"plan": "F4", "paths": 3}
    fitted.set_params(**{k: v for k, v in changes.items() if k in fitted.get_params()})
    assert_same(answers(fitted, x), before)


# --- imports --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "deepkde", "mixture_of_experts", "multipath_classifier", "neural_mixture", "swav", "extractors",
])  # fmt: skip
def test_an_estimators_import_brings_no_more_than_it_needs(name):
    code = f"import sys, latentspace.{name}; print(*sys.modules)"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "lib")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = {"torchvision", "matplotlib", "accelerate", "umap", "hdbscan", "numba", "mlxtend"}
    assert not heavy & set(done.stdout.split())
