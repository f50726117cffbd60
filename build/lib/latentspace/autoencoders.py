"""Autoencoders whose latent space is clustered: fully connected, convolutional, variational.

All take rows, flattened images among them, and share one face. ``encoder`` maps rows (n, D) to
codes (n, d). ``both(x, labels, generator)`` gives codes, reconstructions (n, D) and the penalty on
the codes, a scalar that is 0 but for the variational one. ``pooled``, where it is set, takes the
place of ``decoder`` and wants the rows' cluster labels too (`dec.PooledDecoder`); the statistics
enter before the decoder's linear layer number ``pooled_layer``, counted from 0.

They are the networks of StatDEC's Table IV: DNN, CNN, UNet and VAE.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentspace.estimators import initial_weights
from latentspace.networks import mlp
from latentspace.training import batches, fit

__all__ = [
    "ConvAutoencoder", "PlainAutoencoder", "UNetAutoencoder", "VariationalAutoencoder", "pretrain",
]  # fmt: skip


class _Autoencoder(nn.Module):
    """The face that all share."""

    encoder: nn.Module
    decoder: nn.Module
    pooled_layer = 2

    def __init__(self) -> None:
        super().__init__()
        self.pooled: nn.Module | None = None

    def both(
        self, x: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (n, d), reconstructions (n, D) and penalty () of ``x`` (n, D)."""
        z = self.encoder(x)
        return z, self.decode(z, labels), x.new_zeros(())

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Reconstructions of codes (n, d); ``labels`` (n,) where a pooled decoder is set."""
        return self.decoder(z) if self.pooled is None else self.pooled(z, labels)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (n, D) of ``x`` (n, D), by the decoder that was pretrained."""
        return self.decoder(self.encoder(x))


# --- fully connected ------------------------------------------------------------------------------


