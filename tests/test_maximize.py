"""Activation maximisation against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from latentspace.images import sobel
from latentspace.maximize import (
    colour_covariance,
    gaussian_blur,
    maximize,
    total_variation,
    unit_score,
)
from latentspace.routing import CrossConnection

FREE = {"limits": (-100.0, 100.0)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def linear(weights):
    return lambda x: (weights * x).sum((1, 2, 3))


def cosine(a, b):
    return torch.cosine_similarity(a.flatten(1), b.flatten(1))


class TestMaximize:
    def test_linear_unit_in_a_ball(self):
        """Of all images at a distance r from the start, start + r w / |w| scores highest."""
        w, start = randn(3, 2, 5, 4), randn(3, 2, 5, 4, seed=1)
        w[1] *= 1000  # the length of a gradient plays no part
        found = maximize(linear(w), start, steps=400, step_size=0.1, radius=2.5, **FREE)
        norm = w.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        torch.testing.assert_close(found, start + 2.5 * w / norm, atol=1e-6, rtol=0)

    def test_linear_unit_in_a_box(self):
        w = randn(2, 1, 6, 5)
        found = maximize(linear(w), torch.full_like(w, 0.4), steps=2000, step_size=0.5)
        assert torch.equal(found, (w > 0).double())

    def test_quadratic_unit_reaches_its_peak(self):
        peak = torch.rand(2, 3, 4, 4, generator=seeded(2), dtype=torch.float64)
        start = torch.full_like(peak, 0.5)
        score = lambda x: -(x - peak).square().sum((1, 2, 3))  # noqa: E731
        found = maximize(score, start, steps=3000, step_size=1e-3)
        assert (found - peak).abs().max() < 2e-3

    def test_decorrelated_colours_are_a_step_along_the_covariance(self):
        """Steepest in u with x = A u is A A^T w: along the covariance times the weight."""
        photographs = randn(40, 3, 6, 6) @ torch.ones(6, 6, dtype=torch.float64)
        photographs[:, 1] += 2 * photographs[:, 0]
        covariance = colour_covariance(photographs)
        w, start = randn(1, 3, 4, 5, seed=5), torch.zeros(1, 3, 4, 5, dtype=torch.float64)
        found = maximize(linear(w), start, steps=1, step_size=0.7, colours=covariance, **FREE)
        a = np.linalg.cholesky(covariance.numpy())
        wanted = torch.from_numpy(np.einsum("cd,nchw->ndhw", a, w.numpy()))  # gradient in u
        wanted = torch.from_numpy(np.einsum("dc,nchw->ndhw", a, wanted.numpy()))  # and back in x
        assert cosine(found, wanted).item() == pytest.approx(1)
        assert found.norm().item() == pytest.approx(0.7)
        assert cosine(found, w).item() < 0.95

    def test_constraints_hold(self):
        w, start = randn(2, 1, 7, 7), torch.full((2, 1, 7, 7), 0.5, dtype=torch.float64)
        found = maximize(linear(w), start, steps=60, radius=2.0, limits=(0.2, 0.7))
        assert found.min() >= 0.2
        assert found.max() <= 0.7
        assert ((found - start).flatten(1).norm(dim=1) <= 2 + 1e-9).all()

    def test_smoothness_and_blur_make_smooth(self):
        w, start = randn(1, 1, 16, 16), torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
        rough = total_variation(maximize(linear(w), start, radius=3.0))
        for option in ({"smoothness": 500.0}, {"blur": 1.0}):
            assert total_variation(maximize(linear(w), start, radius=3.0, **option)) < 0.6 * rough

    def test_jitter_spreads_a_weight(self):
        """With shifts of up to one pixel, a single pixel's weight draws up to its neighbours."""
        w = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
        w[..., 4, 4] = 1
        start = torch.zeros_like(w)
        found = maximize(linear(w), start, steps=90, jitter=1, generator=seeded(), **FREE)[0, 0]
        assert (found[3:6, 3:6] > 0).all()
        assert found.sum().item() == pytest.approx(90)
        found[3:6, 3:6] = 0
        assert not found.any()

    def test_same_seed_same_picture(self):
        # Rectified units may all be off at the grey start, and then no seed changes anything.
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
        start = torch.full((3, 1, 8, 8), 0.5)
        score = unit_score(net, [0, 1, 2])
        first, again, other = (
            maximize(score, start, steps=9, jitter=2, generator=seeded(s)) for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_network_and_start_are_left_alone(self):
        net, start = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.full((2, 1, 4, 4), 0.5)
        maximize(unit_score(net, [0, 1]), start, steps=3)
        assert all(p.grad is None for p in net.parameters())
        assert torch.equal(start, torch.full((2, 1, 4, 4), 0.5))

    def test_dead_unit_leaves_the_image(self):
        start = torch.rand(2, 1, 4, 4, generator=seeded())
        found = maximize(lambda x: (x.sum((1, 2, 3)) - 1e3).relu(), start, steps=5, radius=1.0)
        assert torch.equal(found, start)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"start": torch.zeros(1, 4, 4)}, r"\(n, c, h, w\)"),
            ({"start": torch.zeros(1, 1, 4, 4, dtype=torch.int64)}, "floating-point"),
            ({"start": torch.full((1, 1, 4, 4), torch.nan)}, "NaN"),
            ({"steps": -1}, "steps"),
            ({"step_size": 0.0}, "step_size"),
            ({"radius": 0.0}, "radius"),
            ({"limits": (1.0, 0.0)}, "limits"),
            ({"jitter": -1}, "jitter"),
            ({"smoothness": -1.0}, "smoothness"),
            ({"blur": -1.0}, "blur"),
            ({"colours": torch.eye(3)}, "colours"),
            ({"score": lambda x: x.sum()}, "score must be 1"),
            ({"score": lambda x: x.sum((1, 2, 3)) * torch.nan}, "score must be 1"),
        ],
    )
    def test_bad_input(self, changes, match):
        given = {"score": lambda x: x.sum((1, 2, 3)), "start": torch.zeros(1, 1, 4, 4)} | changes
        with pytest.raises(ValueError, match=match):
            maximize(given.pop("score"), given.pop("start"), **given)


