"""The thesis's pretraining up to the labels: from images to clusters and a noise vector (3.3).

A wide autoencoder is trained to count how long a code should be, one of that length is trained and
its codes are kept, UMAP embeds them, HDBSCAN clusters the embedding. What each step does is in
`generative_autoencoders`, `latent_size` and `noise`; here they are one function.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from latentspace import __version__
from latentspace.data import data_home
from latentspace.dynamic_autoencoder import DynamicAutoencoder
from latentspace.files import fingerprint, replacing
from latentspace.generative_autoencoders import (
    KINDS,
    gentle_views,
    mirrored_views,
    train_autoencoder,
)
from latentspace.latent_size import latent_size
from latentspace.noise import DensityClusters, density_clusters, embed
from latentspace.training import predict

__all__ = ["Pretrained", "codes_of", "found_codes", "pretrain", "trained"]


class Pretrained(NamedTuple):
    """What the steps made of n images."""

    wide_codes: np.ndarray | None  # (n, wide_dim), or None where the length was given
    network: DynamicAutoencoder  # that of the codes
    codes: np.ndarray  # (n, d)
    points: np.ndarray  # (n, d): the embedding, or the codes themselves
    found: DensityClusters  # labels and noise vector


def pretrain(
    images: Tensor,
    *,
    latent_dim: int | None = None,
    share: float = 0.9,
    wide_dim: int = 100,
    wide_epochs: int = 4,
    epochs: int = 16,
    umap: bool = True,
    seed: int = 0,
    cache: bool = True,
    **settings: Any,
) -> Pretrained:
    """Cluster images without labels; some are refused.

    Parameters
    ----------
    images : tensor (n, c, h, w), in [0, 1]
    latent_dim : int, optional
        Length d of a code; 18 for USPS in the thesis. By default it is counted: the principal
        components that hold ``share`` of the variance of the codes of an autoencoder with
        ``wide_dim`` units, trained for ``wide_epochs``. The count grows with that training.
    epochs : int
        Of the autoencoder whose codes are clustered.
    umap : bool
        Cluster an embedding of the codes, as in `noise.embed`; else the codes.
    seed : int
        Of both trainings and of UMAP.
    cache : bool
        Keep the weights in the data home, and all else as in `noise`.
    **settings
        Of `generative_autoencoders.train_autoencoder`; where they are not given, a VAE with eight
        filters and a learning rate of 1e-3. (The thesis has as many filters as the image has rows
        and 5e-4 for 1,000 epochs; twice the rate makes up for some of the epochs.)

    Raises
    ------
    ValueError
        As the steps do.
    """
    wide_codes, network, codes = found_codes(
        images, latent_dim=latent_dim, share=share, wide_dim=wide_dim, wide_epochs=wide_epochs,
        epochs=epochs, seed=seed, cache=cache, **settings,
    )  # fmt: skip
    points = embed(codes, seed=seed, cache=cache) if umap else codes
    return Pretrained(wide_codes, network, codes, points, density_clusters(points, cache=cache))


def found_codes(
    images: Tensor,
    *,
    latent_dim: int | None = None,
    share: float = 0.9,
    wide_dim: int = 100,
    wide_epochs: int = 4,
    epochs: int = 16,
    **settings: Any,
) -> tuple[np.ndarray | None, DynamicAutoencoder, np.ndarray]:
    """The steps of `pretrain` up to the codes: its ``wide_codes``, ``network`` and ``codes``.

    ``settings`` are those of `trained`, with the defaults of `pretrain`.
    """
    settings = {"filters": 8, "lr": 1e-3} | settings
    wide_codes, d = None, latent_dim
    if d is None:
        wide_codes = codes_of(trained(images, wide_dim, epochs=wide_epochs, **settings), images)
        d = latent_size(wide_codes, share)
    network = trained(images, d, epochs=epochs, **settings)
    return wide_codes, network, codes_of(network, images)


def trained(
    images: Tensor, latent_dim: int, kind: str = "VAE", *, cache: bool = True, **settings: Any
) -> DynamicAutoencoder:
    """The network of `generative_autoencoders.train_autoencoder`, kept in the data home.

    The key is a hash of the images, of all settings and of this library's version; with views of
    one's own, whose name says nothing, nothing is kept. A damaged file is made anew.
    """
    named = dict(settings)
    if callable(views := settings.get("views")):
        cache = cache and views in (gentle_views, mirrored_views)
        named["views"] = getattr(views, "__name__", "")
    text = repr((__version__, torch.__version__, latent_dim, kind, sorted(named.items())))
    key = fingerprint(images.numpy(), np.frombuffer(text.encode(), np.uint8))
    path = data_home() / "weights" / f"autoencoder-{key}.pt"
    if cache and path.exists():
        try:
            return _rebuilt(path, images, latent_dim, kind, settings.get("filters"))
        except Exception:  # a file can be broken in many ways, and all mean: train again
            path.unlink(missing_ok=True)
    network, _ = train_autoencoder(images, latent_dim, kind, **settings)
    if cache:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            torch.save(network.state_dict(), file)
    return network


def _rebuilt(
    path: Path, images: Tensor, latent_dim: int, kind: str, filters: int | None
) -> DynamicAutoencoder:
    shape = images.shape[1:]
    network = DynamicAutoencoder(shape, latent_dim, KINDS[kind].stochastic, filters)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.to(memory_format=torch.channels_last).eval()


def codes_of(network: DynamicAutoencoder, images: Tensor) -> np.ndarray:
    """The means of the codes of images (n, c, h, w): float32 (n, d)."""
    return predict(network, images, batch_size=1_000).numpy()