class PlainAutoencoder(_Autoencoder):
    """Fully connected, ReLU between the layers, nothing behind the code and the output.

    Parameters
    ----------
    n_features, latent_dim : int
        D and d.
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder mirrors them.
    """

    def __init__(self, n_features: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.encoder = mlp(n_features, latent_dim, hidden)
        self.decoder = mlp(latent_dim, n_features, list(reversed(hidden)))


class VariationalAutoencoder(PlainAutoencoder):
    """As `PlainAutoencoder`, but the code is a normal distribution: ``encoder`` gives its mean.

    Draws are decoded. The penalty is ``2 KL(N(mean, variance) || N(0, I)) / D``, so that mean
    squared error plus penalty is minus the evidence bound of a decoder with variance 1, times 2/D
    and up to a constant. Parameters as there.
    """

    def __init__(self, n_features: int, latent_dim: int, hidden: Sequence[int]) -> None:
        super().__init__(n_features, latent_dim, hidden)
        self.log_variance = nn.Linear(hidden[-1], latent_dim)

    def both(
        self, x: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in `_Autoencoder`; in training the reconstruction is that of a draw."""
        hidden = self.encoder[:-1](x)
        mean, log_variance = self.encoder[-1](hidden), self.log_variance(hidden)
        z = mean
        if self.training:
            noise = torch.randn(mean.shape, generator=generator, device=x.device, dtype=x.dtype)
            z = mean + noise * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        return mean, self.decode(z, labels), 2 * divergence / x.shape[1]


# --- convolutional --------------------------------------------------------------------------------


class ConvAutoencoder(_Autoencoder):
    """Four convolutions of 4 x 4 and stride 2 to the code, three transposed ones back.

    BatchNorm and ReLU follow each but the last. StatDEC+CNN; the paper gives no numbers of planes.

    Parameters
    ----------
    shape : (channels, height, width) of the images, which come as rows of D numbers
    latent_dim : int
    planes : four ints
    width : int
        Of the decoder's hidden layer, to which the statistics are appended.
    """

    pooled_layer = 1

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        planes: Sequence[int] = (16, 32, 64, 128),
        width: int = 256,
    ) -> None:
        super().__init__()
        channels, height, across = shape
        steps = zip([channels, *planes], planes, strict=False)
        down = [layer for a, b in steps for layer in _normed(nn.Conv2d(a, b, 4, 2, 1), b)]
        flat = planes[3] * (height // 16) * (across // 16)  # each halves, and rounds down
        self.encoder = nn.Sequential(
            nn.Unflatten(1, tuple(shape)), *down, nn.Flatten(), nn.Linear(flat, latent_dim)
        )
        start = (planes[3], -(-height // 8), -(-across // 8))
        wide = start[0] * start[1] * start[2]
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, wide), nn.ReLU(),
            nn.Unflatten(1, start),
            *_normed(nn.ConvTranspose2d(planes[3], planes[2], 4, 2, 1), planes[2]),
            *_normed(nn.ConvTranspose2d(planes[2], planes[1], 4, 2, 1), planes[1]),
            nn.ConvTranspose2d(planes[1], channels, 4, 2, 1),
            _Crop(height, across), nn.Flatten(),
        )  # fmt: skip


class UNetAutoencoder(_Autoencoder):
    """Convolutions of 5 x 5 and stride 2; back by doubling the size and a convolution of 3 x 3.

    Two of the three steps back also see the encoder's planes of their size, so a picture can pass
    *around* the code (errata D13). StatDEC+UNet; parameters as for `ConvAutoencoder`, but three
    planes. ``decoder`` goes only to the smallest planes; `both` and ``forward`` give images.
    """

    pooled_layer = 1

    def __init__(
        self,
        shape: Sequence[int],
        latent_dim: int,
        planes: Sequence[int] = (16, 32, 64),
        width: int = 256,
    ) -> None:
        super().__init__()
        channels, (first, second, third) = shape[0], planes
        self.encoder = _UNetEncoder(shape, latent_dim, planes)
        flat = third * self.encoder.small[0] * self.encoder.small[1]
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, flat), nn.ReLU(),
            nn.Unflatten(1, (third, *self.encoder.small)),
        )  # fmt: skip
        self.up = nn.ModuleList([
            nn.Sequential(*_normed(nn.Conv2d(third + second, second, 3, 1, 1), second)),
            nn.Sequential(*_normed(nn.Conv2d(second + first, first, 3, 1, 1), first)),
            nn.Conv2d(first, channels, 3, 1, 1),
        ])  # fmt: skip

    def both(
        self, x: Tensor, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in `_Autoencoder`."""
        skipped = self.encoder.planes(x)
        z = self.encoder.code(skipped[-1])
        h = self.decode(z, labels)
        for layer, beside in zip(self.up, (skipped[1], skipped[0], None), strict=True):
            if beside is None:
                h = F.interpolate(h, self.encoder.shape[1:])
            else:
                h = torch.cat([F.interpolate(h, beside.shape[2:]), beside], 1)
            h = layer(h)
        return z, h.flatten(1), x.new_zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (n, D) of ``x`` (n, D)."""
        return self.both(x)[1]


class _UNetEncoder(nn.Module):
    def __init__(self, shape: Sequence[int], latent_dim: int, planes: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        steps = zip([shape[0], *planes], planes, strict=False)
        self.down = nn.ModuleList(
            nn.Sequential(*_normed(nn.Conv2d(a, b, 5, 2, 2), b)) for a, b in steps
        )
        self.small = (-(-shape[1] // 8), -(-shape[2] // 8))
        self.last = nn.Linear(planes[-1] * self.small[0] * self.small[1], latent_dim)

    def planes(self, x: Tensor) -> list[Tensor]:
        h, found = x.reshape(-1, *self.shape), []
        for layer in self.down:
            h = layer(h)
            found.append(h)
        return found

    def code(self, smallest: Tensor) -> Tensor:
        return self.last(smallest.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.code(self.planes(x)[-1])


class _Crop(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.height, : self.width]


def _normed(convolution: nn.Module, planes: int) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(planes), nn.ReLU()]


# --- training -------------------------------------------------------------------------------------


def pretrain(
    x: Tensor,
    latent_dim: int = 10,
    hidden: Sequence[int] = (500, 500, 2000),
    *,
    network: _Autoencoder | None = None,
    epochs: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> _Autoencoder:
    """Train an autoencoder on ``x`` (n, D) by the squared error and its penalty, with Adam.

    Returns it on the CPU, in evaluation mode. Several estimators may start from the same one, which
    makes their comparison a paired one. By default it is a new `PlainAutoencoder` of these widths;
    a ``network`` of this module is trained as it is given, in place.
    """
    if network is None:
        with initial_weights(seed):
            network = PlainAutoencoder(x.shape[1], latent_dim, hidden)

    def step(
        model: _Autoencoder, batch: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        _, decoded, penalty = model.both(batch[0], generator=generator)
        return {"loss": (decoded - batch[0]).square().mean() + penalty}

    loader = batches(x, batch_size=min(batch_size, len(x)))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    fit(
        network, loader, step, optimizer=optimizer, epochs=epochs, seed=seed, device=device,
        progress=progress,
    )  # fmt: skip
    return network.cpu().eval()