class Edges(nn.Module):
    def forward(self, images):
        return sobel(images)


class TestUnitScore:
    def net(self):
        net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 12, 3))
        return net.double()

    def test_output_neuron(self):
        net, x = self.net(), randn(4, 2, 5, 6)
        units = [2, 0, 2, 1]
        score = unit_score(net, units)(x)
        assert torch.equal(score, torch.stack([net(x)[i, u] for i, u in enumerate(units)]))

    def test_filter_is_read_at_the_centre(self):
        net, x = self.net(), randn(2, 2, 5, 6)
        maps = net[1](net[0](x))
        assert maps.shape == (2, 5, 3, 4)
        assert torch.equal(
            unit_score(net, [4, 0], "1")(x), torch.stack([maps[0, 4, 1, 2], maps[1, 0, 1, 2]])
        )

    def test_gate_before_the_softmax(self):
        """A router's scores (n, paths, outputs): one (path, output) an image."""
        router, x = CrossConnection(2, 3, 4).double(), randn(3, 2, 4, 5, 5)
        units = [(0, 2), (1, 0), (1, 1)]
        wanted = []
        for i, (path, output) in enumerate(units):
            s, z = router.gates.scores, x[i, path].mean((1, 2))
            hidden = (z @ s.weight1[path] + s.bias1[path, 0]).relu()
            wanted.append((hidden @ s.weight2[path] + s.bias2[path, 0])[output])
        found = unit_score(router, units, "gates.scores")(x)
        torch.testing.assert_close(found, torch.stack(wanted))

    def test_filter_on_derivatives_is_more_than_the_border(self):
        """The mean response of a convolution on Sobel planes does not see the inside at all."""
        net = nn.Conv2d(2, 3, 3, padding=1).double()
        x = randn(1, 1, 12, 12).requires_grad_()
        for read, inside_matters in (
            (lambda planes: planes[0, 1].mean(), False),
            (lambda planes: planes[0, 1, 6, 6], True),
        ):
            (gradient,) = torch.autograd.grad(read(net(sobel(x))), x)
            assert (gradient[..., 4:-4, 4:-4].abs().max() > 1e-6) == inside_matters
        whole = nn.Sequential(Edges(), net)
        score = unit_score(whole, [1], "1")(x)
        (again,) = torch.autograd.grad(score.sum(), x)
        assert torch.equal(again, gradient)

    def test_no_hook_stays_behind(self):
        net = self.net()
        with pytest.raises(RuntimeError):
            unit_score(net, [0])(randn(1, 7, 5, 6))
        assert not any(module._forward_hooks for module in net.modules())

    def test_bad_input(self):
        net, x = self.net(), randn(2, 2, 5, 6)
        with pytest.raises(ValueError, match="no layer 'conv9'"):
            unit_score(net, [0], "conv9")
        with pytest.raises(ValueError, match="2 images for 1 units"):
            unit_score(net, [0])(x)
        for units in ([0, 3], [-1, 0]):
            with pytest.raises(ValueError, match=r"0 .. 2"):
                unit_score(net, units)(x)
        with pytest.raises(ValueError, match="1 numbers"):
            unit_score(net, [(0, 0), (0, 1)])(x)
        router, paths = CrossConnection(2, 3, 4).double(), randn(1, 2, 4, 5, 5)
        with pytest.raises(ValueError, match="2 numbers"):
            unit_score(router, [1], "gates.scores")(paths)
        with pytest.raises(ValueError, match=r"0 .. 1, 2"):
            unit_score(router, [(2, 0)], "gates.scores")(paths)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 6), (1, 2, 1, 1)])
