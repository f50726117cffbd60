"""The five autoencoders: their objectives from the parts, training, views, bad input."""

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from latentspace.dynamic_autoencoder import DynamicAutoencoder
from latentspace.estimators import initial_weights
from latentspace.generative_autoencoders import (
    KINDS,
    gentle_views,
    mirrored_views,
    objective,
    paint,
    train_autoencoder,
)
from latentspace.variational import mmd, warm_up


def bars(n=120, size=8, seed=0):
    """Images of one bright bar, upright or flat, at a random place."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(n, 1, size, size)
    places = torch.randint(size, (n,), generator=generator)
    for i, place in enumerate(places):
        if i % 2:
            x[i, 0, place] = 1
        else:
            x[i, 0, :, place] = 1
    return x


def network(kind, shape=(1, 8, 8)):
    with initial_weights(0):
        return DynamicAutoencoder(shape, 3, KINDS[kind].stochastic, filters=4).eval()


SMALL = {"filters": 4, "batch_size": 20, "lr": 3e-3, "device": "cpu"}


def test_the_variational_loss_is_minus_the_bound_of_torch():
    model, x = network("VAE"), bars(10)
    noise = torch.randn(10, 3, generator=torch.Generator().manual_seed(4))
    mean, log_variance = model.encode(x)
    code = Normal(mean, (log_variance / 2).exp())
    z = code.mean + code.stddev * noise
    log_likelihood = Bernoulli(logits=model.decode(z)).log_prob(x).flatten(1).sum(1)
    divergence = kl_divergence(code, Normal(0.0, 1.0)).sum(1)
    for kind, beta in (("VAE", 1), ("beta-VAE", 4)):
        found = objective(model, x, x, torch.Generator().manual_seed(4), kind=KINDS[kind], l1=0)
        expected = (beta * divergence - log_likelihood).mean()
        torch.testing.assert_close(found["loss"], expected)
        torch.testing.assert_close(found["penalty"], divergence.mean())


def test_the_wasserstein_loss_has_the_discrepancy_of_all_codes():
    for kind in ("deterministic WAE", "random WAE"):
        model, x, seeded = network(kind), bars(10), torch.Generator().manual_seed(4)
        z, log_variance = model.encode(x)
        if kind == "random WAE":
            z = z + (log_variance / 2).exp() * torch.randn(10, 3, generator=seeded)
        discrepancy = mmd(z, torch.randn(10, 3, generator=seeded))
        error = (model.decode(z) - x).square().flatten(1).sum(1).mean() / 2
        found = objective(model, x, x, torch.Generator().manual_seed(4), kind=KINDS[kind],
                          likelihood="gaussian", warmth=0.5, l1=0)  # fmt: skip
        torch.testing.assert_close(found["loss"], error + 0.5 * 10 * discrepancy)


def test_the_plain_one_has_an_error_and_the_sum_of_absolute_codes():
    model, x = network("AE"), bars(10)
    z = model(x)
    found = objective(model, x, 1 - x, kind=KINDS["AE"], l1=0.1)
    error = -Bernoulli(logits=model.decode(z)).log_prob(1 - x).flatten(1).sum(1).mean()
    torch.testing.assert_close(found["loss"], error + 0.1 * z.abs().sum(1).mean())
    assert found["penalty"] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_each_learns(kind, likelihood):
    x = bars()
    settings = {"likelihood": likelihood, "views": None, **SMALL}
    model, history = train_autoencoder(x, 3, kind, epochs=12, **settings)
    assert history["error"].iloc[-1] < 0.75 * history["error"].iloc[0]
    assert not model.training and len(history) == 12
    painted = paint(model, model(x), likelihood)
    assert painted.shape == x.shape and painted.min() >= 0 and painted.max() <= 1


def test_the_penalty_waits_for_its_warm_up(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "latentspace.generative_autoencoders.warm_up",
        lambda epoch, epochs: seen.append((epoch, epochs)) or warm_up(epoch, epochs),
    )
    train_autoencoder(bars(40), 3, epochs=3, warm_epochs=2, **SMALL)
    assert seen == [(1, 2), (1, 2), (2, 2), (2, 2), (3, 2), (3, 2)]


def test_a_seed_fixes_everything_and_global_states_stay():
    before = torch.get_rng_state()
    first, again, other = (
        train_autoencoder(bars(40), 3, epochs=2, seed=s, **SMALL)[0] for s in (1, 1, 2)
    )
    assert torch.equal(first(bars(9)), again(bars(9)))
    assert not torch.equal(first(bars(9)), other(bars(9)))
    assert torch.equal(torch.get_rng_state(), before)


def test_views_are_encoded_and_painted_or_the_image_itself(monkeypatch):
    pairs = []

    def watched(model, images, target, generator, **settings):
        pairs.append((images, target))
        return objective(model, images, target, generator, **settings)

    monkeypatch.setattr("latentspace.generative_autoencoders.objective", watched)
    x = bars(40)
    for restore in (False, True):
        pairs.clear()
        views = lambda images, generator: 1 - images  # noqa: E731
        train_autoencoder(x, 3, views=views, restore=restore, epochs=1, **SMALL)
        for view, target in pairs:
            assert torch.equal(target, 1 - view if restore else view)
            assert view.mean() > 0.5


def test_gentle_views_are_small_changes():
    x = torch.zeros(200, 1, 16, 16)
    x[:, :, 4:12, 7:9] = 1
    seen = gentle_views(x, torch.Generator().manual_seed(0))
    ink = seen.flatten(1).sum(1) / 16
    assert 0.78 < float(ink.min()) < 0.95 and 1.05 < float(ink.max()) < 1.3
    places = torch.arange(16.0) - 7.5
    centre = (seen.mean(2).squeeze(1) * places).sum(1) / seen.mean(2).squeeze(1).sum(1)
    assert 1.2 < float(centre.abs().max()) <= 1.8  # a tenth of 16 pixels, and its scaling
    assert float((seen - x).abs().mean()) < 0.1


def test_half_of_the_mirrored_views_are_mirrored():
    x = torch.zeros(400, 3, 16, 16)
    x[:, :, :, :8] = 1  # bright on the left; a mirrored one is bright on the right
    seen = mirrored_views(x, torch.Generator().manual_seed(0))
    left = seen[:, :, :, :8].sum((1, 2, 3)) > seen[:, :, :, 8:].sum((1, 2, 3))
    assert 160 < int(left.sum()) < 240  # 4 standard deviations
    plain = gentle_views(x, torch.Generator().manual_seed(0))
    assert torch.equal(seen[left], plain[left])
    assert torch.equal(seen[~left], plain[~left].flip(3))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 6, 9), (3, 32, 32)])
def test_other_shapes_and_colours(shape):
    x = torch.rand(21, *shape, generator=torch.Generator().manual_seed(0))  # 20 and a last one
    model, history = train_autoencoder(x, 3, likelihood="gaussian", epochs=1, **SMALL)
    assert np.isfinite(history["loss"]).all() and model(x).shape == (21, 3)


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_constant_images_have_one_code(grey):
    x = torch.full((20, 1, 8, 8), grey)
    model, history = train_autoencoder(x, 3, views=None, epochs=2, **SMALL)
    z = model(x)
    assert torch.isfinite(z).all() and np.isfinite(history["loss"]).all()
    torch.testing.assert_close(z, z[:1].expand_as(z))


def test_bad_input():
    x = bars(10)
    for wrong, match in (
        ({"kind": "GAN"}, "unknown"), ({"likelihood": "poisson"}, "unknown"),
        ({"latent_dim": 0}, "positive"), ({"images": x[:1]}, "n >= 2"),
        ({"images": x.flatten(1)}, "float images"), ({"images": x.byte()}, "float images"),
        ({"images": 2 * x}, r"\[0, 1\]"), ({"images": x * torch.nan}, r"\[0, 1\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            train_autoencoder(**{"images": x, "latent_dim": 3, "epochs": 1} | wrong)
