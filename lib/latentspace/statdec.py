"""DEC, IDEC and StatDEC: clustering in the latent space of an autoencoder, as three siblings.

All three train an autoencoder first, start K centres by k-means in its latent space, and then move
points and centres towards a sharpened target that is renewed as they go. They differ in what
stays of the reconstruction, and in the weight that the target gives to each cluster.
"""

import copy
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from latentspace.autoencoders import pretrain
from latentspace.dec import (
    PooledDecoder,
    clustering_loss,
    member_surprise,
    soft_assignment,
    soft_frequency,
    target_distribution,
    total_surprise,
)
from latentspace.estimators import (
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    at_least,
    draw_seed,
    fitting,
    initial_weights,
)
from latentspace.training import batches, fit, pick_device, predict
from latentspace.training.tensors import as_tensor

__all__ = ["DEC", "IDEC", "StatDEC"]


# --- the estimators -------------------------------------------------------------------------------


class _DeepEmbedded(ClusterMixin, TransformerMixin, BaseEstimator):
    """What the three share: pretraining, centres, the loop of targets; see `DEC`."""

    _parameter_constraints: dict[str, list] = RULES | {
        "n_clusters": [at_least(1)],
        "latent_dim": [at_least(1)],
        "hidden": ["array-like"],
        "autoencoder": [nn.Module, None],
        "pretrain_epochs": [at_least(1)],
        "epochs": [at_least(1)],
        "batch_size": [at_least(1)],
        "lr": [POSITIVE],
        "renewal": [StrOptions({"epoch", "batch"})],
        "tol": [NOT_NEGATIVE],
        "n_init": [at_least(1)],
    }

    # --- hooks ---

    _decodes = True  # whether the loss has a reconstruction at all

    def _losses(self, clustering: Tensor, reconstruction: Tensor) -> Tensor:
        """The loss of a batch from its two parts."""
        raise NotImplementedError

    def _weight(self, q: Tensor) -> Tensor:
        """The weight of each cluster in the target (K,)."""
        return soft_frequency(q)

    def _pooled(self, network: nn.Module) -> nn.Module | None:
        """A decoder that wants labels too, in place of the pretrained one."""
        return None

    # --- fitting ---

    def fit(self, X: Any, y: Any = None, callback: Callable | None = None) -> "_DeepEmbedded":
        """Cluster the rows of ``X`` (n, D), vectors or flattened images; ``y`` is ignored.

        ``callback(epoch, labels)`` follows each epoch. Raises ValueError on NaN, fewer points than
        clusters, or parameters out of range.
        """
        with fitting(self):
            X = validate_data(self, X, dtype=np.float64)
            if len(X) < self.n_clusters:
                raise ValueError(f"n_samples={len(X)} should be >= n_clusters={self.n_clusters}")
            # One number for all columns, so that pixels keep their proportions (as in DEC).
            self.scale_ = float(np.sqrt(np.square(X).mean())) or 1.0
            self._train(self._tensor(X), draw_seed(self.random_state), callback)
        return self

    def _tensor(self, X: np.ndarray) -> Tensor:
        return as_tensor(X / self.scale_).float()

    def _train(self, x: Tensor, seed: int, callback: Callable | None) -> None:
        from sklearn.cluster import KMeans

        device = pick_device(self.device)
        network = self._start(x, seed, device)
        z = predict(network.encoder, x)
        means = KMeans(self.n_clusters, n_init=self.n_init, random_state=seed).fit(z.numpy())
        self.initial_labels_ = means.labels_
        network.centres = nn.Parameter(torch.from_numpy(means.cluster_centers_).float())
        with initial_weights(seed):
            network.pooled = self._pooled(network)

        q = soft_assignment(z, network.centres.detach())
        labels, history = q.argmax(1), []
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr, fused=True)
        for epoch in range(1, self.epochs + 1):
            p = target_distribution(q, self._weight(q))
            loader = batches(x, p, labels, batch_size=min(self.batch_size, len(x)))
            row = fit(
                network, loader, self._step, optimizer=optimizer, epochs=1, seed=seed + epoch,
                device=device, progress=False,
            )  # fmt: skip
            q = soft_assignment(predict(network.encoder, x), network.centres.detach().cpu())
            changed = float((q.argmax(1) != labels).double().mean())
            labels = q.argmax(1)
            history.append({**row.iloc[0], "epoch": epoch, "changed": changed})
            if callback is not None:
                callback(epoch, labels.numpy().copy())
            if changed < self.tol:
                break
        self._finish(network, labels, history)

    def _start(self, x: Tensor, seed: int, device: torch.device) -> nn.Module:
        if self.autoencoder is not None:
            return copy.deepcopy(self.autoencoder).float()
        return pretrain(
            x, self.latent_dim, self.hidden, epochs=self.pretrain_epochs,
            batch_size=self.batch_size, seed=seed, device=device, progress=self.progress,
        )  # fmt: skip

    def _step(
        self, network: nn.Module, batch: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        x, p, labels = batch
        if not self._decodes:
            clustering = self._clustering(p, network.encoder(x), network.centres)
            return {"loss": clustering, "clustering": clustering}
        z, decoded, penalty = network.both(x, labels, generator)
        clustering = self._clustering(p, z, network.centres)
        reconstruction = (decoded - x).square().mean() + penalty
        return {
            "loss": self._losses(clustering, reconstruction),
            "clustering": clustering,
            "reconstruction": reconstruction,
        }

    def _clustering(self, p: Tensor, z: Tensor, centres: Tensor) -> Tensor:
        """The loss of a batch against its target: the epoch's, ``p``, or one of its own."""
        if self.renewal == "batch":
            q = soft_assignment(z, centres).detach()
            p = target_distribution(q, self._weight(q))
        return clustering_loss(p, z, centres)

    def _finish(self, network: nn.Module, labels: Tensor, history: list[dict]) -> None:
        import pandas as pd

        self.network_ = network.cpu().eval()
        self.cluster_centers_ = network.centres.detach().numpy()
        self.labels_ = labels.numpy()
        self.history_ = pd.DataFrame(history)
        self.n_iter_ = len(history)
        self._n_features_out = self.cluster_centers_.shape[1]

    # --- after the fit ---

    def transform(self, X: Any) -> np.ndarray:
        """Latent points (n, d) of ``X`` (n, D)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return predict(self.network_.encoder, self._tensor(X)).numpy()

    def predict_proba(self, X: Any) -> np.ndarray:
        """The soft assignments q (n, K)."""
        z = torch.from_numpy(self.transform(X))
        return soft_assignment(z, torch.from_numpy(self.cluster_centers_)).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most similar centre of each row (n,)."""
        return self.predict_proba(X).argmax(1)


class DEC(_DeepEmbedded):
    """Deep embedded clustering: the clustering loss alone, after pretraining (Xie et al. 2016).

    Parameters
    ----------
    n_clusters, latent_dim : int
        K and d.
    hidden : sequence of int
        Widths of the encoder's hidden layers; the decoder mirrors them.
    autoencoder : module of `latentspace.autoencoders`, optional
        One from `pretrain`, which is copied and not changed; by default a `PlainAutoencoder` is
        trained.
    pretrain_epochs : int
    epochs : int
        At most so many, each one pass over the data.
    batch_size : int
    lr : float
        Adam's; the papers take SGD at .01 for hundreds of thousands of steps.
    renewal : {"epoch", "batch"}
        When the target is renewed: once an epoch, from all points; or at each step, for a batch
        from its own points. On USPS the latter is better for classes of equal size (evidence 10).
    tol : float
        Stop when a smaller share of the labels changes from one epoch to the next.
    n_init : int
        Starts of k-means, kept by its own objective.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool

    Attributes
    ----------
    labels_ : array (n,)
    initial_labels_ : array (n,), those of k-means on the pretrained code
    cluster_centers_ : array (K, d), in the latent space
    network_ : the autoencoder with centres, on the CPU, in evaluation mode
    history_ : DataFrame, one row an epoch: loss, clustering, changed; IDEC and StatDEC also have
        reconstruction
    n_iter_ : int
    scale_ : float, the root mean square of the data, by which they are divided
    """

    _decodes = False

    def __init__(
        self,
        n_clusters: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        autoencoder: nn.Module | None = None,
        pretrain_epochs: int = 50,
        epochs: int = 30,
        batch_size: int = 256,
        lr: float = 1e-3,
        renewal: str = "epoch",
        tol: float = 1e-3,
        n_init: int = 20,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.autoencoder = autoencoder
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.renewal = renewal
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state
        self.device = device
        self.progress = progress


class IDEC(_DeepEmbedded):
    """Improved DEC: the decoder stays, and keeps the latent space a picture of the data.

    The loss is ``reconstruction + weight * clustering`` (Guo et al. 2017).

    Parameters
    ----------
    weight : float
        Of the clustering loss, .1 in the paper.

    All others, and the attributes, are those of `DEC`.
    """

    _parameter_constraints = _DeepEmbedded._parameter_constraints | {"weight": [NOT_NEGATIVE]}

    def __init__(
        self,
        n_clusters: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        weight: float = 0.1,
        autoencoder: nn.Module | None = None,
        pretrain_epochs: int = 50,
        epochs: int = 30,
        batch_size: int = 256,
        lr: float = 1e-3,
        renewal: str = "epoch",
        tol: float = 1e-3,
        n_init: int = 20,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.weight = weight
        self.autoencoder = autoencoder
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.renewal = renewal
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def _losses(self, clustering: Tensor, reconstruction: Tensor) -> Tensor:
        return reconstruction + self.weight * clustering


class StatDEC(_DeepEmbedded):
    """DEC with cluster sizes in the target and statistics of the clusters in the decoder.

    The loss is ``weight * clustering + (1 - weight) * reconstruction``.

    Parameters
    ----------
    weight : float in [0, 1]
        .1 in the paper.
    target : {"members", "everyone", "frequency", "equal"}
        The cluster's weight in the target: `soft_frequency` plus `member_surprise` (eq. 4 and 5,
        corrected), plus `total_surprise` (as printed, in its domain: D3), or alone, which is DEC's
        and the paper's StatDEC-3; or 1 for each.
    pooling : bool
        Statistics pooling after the decoder's second hidden layer; without it StatDEC-2.

    All others, and the attributes, are those of `DEC`; the decoder in use is ``network_.pooled``.

    Source: StatDEC, corrected: errata D1-D10.
    """

    _parameter_constraints = _DeepEmbedded._parameter_constraints | {
        "weight": [Interval(Real, 0, 1, closed="both")],
        "target": [StrOptions({"members", "everyone", "frequency", "equal"})],
        "pooling": ["boolean"],
    }

    def __init__(
        self,
        n_clusters: int = 10,
        latent_dim: int = 10,
        hidden: Sequence[int] = (500, 500, 1000),
        weight: float = 0.1,
        target: str = "members",
        pooling: bool = True,
        autoencoder: nn.Module | None = None,
        pretrain_epochs: int = 50,
        epochs: int = 30,
        batch_size: int = 256,
        lr: float = 1e-3,
        renewal: str = "epoch",
        tol: float = 1e-3,
        n_init: int = 20,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.latent_dim = latent_dim
        self.hidden = hidden
        self.weight = weight
        self.target = target
        self.pooling = pooling
        self.autoencoder = autoencoder
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.renewal = renewal
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def _losses(self, clustering: Tensor, reconstruction: Tensor) -> Tensor:
        return self.weight * clustering + (1 - self.weight) * reconstruction

    def _weight(self, q: Tensor) -> Tensor:
        if self.target == "equal":
            return torch.ones_like(q[0])
        more = {"members": member_surprise, "everyone": total_surprise}.get(self.target)
        return soft_frequency(q) if more is None else soft_frequency(q) + more(q)

    def _pooled(self, network: nn.Module) -> nn.Module | None:
        if not self.pooling:
            return None
        return PooledDecoder(network.decoder, self.n_clusters, network.pooled_layer)