def test_total_variation_against_scipy(shape):
    images = randn(*shape)
    for found, image in zip(total_variation(images), images.numpy(), strict=True):
        # A correlation with (-1, 1) at every place, without the first, that has no neighbour.
        down = ndimage.correlate1d(image, [-1, 1], axis=1)[:, 1:]
        across = ndimage.correlate1d(image, [-1, 1], axis=2)[:, :, 1:]
        steps = np.abs(np.concatenate([down.ravel(), across.ravel()]))
        assert found.item() == pytest.approx(steps.mean() if steps.size else 0)


@pytest.mark.parametrize("sigma", [0.6, 1.7])
def test_gaussian_blur_against_scipy(sigma):
    images = randn(2, 3, 9, 14)
    wanted = ndimage.gaussian_filter(
        images.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=int(np.ceil(4 * sigma))
    )
    np.testing.assert_allclose(gaussian_blur(images, sigma).numpy(), wanted, atol=1e-12)


def test_colour_covariance():
    images = randn(6, 3, 4, 5)
    images[:, 2] = images[:, 0] - 0.3 * images[:, 1]
    wanted = np.cov(images.numpy().transpose(1, 0, 2, 3).reshape(3, -1))
    found = colour_covariance(images)
    np.testing.assert_allclose(found.numpy(), wanted * 3 / np.trace(wanted), rtol=1e-12)
    grey = colour_covariance(images[:, :1])
    torch.testing.assert_close(grey, torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="one colour"):
        colour_covariance(torch.full((2, 3, 4, 4), 0.5))
    with pytest.raises(ValueError, match="NaN"):
        colour_covariance(torch.full((2, 3, 4, 4), torch.nan))
    with pytest.raises(ValueError, match=r"\(n, c, h, w\)"):
        colour_covariance(torch.rand(3, 4, 4))
