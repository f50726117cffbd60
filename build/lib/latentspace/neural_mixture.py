"""Neural mixture EM as training steps and as one estimator."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from latentspace.estimators import (
    POSITIVE,
    RULES,
    at_least,
    column_scales,
    draw_seed,
    fitting,
    initial_weights,
)
from latentspace.images import has_images, image_tensor
from latentspace.networks import convnet, mlp
from latentspace.relevance import (
    RelevanceNorm,
    consistency_loss,
    em_loss,
    normalize_relevance,
    sharpened_posterior,
)
from latentspace.training import batches, fit, pick_device, predict

__all__ = ["NeuralMixture", "em_step", "two_fold_step"]

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
Step = Callable[[nn.Module, Any, torch.Generator], dict[str, torch.Tensor]]

# --- training steps -------------------------------------------------------------------------------


def em_step(gamma: float = 5.0, augment: Augment | None = None) -> Step:
    """A step of `training.fit` for EM (thesis eq. 4.22, or 4.23 with ``augment``).

    The model is a network that ends in K scores followed by a `RelevanceNorm`, two parts in one
    `torch.nn.Sequential`; a batch is ``(x, ...)``, of which x alone is used.

    Parameters
    ----------
    gamma : float > 0
    augment : callable(x, generator) -> x, optional
        Changed copies of the inputs, whose scores, normalised over their own batch, are drawn to
        the posteriors of the originals.

    Returns
    -------
    callable(model, batch, generator) -> {"loss"}
    """

    def step(model, batch, generator):
        x, (network, norm) = batch[0], model
        normalized = norm(network(x))
        posterior = sharpened_posterior(normalized)
        loss = em_loss(normalized, posterior, gamma)
        if augment is not None:
            changed = normalize_relevance(network(augment(x, generator)), norm.eps)
            loss = loss + em_loss(changed, posterior, gamma)
        return {"loss": loss}

    return step


def two_fold_step(
    em_optimizer: torch.optim.Optimizer, augment: Augment, gamma: float = 5.0
) -> Step:
    """A step of `training.fit` for the two-fold optimisation (thesis, algorithm 3).

    The step itself does the EM half, its own backward pass and step of ``em_optimizer`` included.
    Then it computes the posteriors again, with the new weights, and returns the consistency loss
    (eq. 4.24), which `fit` minimises with *its* optimizer.

    Parameters
    ----------
    em_optimizer : torch.optim.Optimizer
        Over the parameters of the model given to `fit`. A checkpoint of `fit` does not hold it,
        and its gradients are not averaged over processes: train in one piece and in one process.
    augment : callable(x, generator) -> x
        Called once a batch: both halves see the same changed copies.
    gamma : float > 0

    Returns
    -------
    callable(model, batch, generator) -> {"loss", "em"}; model and batch as for `em_step`.
    """

    def step(model, batch, generator):
        x, (network, norm) = batch[0], model
        copies = augment(x, generator)
        em = em_step(gamma, lambda *_: copies)(model, batch, generator)["loss"]
        em_optimizer.zero_grad(set_to_none=True)
        em.backward()
        em_optimizer.step()
        em_optimizer.zero_grad(set_to_none=True)

        with torch.no_grad():
            posterior = sharpened_posterior(normalize_relevance(network(x), norm.eps))
        changed = normalize_relevance(network(copies), norm.eps)
        loss = consistency_loss(posterior, changed.log_softmax(1))
        return {"loss": loss, "em": em.detach()}

    return step


# --- the estimator --------------------------------------------------------------------------------


class NeuralMixture(ClusterMixin, BaseEstimator):
    """Cluster vectors or images by mixture EM on a network.

    Parameters
    ----------
    n_clusters : int
    hidden : sequence of int
        Widths of the hidden layers of the network for vectors.
    plan : str
        The network for images, as in `convnet`.
    gamma : float
        Temperature of the sigmoid (eq. 4.12; > 0).
    standardize : bool
        Give each feature of vectors mean 0 and variance 1 first. The thesis does not, and where
        the origin lies decides which partitions the network finds easy.
    augment : callable(x, generator) -> x, optional
        Changes a batch, of vectors (n, d) as the network sees them or of images (n, channels,
        height, width) in [0, 1]. With it training is two-fold (algorithm 3), without it EM alone.
    epochs, batch_size : int
        A batch must hold at least one point a cluster.
    lr : float
        Adam's learning rate for EM. The thesis: 1e-3 for vectors, 5e-5 for images.
    consistency_lr : float
        That of the second Adam, for the consistency loss; unused without ``augment``.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool
        Show a progress bar.

    Attributes
    ----------
    labels_ : array (n,), 0 .. n_clusters - 1; a cluster may be empty
    model_ : torch.nn.Sequential of network and `RelevanceNorm`, in evaluation mode
    history_ : DataFrame, one row an epoch: loss, and em if training was two-fold
    n_iter_ : int
    image_shape_ : (channels, height, width) of the images it was fitted on; absent for vectors

    `fit` takes vectors (n, d) or images as `images.image_tensor` does: (n, height, width) or
    (n, height, width, 1 or 3), bytes or floats in [0, 1]. Points that are all the same all get one
    label.

    Source: Tissera's thesis, chapter 4, corrected: errata T6-T14.
    """

    _parameter_constraints = RULES | {
        "n_clusters": [at_least(1)],
        "hidden": ["array-like"],
        "plan": [str],
        "gamma": [POSITIVE],
        "standardize": ["boolean"],
        "augment": [callable, None],
        "epochs": [at_least(1)],
        "batch_size": [at_least(1)],
        "lr": [POSITIVE],
        "consistency_lr": [POSITIVE],
    }

    def __init__(
        self,
        n_clusters: int = 10,
        hidden: Sequence[int] = (32, 32),
        plan: str = "C64 M C128 M C256 F32",
        gamma: float = 5.0,
        standardize: bool = True,
        augment: Augment | None = None,
        epochs: int = 10,
        batch_size: int = 128,
        lr: float = 1e-3,
        consistency_lr: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.hidden = hidden
        self.plan = plan
        self.gamma = gamma
        self.standardize = standardize
        self.augment = augment
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.consistency_lr = consistency_lr
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        callback: Callable[[int, nn.Module], Any] | None = None,
    ) -> "NeuralMixture":
        """Train on ``X``; labels are ignored. ``callback(epoch, model)`` follows each epoch.

        Raises ValueError on NaN, fewer points than clusters, a batch smaller than the number of
        clusters, or parameters out of range.
        """
        with fitting(self):
            if has_images(X):
                x = image_tensor(X)
                self.image_shape_ = tuple(x.shape[1:])
            else:
                rows = validate_data(self, X, dtype=[np.float64, np.float32])
                self.mean_, self.scale_ = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
                if self.standardize:
                    self.mean_, self.scale_ = column_scales(rows)
                x = self._standardised(rows)
            self._check(len(x))
            seed = draw_seed(self.random_state)
            with initial_weights(seed):
                model = nn.Sequential(self._network(x), RelevanceNorm(self.n_clusters))
            self._train(model, x, seed, callback)
        return self

    def _check(self, n: int) -> None:
        """What a table of rules cannot say; ``n`` is the number of points."""
        if n < self.n_clusters:
            raise ValueError(f"n_samples={n} should be >= n_clusters={self.n_clusters}")
        if self.batch_size < self.n_clusters:
            raise ValueError(
                f"batch_size={self.batch_size} should be >= n_clusters={self.n_clusters}: "
                "scores are normalised over a batch"
            )

    def _network(self, x: torch.Tensor) -> nn.Module:
        if x.ndim == 2:
            return mlp(x.shape[1], self.n_clusters, self.hidden)
        return convnet(self.plan, x.shape[2:], self.n_clusters)

    def _train(
        self, model: nn.Sequential, x: torch.Tensor, seed: int, callback: Callable | None
    ) -> None:
        device = pick_device(self.device)
        model.to(device)  # before an optimizer holds its parameters
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        step = em_step(self.gamma)
        if self.augment is not None:
            step = two_fold_step(optimizer, self.augment, self.gamma)
            optimizer = torch.optim.Adam(model.parameters(), lr=self.consistency_lr)
        self.history_ = fit(
            model,
            # A last batch of a few rows would not stand for the whole space.
            batches(x, batch_size=min(self.batch_size, len(x)), drop_last=True),
            step,
            optimizer=optimizer,
            epochs=self.epochs,
            seed=seed,
            device=device,
            callback=callback,
            progress=self.progress,
        )
        self.n_iter_ = self.epochs
        self.model_ = model.cpu().eval()
        self.labels_ = predict(self.model_, x).argmax(1).numpy()

    def _standardised(self, X: np.ndarray) -> torch.Tensor:
        X = X.astype(np.float64, copy=False)
        return torch.tensor((X - self.mean_) / self.scale_, dtype=torch.float32)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The cluster with the highest score, normalised by running statistics (n,)."""
        return self._normalized(X).argmax(1).numpy()

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """The posteriors that training uses, `relevance.sharpened_posterior` (n, n_clusters).

        Sharpened, so not calibrated (errata T13).
        """
        return sharpened_posterior(self._normalized(X)).double().numpy()

    def _normalized(self, X: ArrayLike) -> torch.Tensor:
        check_is_fitted(self)
        if hasattr(self, "image_shape_"):
            x = image_tensor(X, shape=self.image_shape_)
        else:
            x = self._standardised(validate_data(self, X, reset=False, dtype=np.float64))
        return predict(self.model_, x)
