"""The autoencoders of StatDEC's Table IV: shapes, pooling, training, what passes by the code."""

import numpy as np
import pytest
import torch

from latentspace.autoencoders import (
    ConvAutoencoder,
    PlainAutoencoder,
    UNetAutoencoder,
    VariationalAutoencoder,
    pretrain,
)
from latentspace.dec import PooledDecoder
from latentspace.estimators import initial_weights
from latentspace.statdec import StatDEC

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 17, 20)]
BUILD = {
    "plain": lambda shape: PlainAutoencoder(int(np.prod(shape)), 4, (9, 8, 7)),
    "vae": lambda shape: VariationalAutoencoder(int(np.prod(shape)), 4, (9, 8, 7)),
    "cnn": lambda shape: ConvAutoencoder(shape, 4, (3, 4, 5, 6), 11),
    "unet": lambda shape: UNetAutoencoder(shape, 4, (3, 4, 5), 11),
}


def built(kind, shape):
    with initial_weights(0):
        return BUILD[kind](shape)


def rows(shape, n=6, seed=0):
    return torch.rand(n, int(np.prod(shape)), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", BUILD)
def test_rows_to_codes_to_rows(kind, shape):
    network, x = built(kind, shape).eval(), rows(shape)
    z, decoded, penalty = network.both(x)
    torch.testing.assert_close(z, network.encoder(x))
    torch.testing.assert_close(decoded, network(x))
    assert z.shape == (6, 4) and decoded.shape == x.shape and penalty.shape == ()
    assert (float(penalty.detach()) > 0) == (kind == "vae")


@pytest.mark.parametrize("kind", BUILD)
def test_pooling_starts_silent_in_each(kind):
    network, x = built(kind, (1, 28, 28)).eval(), rows((1, 28, 28))
    before = network.both(x)[1]
    network.pooled = PooledDecoder(network.decoder, 3, network.pooled_layer).eval()
    torch.testing.assert_close(network.both(x, torch.tensor([0, 1, 2] * 2))[1], before)


def test_the_penalty_is_the_divergence_of_torch():
    network, x = built("vae", (1, 4, 4)), rows((1, 4, 4))
    hidden = network.encoder[:-1](x)
    code = torch.distributions.Normal(
        network.encoder[-1](hidden), (network.log_variance(hidden) / 2).exp()
    )
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = 2 * torch.distributions.kl_divergence(code, prior).sum(1).mean() / 16
    torch.testing.assert_close(network.both(x, generator=torch.Generator())[2], expected)


def test_the_variational_code_is_drawn_in_training_only():
    network, x = built("vae", (1, 4, 4)), rows((1, 4, 4))
    draws = [network.both(x, generator=torch.Generator().manual_seed(s))[1] for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    network.eval()
    assert torch.equal(network.both(x)[1], network.both(x)[1])


@pytest.mark.parametrize("kind", BUILD)
def test_trains_and_clusters(kind):
    """The error falls, and StatDEC takes the network as it is."""
    shape, generator = (1, 16, 16), torch.Generator().manual_seed(1)
    x = torch.zeros(60, *shape)
    x[:40, :, :8], x[40:, :, :, 8:] = 1, 1
    x = (x + 0.1 * torch.randn(x.shape, generator=generator)).flatten(1)
    network = built(kind, shape)
    before = float((network.eval()(x) - x).square().mean())
    pretrain(x, network=network, epochs=40, batch_size=20, lr=3e-3, seed=0, device="cpu")
    assert float((network(x) - x).square().mean()) < 0.8 * before
    model = StatDEC(n_clusters=2, autoencoder=network, epochs=2, batch_size=20, n_init=3,
                    random_state=0, device="cpu").fit(x.numpy())  # fmt: skip
    assert model.transform(x.numpy()).shape == (60, 4) and model.network_.pooled is not None


def test_d13_skips_pass_around_the_code():
    """U-Net with the code put to zero still paints what it is shown; the CNN cannot (D13)."""
    shape, generator = (1, 16, 16), torch.Generator().manual_seed(2)
    x = torch.rand(64, 256, generator=generator).reshape(64, 1, 16, 16)
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2).flatten(1)
    x = (x - x.mean(0)) / x.std(0)
    left = {}
    for kind, network in (
        ("cnn", ConvAutoencoder(shape, 4, (8, 8, 8, 8), 32)),
        ("unet", UNetAutoencoder(shape, 4, (8, 8, 8), 32)),
    ):
        pretrain(x, network=network, epochs=100, batch_size=32, lr=3e-3, device="cpu")
        last = network.encoder.last if kind == "unet" else network.encoder[-1]
        torch.nn.init.zeros_(last.weight), torch.nn.init.zeros_(last.bias)
        left[kind] = float((network(x) - x).square().mean())
    assert left["unet"] < 0.5 < 0.9 < left["cnn"]
