"""The thesis's convolutional autoencoder: its blocks by hand, shapes, padding, bad input."""

import math

import pytest
import torch
from torch import nn

from latentspace.dynamic_autoencoder import DynamicAutoencoder, padded_size, plan
from latentspace.estimators import initial_weights

SHAPES = [(1, 16, 16), (3, 32, 32), (1, 28, 28), (1, 17, 20), (3, 5, 3), (1, 64, 64)]


def built(shape, latent_dim=5, **settings):
    with initial_weights(0):
        return DynamicAutoencoder(shape, latent_dim, filters=2, **settings)


@pytest.mark.parametrize("size", [4, 8, 16, 32, 64, 128])
def test_blocks_follow_the_equations(size):
    general, specific, filters = plan(size)
    blocks = math.log2(size) - 1  # eq. 3.7
    assert general == math.ceil(blocks / 2) and specific == blocks - general  # 3.8, 3.9
    assert filters[0] == size and len(filters) == blocks
    assert all(b == 2 * a for a, b in zip(filters, filters[1:], strict=False))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 12, 28])
def test_a_plan_needs_a_power_of_two(size):
    with pytest.raises(ValueError, match="power of two"):
        plan(size)
    with pytest.raises(ValueError, match="filters"):
        plan(16, 0)


@pytest.mark.parametrize(
    ("sides", "side"), [((28, 28), 32), ((16, 16), 16), ((17, 3), 32), ((1, 1), 4), ((5, 8), 8)]
)
def test_padded_to_a_power_of_two(sides, side):
    assert padded_size(*sides) == side


def test_torchs_mish_is_that_of_the_equation():
    """x tanh(ln(1 + e^x)), thesis eq. 3.11."""
    by_hand = [v * math.tanh(math.log1p(math.exp(v))) for v in (-3.0, -0.5, 0.0, 2.0)]
    found = nn.functional.mish(torch.tensor([-3.0, -0.5, 0.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor(by_hand))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stochastic", [False, True])
def test_images_to_codes_to_images(shape, stochastic):
    network = built(shape, stochastic=stochastic).eval()
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    mean, log_variance = network.encode(x)
    assert mean.shape == (3, 5) and network.decode(mean).shape == x.shape
    assert torch.equal(network(x), mean)
    assert (log_variance is not None) == stochastic
    if stochastic:
        assert log_variance.shape == (3, 5)


@pytest.mark.parametrize("size", [4, 16, 32])
def test_the_encoder_ends_in_two_by_two(size):
    network = built((1, size, size)).eval()
    *blocks, flat = network.body
    assert blocks[-1] is not flat and isinstance(flat, nn.Flatten)
    h, sides = torch.rand(2, 1, size, size), []
    for block in blocks:
        h = block(h)
        sides.append(h.shape[-1])
    assert sides == [size // 2 ** (b + 1) for b in range(len(blocks))] and sides[-1] == 2
    general = plan(size).general
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in block) for block in blocks]
    assert convolutions == [2] * general + [1] * (len(blocks) - general)
    for block in blocks:  # Conv, BatchNorm, Mish, in this order
        kinds = [type(m) for m in block]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.Mish] * (len(kinds) // 3)


def test_two_small_convolutions_see_five_pixels():
    """The general block's two 3 x 3 have the receptive field of one 5 x 5."""
    first = built((1, 16, 16)).eval().body[0]
    x = torch.rand(1, 1, 16, 16, requires_grad=True)
    first(x)[0, 0, 4, 4].backward()
    rows, columns = (x.grad[0, 0] != 0).nonzero().T
    assert rows.max() - rows.min() == 4 and columns.max() - columns.min() == 4


def test_padding_is_around_and_cut_back():
    """A padded image is encoded like the same image that comes padded."""
    small, large = built((1, 28, 28)).eval(), built((1, 32, 32)).eval()
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(small(x), large(nn.functional.pad(x, (2, 2, 2, 2))))
    z = torch.randn(2, 5)
    torch.testing.assert_close(small.decode(z), large.decode(z)[:, :, 2:30, 2:30])


def test_bad_input():
    for shape, d in (((1, 0, 4), 3), ((1, 4, 4), 0)):
        with pytest.raises(ValueError, match="positive"):
            DynamicAutoencoder(shape, d)
    network = built((1, 16, 16))
    for wrong in (torch.rand(2, 256), torch.rand(2, 3, 16, 16), torch.rand(2, 1, 8, 8)):
        with pytest.raises(ValueError, match="need images"):
            network.encode(wrong)
