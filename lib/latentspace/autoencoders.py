"""Autoencoders whose latent space is clustered."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latentspace.estimators import initial_weights
from latentspace.networks import mlp
from latentspace.training import batches, fit

__all__ = ["PlainAutoencoder", "pretrain"]


class PlainAutoencoder(nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions (n, D) of ``x`` (n, D)."""
        return self.decoder(self.encoder(x))


def pretrain(
    x: Tensor,
    latent_dim: int = 10,
    hidden: Sequence[int] = (500, 500, 2000),
    *,
    epochs: int = 50,
    batch_size: int = 256,
    lr: float = 1e-3,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> PlainAutoencoder:
    """Train an autoencoder on ``x`` (n, D) by the squared error, with Adam.

    Returns it on the CPU, in evaluation mode. Several estimators may start from the same one, which
    makes their comparison a paired one.
    """
    with initial_weights(seed):
        network = PlainAutoencoder(x.shape[1], latent_dim, hidden)

    def step(model: nn.Module, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": (model(batch[0]) - batch[0]).square().mean()}

    loader = batches(x, batch_size=min(batch_size, len(x)))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    fit(
        network, loader, step, optimizer=optimizer, epochs=epochs, seed=seed, device=device,
        progress=progress,
    )  # fmt: skip
    return network.cpu().eval()
