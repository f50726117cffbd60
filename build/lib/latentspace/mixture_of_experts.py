"""The whole method of the thesis as one estimator: from images to experts that paint their cluster.

Pretraining finds the clusters and their noise, a manager learns them, and the mixture trains
manager and experts (thesis 3.2 to 3.4, 4.4 and 4.5).
"""

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from latentspace.estimators import (
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    at_least,
    draw_seed,
    fitting,
    initial_weights,
)
from latentspace.expert_training import train_experts, train_manager, train_mixture
from latentspace.experts import Experts, Mixture, expert_errors, soft_labels
from latentspace.generative_autoencoders import KINDS, gentle_views, train_autoencoder
from latentspace.images import has_images, image_tensor
from latentspace.latent_size import latent_size
from latentspace.noise import density_clusters, embed
from latentspace.training import predict

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(ClusterMixin, TransformerMixin, BaseEstimator):
    """Clusters of images, each with an autoencoder of its own, and one network that tells them.

    Parameters
    ----------
    init : {"density", "gaussian"}, array (n,) or array (n, K)
        Where the clusters come from: HDBSCAN, which counts them and refuses some points; a Gaussian
        mixture of ``n_clusters``; labels, -1 for noise; or soft labels, rows of probabilities.
    n_clusters : int, optional
        K, for ``"gaussian"`` only.
    autoencoder : a name in `generative_autoencoders.KINDS`, optional
        Whose codes are clustered; None clusters the pixels.
    umap : bool
        Cluster an embedding of the codes, or the codes.
    wide_dim, latent_dim : int, int or None
        Latent units of the autoencoder that is only counted, after a quarter of the epochs, and of
        the one that is clustered: as many as hold 90 % of the variance by default.
    expert_dim : int or {"mean", "own"}
        Length of the experts' codes. As many principal components as hold 95 % of the variance of
        each cluster's codes, counted for each and averaged ("mean", the thesis) or not ("own").
    filters : int, optional
        Of the first block of all networks; as many as the image has rows by default.
    likelihood : {"bernoulli", "gaussian"}
    views : callable(images, generator) -> images, optional
        Augmentation in all trainings; None for none.
    alpha, beta : float
        Weights of the entropies, see `experts.mixture_loss`.
    pretrain_epochs, manager_epochs, epochs, expert_epochs : int
        Of the autoencoders, the manager, the first phase and the second.
    batch_size : int
    lr : float
        Adam's rate for autoencoder, manager and experts; a tenth of it for the manager in the
        first phase, which is the thesis's 1e-4.
    image_shape : (height, width), optional
        Of rows (n, height width); one row of pixels by default.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool

    Attributes
    ----------
    labels_ : int array (n,), the manager's most probable expert, for refused images too
    initial_labels_ : int array (n,), what the manager was taught; -1 where refused
    noise_ : bool array (n,), the noise vector
    n_clusters_ : int, K
    expert_dims_ : int array (K,)
    network_ : experts.Mixture, on the CPU, in evaluation mode
    history_ : DataFrame of the first phase, one row an epoch; expert_history_ of the second
    n_iter_ : int, epochs of the first phase
    image_shape_ : (channels, height, width)

    `fit` takes images as `images.image_tensor` does, or rows of numbers, which are brought to
    [0, 1] by their least and largest number. Where HDBSCAN refuses everything, one expert gets all,
    with a warning.

    Source: thesis chapter 3, corrected: errata S10, S15, S17, S32.
    """

    _parameter_constraints = RULES | {
        "init": [StrOptions({"density", "gaussian"}), "array-like"],
        "n_clusters": [at_least(1), None],
        "autoencoder": [StrOptions(set(KINDS)), None],
        "umap": ["boolean"],
        "wide_dim": [at_least(1)],
        "latent_dim": [at_least(1), None],
        "expert_dim": [StrOptions({"mean", "own"}), Interval(Integral, 1, None, closed="left")],
        "filters": [at_least(1), None],
        "likelihood": [StrOptions({"bernoulli", "gaussian"})],
        "views": [callable, None],
        "alpha": [NOT_NEGATIVE],
        "beta": [NOT_NEGATIVE],
        "pretrain_epochs": [at_least(1)],
        "manager_epochs": [at_least(1)],
        "epochs": [at_least(1)],
        "expert_epochs": [at_least(1)],
        "batch_size": [at_least(2)],
        "lr": [POSITIVE],
        "image_shape": ["array-like", None],
    }

    def __init__(
        self,
        init: str | ArrayLike = "density",
        n_clusters: int | None = None,
        autoencoder: str | None = "VAE",
        umap: bool = True,
        wide_dim: int = 100,
        latent_dim: int | None = None,
        expert_dim: str | int = "mean",
        filters: int | None = 8,
        likelihood: str = "bernoulli",
        views: Callable[[Tensor, torch.Generator], Tensor] | None = gentle_views,
        alpha: float = 100.0,
        beta: float = 1.0,
        pretrain_epochs: int = 16,
        manager_epochs: int = 10,
        epochs: int = 5,
        expert_epochs: int = 40,
        batch_size: int = 100,
        lr: float = 1e-3,
        image_shape: Sequence[int] | None = None,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.init = init
        self.n_clusters = n_clusters
        self.autoencoder = autoencoder
        self.umap = umap
        self.wide_dim = wide_dim
        self.latent_dim = latent_dim
        self.expert_dim = expert_dim
        self.filters = filters
        self.likelihood = likelihood
        self.views = views
        self.alpha = alpha
        self.beta = beta
        self.pretrain_epochs = pretrain_epochs
        self.manager_epochs = manager_epochs
        self.epochs = epochs
        self.expert_epochs = expert_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.image_shape = image_shape
        self.random_state = random_state
        self.device = device
        self.progress = progress

    # --- fitting ---

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        callback: Callable[[int, nn.Module], Any] | None = None,
    ) -> "MixtureOfExperts":
        """Train on images; ``y`` is ignored. ``callback(epoch, mixture)`` follows the first phase.

        Raises ValueError on images that `images.image_tensor` refuses, fewer images than clusters,
        labels of another number, or parameters out of range.
        """
        with fitting(self):
            x = self._first(X)
            self.image_shape_ = tuple(x.shape[1:])
            seed = draw_seed(self.random_state)
            codes = self._codes(x, seed)
            self.initial_labels_, targets = self._clusters(codes, seed)
            self.noise_ = self.initial_labels_ < 0
            self.n_clusters_ = targets.shape[1]
            if len(x) < self.n_clusters_:
                raise ValueError(f"n_samples={len(x)} should be >= n_clusters={self.n_clusters_}")
            self.expert_dims_ = self._expert_dims(codes)
            self._train(x, targets, seed, callback)
        return self

    def _first(self, X: ArrayLike) -> Tensor:
        """The images of `fit`, and what later ones are read by."""
        if has_images(X):
            return image_tensor(X)
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self.least_, self.largest_ = float(rows.min()), float(rows.max())
        self.rows_ = tuple(self.image_shape or (1, rows.shape[1]))
        if len(self.rows_) != 2 or np.prod(self.rows_) != rows.shape[1]:
            raise ValueError(f"image_shape {self.rows_} is not that of rows of {rows.shape[1]}")
        return self._from_rows(rows)

    def _from_rows(self, rows: np.ndarray) -> Tensor:
        # Halved first, because the difference of two floats may be beyond the largest one.
        span = (self.largest_ / 2 - self.least_ / 2) or 1.0
        scaled = np.clip((rows / 2 - self.least_ / 2) / span, 0, 1)
        return torch.tensor(scaled.reshape(-1, 1, *self.rows_), dtype=torch.float32)

    def _images(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        if not hasattr(self, "rows_"):
            return image_tensor(X, shape=self.image_shape_)
        return self._from_rows(validate_data(self, X, reset=False, dtype=np.float64))

    def _codes(self, x: Tensor, seed: int) -> np.ndarray:
        """What is clustered before an embedding (n, d): codes, or pixels."""
        read = isinstance(self.init, str) or isinstance(self.expert_dim, str)
        if self.autoencoder is None or not read:
            return x.flatten(1).numpy()
        d = self.latent_dim
        if d is None:
            epochs = -(-self.pretrain_epochs // 4)
            d = self._count(self._encoded(x, self.autoencoder, self.wide_dim, epochs, seed), 0.9)
        return self._encoded(x, self.autoencoder, d, self.pretrain_epochs, seed)

    def _encoded(self, x: Tensor, kind: str, d: int, epochs: int, seed: int) -> np.ndarray:
        network, _ = train_autoencoder(
            x, d, kind, likelihood=self.likelihood, views=self.views,
            filters=self.filters, epochs=epochs, batch_size=self.batch_size,
            lr=self.lr, seed=seed, device=self.device, progress=self.progress,
        )  # fmt: skip
        return predict(network, x).numpy()

    def _clusters(self, codes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels (n,), -1 for noise, and soft labels (those that are no noise, K)."""
        n = len(codes)
        if not isinstance(self.init, str):
            return _given(np.asarray(self.init), n)
        points = codes
        if self.umap:
            points = embed(codes, min(codes.shape[1], n - 2), seed=seed)
        if self.init == "gaussian":
            return _gaussian(points, self.n_clusters, seed)
        found = density_clusters(points)
        if not found.n_clusters:
            warnings.warn("HDBSCAN finds no clusters: one expert gets all images", stacklevel=4)
            return np.zeros(n, int), np.ones((n, 1), np.float32)
        kept = ~found.noise
        return found.labels, soft_labels(found.labels[kept], found.strengths[kept])

    def _expert_dims(self, codes: np.ndarray) -> np.ndarray:
        k = self.n_clusters_
        if not isinstance(self.expert_dim, str):
            return np.full(k, self.expert_dim)
        counts = np.array([self._count(codes[self.initial_labels_ == c], 0.95) for c in range(k)])
        return counts if self.expert_dim == "own" else np.full(k, max(1, round(counts.mean())))

    @staticmethod
    def _count(codes: np.ndarray, share: float) -> int:
        """`latent_size`; 1 for codes that do not vary."""
        return latent_size(codes, share) if len(codes) > 1 and np.ptp(codes, 0).any() else 1

    def _train(
        self, x: Tensor, targets: np.ndarray, seed: int, callback: Callable | None
    ) -> None:
        shared: dict[str, Any] = {
            "views": self.views, "batch_size": self.batch_size, "seed": seed,
            "device": self.device, "progress": self.progress,
        }  # fmt: skip
        manager, _ = train_manager(
            x[torch.from_numpy(~self.noise_)], torch.from_numpy(targets), filters=self.filters,
            epochs=self.manager_epochs, lr=self.lr, **shared,
        )  # fmt: skip
        with initial_weights(seed):
            sizes = self.expert_dims_.tolist()
            experts = Experts(self.image_shape_, sizes, self.filters, self.likelihood)
        mixture = Mixture(manager, experts)
        self.history_ = train_mixture(
            mixture, x, alpha=self.alpha, beta=self.beta, epochs=self.epochs,
            manager_lr=self.lr / 10, lr=self.lr, callback=callback, **shared,
        )  # fmt: skip
        self.n_iter_ = self.epochs
        self.labels_ = predict(mixture, x).argmax(1).numpy()
        self.expert_history_ = train_experts(
            experts, x, self.labels_, epochs=self.expert_epochs, lr=self.lr, **shared
        )
        self.network_ = mixture

    # --- after the fit ---

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """The manager's probability of each expert (n, K)."""
        x = self._images(X)
        return predict(self.network_, x).double().softmax(1).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable expert of each image (n,)."""
        x = self._images(X)
        return predict(self.network_, x).argmax(1).numpy()

    def transform(self, X: ArrayLike) -> np.ndarray:
        """The codes (n, d) of images, each by its own expert; see `codes`."""
        means, own = self._means(X)
        return means[np.arange(len(means)), own]

    def codes(self, X: ArrayLike, k: int) -> np.ndarray:
        """The mean codes (n, d) of images by expert ``k``, whoever's they are."""
        means, _ = self._means(X)
        return means[:, self._expert(k)]

    def _means(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        x = self._images(X)
        return predict(self.network_.experts.encode, x)[0].numpy(), self.predict(X)

    def errors(self, X: ArrayLike) -> np.ndarray:
        """Each expert's error (n, K) on images, in nats per pixel value, at the mean codes."""
        x = self._images(X)
        experts = self.network_.experts.eval()
        return predict(lambda part: expert_errors(experts, part), x).numpy()

    def reconstruct(self, X: ArrayLike) -> np.ndarray:
        """The images as the mixture paints them, in [0, 1]: like ``X``, rows for rows."""
        x = self._images(X)
        return self._returned(predict(self.network_.reconstruct, x))

    def sample(
        self, k: int, n: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> np.ndarray:
        """``n`` new images of expert ``k``, painted from standard normal codes, in [0, 1]."""
        check_is_fitted(self)
        if n < 1:
            raise ValueError(f"n must be 1 or more, got {n}")
        generator = torch.Generator().manual_seed(draw_seed(random_state))
        return self._painted(k, torch.randn(n, self.network_.experts.d, generator=generator))

    def walk(self, k: int, unit: int, values: ArrayLike) -> np.ndarray:
        """Images of expert ``k`` along one number of its code, all others being 0.

        ``unit`` counts from 0, ``values`` (n,) are what that number takes.
        """
        check_is_fitted(self)
        if not 0 <= unit < self.expert_dims_[self._expert(k)]:
            raise ValueError(f"expert {k} has units 0 to {self.expert_dims_[k] - 1}, not {unit}")
        steps = torch.tensor(np.asarray(values, dtype=np.float32))
        return self._painted(k, steps[:, None] * torch.eye(self.network_.experts.d)[unit])

    def _painted(self, k: int, z: Tensor) -> np.ndarray:
        experts, k = self.network_.experts.eval(), self._expert(k)
        return self._returned(predict(lambda part: experts.by(k, part), z))

    def _expert(self, k: int) -> int:
        if not 0 <= k < self.n_clusters_:
            raise ValueError(f"there are experts 0 to {self.n_clusters_ - 1}, not {k}")
        return int(k)

    def _returned(self, images: Tensor) -> np.ndarray:
        if hasattr(self, "rows_"):
            return images.flatten(1).numpy()
        grey = images.permute(0, 2, 3, 1).numpy()
        return grey[..., 0] if grey.shape[-1] == 1 else grey


def _gaussian(
    points: np.ndarray, k: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.mixture import GaussianMixture

    if k is None:
        raise ValueError("init='gaussian' needs n_clusters")
    if len(points) < k:
        raise ValueError(f"n_samples={len(points)} should be >= n_clusters={k}")
    points = points.astype(np.float64)
    model = GaussianMixture(k, n_init=10, random_state=seed).fit(points)
    soft = model.predict_proba(points)
    return soft.argmax(1), soft.astype(np.float32)


def _given(init: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    if len(init) != n or init.ndim not in (1, 2):
        raise ValueError(f"init must have {n} labels, or as many rows of probabilities")
    if init.ndim == 2:
        if not (np.isfinite(init).all() and (init >= 0).all() and np.allclose(init.sum(1), 1)):
            raise ValueError("the rows of init must be probabilities")
        return init.argmax(1), init.astype(np.float32)
    if init.dtype.kind not in "iu" or init.max() < 0:
        raise ValueError("init must have integer labels, at least one of them >= 0")
    labels = np.where(init < 0, -1, init).astype(int)
    return labels, soft_labels(labels[labels >= 0])
