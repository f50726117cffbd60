"""DeepKDE as one estimator: an autoencoder whose latent space takes a chosen density."""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_array
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from latentspace.density import (
    TargetMixture,
    centre_loss,
    hyperplane_loss,
    js_divergence,
    js_loss,
    reconstruction_loss,
    scott_bandwidth,
)
from latentspace.estimators import (
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    at_least,
    column_scales,
    draw_seed,
    fitting,
    initial_weights,
)
from latentspace.networks import Autoencoder
from latentspace.training import batches, fit, pick_device
from latentspace.training.tensors import as_tensor

__all__ = ["DeepKDE"]


def _has_components(estimator: "DeepKDE") -> bool:
    if hasattr(estimator, "classes_"):
        return hasattr(estimator, "centres_")
    return estimator.target == "mixture"


class DeepKDE(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Reshape features into a mixture of Gaussians, one a class, or into a normal density.

    Parameters
    ----------
    target : {"mixture", "normal"}
        ``"mixture"``: class i around ``radius * e_i`` (eq. 14). ``"normal"``: one standard normal
        that two classes share, divided by ``z_0 = 0`` (eq. 10).
    latent_dim : int, optional
        Dimension d of the latent space; the number of classes by default.
    radius : float
        Distance of the mixture's centres from the origin.
    weights : (float, float, float)
        Of the density, the class and the reconstruction term (eq. 12; each >= 0).
    threshold : float, optional
        T of eq. 9. By default the radius that holds 99 % of a component, but at most half the
        distance between two centres (the paper gives none: K6).
    hidden : sequence of int
        Widths of the encoder's blocks.
    epochs, batch_size, lr, drop_epoch : int, int, float, int
        Adam at ``lr``, a tenth of it from ``drop_epoch`` on.
    leave_one_out : bool
        False gives the paper's loss, in which each point sees its own kernel (K4). With True the
        loss is unbounded below: in ten dimensions long training can run away (K15).
    floor : float in [0, 1]
        The weight that a left-out kernel keeps. A small one bounds the loss below again (K15).
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool
        Show a progress bar.

    Attributes
    ----------
    classes_ : array (k,)
    network_ : Autoencoder, in double precision and evaluation mode, on the CPU
    target_ : TargetMixture
    centres_ : array (k, d), the class centres (mixture target only)
    history_ : DataFrame, one row an epoch: loss, pdf, js, cluster, reconstruction
    n_iter_ : int

    Source: DeepKDE, eq. 7-14 and Table 1, corrected: errata K1-K11.
    """

    _parameter_constraints = RULES | {
        "target": [StrOptions({"mixture", "normal"})],
        "latent_dim": [at_least(1), None],
        "radius": [POSITIVE],
        "weights": ["array-like"],
        "threshold": [NOT_NEGATIVE, None],
        "hidden": ["array-like"],
        "epochs": [at_least(1)],
        "batch_size": [at_least(4)],
        "lr": [POSITIVE],
        "drop_epoch": [at_least(0)],
        "leave_one_out": ["boolean"],
        "floor": [Interval(Real, 0, 1, closed="both")],
    }

    def __init__(
        self,
        target: str = "mixture",
        latent_dim: int | None = None,
        radius: float = 6.0,
        weights: Sequence[float] = (0.7, 0.1, 0.2),
        threshold: float | None = None,
        hidden: Sequence[int] = (64, 32),
        epochs: int = 300,
        batch_size: int = 2000,
        lr: float = 0.01,
        drop_epoch: int = 200,
        leave_one_out: bool = True,
        floor: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.target = target
        self.latent_dim = latent_dim
        self.radius = radius
        self.weights = weights
        self.threshold = threshold
        self.hidden = hidden
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.drop_epoch = drop_epoch
        self.leave_one_out = leave_one_out
        self.floor = floor
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        callback: Callable[[int, torch.nn.Module], Any] | None = None,
    ) -> "DeepKDE":
        """Train on features ``X`` (n, D) with class labels ``y`` (n,).

        ``callback(epoch, network)`` is called after each epoch. Raises ValueError on NaN, fewer
        than 4 rows, one class, or parameters out of range.
        """
        with fitting(self):
            rows, y = validate_data(
                self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=4
            )
            check_classification_targets(y)
            self.classes_, labels = np.unique(y, return_inverse=True)
            k = len(self.classes_)
            d = self.latent_dim or k
            self._check(k)
            seed = draw_seed(self.random_state)
            self.mean_, self.scale_ = column_scales(rows)
            x = torch.tensor(self._standardised(rows), dtype=torch.float32)
            with initial_weights(seed):
                network = Autoencoder(x.shape[1], d, self.hidden)
            self._train(network, x, torch.tensor(labels), seed, callback)
        return self

    def _check(self, k: int) -> None:
        """What a table of rules cannot say; ``k`` is the number of classes."""
        if k < 2:
            raise ValueError("DeepKDE needs two classes or more, the labels have 1 class")
        if self.target == "normal" and k != 2:
            raise ValueError(f"target='normal' divides two classes, the labels have {k} classes")
        if len(self.weights) != 3 or not (min(self.weights) >= 0 and sum(self.weights) > 0):
            raise ValueError(f"weights must be three non-negative numbers, got {self.weights}")
        if self.floor and not self.leave_one_out:
            raise ValueError("floor is the weight of what is left out, and leave_one_out is False")

    def _train(
        self,
        network: Autoencoder,
        x: torch.Tensor,
        labels: torch.Tensor,
        seed: int,
        callback: Callable | None,
    ) -> None:
        device = pick_device(self.device)
        k, d = len(self.classes_), self.latent_dim or len(self.classes_)
        mixture = self.target == "mixture"
        target = TargetMixture.on_axes(k if mixture else 1, d, self.radius * mixture, device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        # A last batch of a few rows would be a poor density estimate.
        size = min(self.batch_size, len(x))
        self.history_ = fit(
            network,
            batches(x, labels, batch_size=size, drop_last=True),
            self._step(target, d),
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [self.drop_epoch]),
            epochs=self.epochs,
            seed=seed,
            device=device,
            callback=callback,
            progress=self.progress,
        )
        self.n_iter_ = self.epochs
        self.network_ = network.cpu().double().eval()
        self.target_ = TargetMixture(target.centres.cpu())
        if mixture:
            self.centres_ = self.target_.centres.double().numpy()
        self._n_features_out = d

    def _step(self, target: TargetMixture, d: int) -> Callable[..., dict[str, torch.Tensor]]:
        """The loss of one batch (eq. 12), as `training.fit` wants it."""
        from scipy.special import gammaincinv

        alpha, beta, rho = self.weights
        entropy = target.entropy()
        threshold = self.threshold
        if threshold is None:  # the squared radius has a chi-square distribution
            threshold = min(math.sqrt(2 * gammaincinv(d / 2, 0.99)), self.radius / math.sqrt(2))

        def step(network, batch, generator):
            x, labels = batch
            latent, reconstructed = network(x)
            draws = target.sample(len(x), generator)
            bandwidth = scott_bandwidth(len(x), d)
            terms = {}
            if alpha:
                loss = js_loss(latent, draws, bandwidth, self.leave_one_out, generator, self.floor)
                terms |= {"pdf": loss, "js": js_divergence(loss.detach(), entropy)}
            if beta and self.target == "mixture":
                terms["cluster"] = centre_loss(latent, labels, target.centres, threshold)
            elif beta:
                terms["cluster"] = hyperplane_loss(latent, labels)
            if rho:
                terms["reconstruction"] = reconstruction_loss(x, reconstructed)
            weight = {"pdf": alpha, "cluster": beta, "reconstruction": rho, "js": 0}
            return {"loss": sum(weight[name] * value for name, value in terms.items()), **terms}

        return step

    def _standardised(self, X: np.ndarray) -> np.ndarray:
        return (X.astype(np.float64, copy=False) - self.mean_) / self.scale_

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Latent points (n, d) of ``X`` (n, D)."""
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            return self.network_.encoder(as_tensor(self._standardised(rows))).numpy()

    def inverse_transform(self, Z: ArrayLike) -> np.ndarray:
        """Reconstructed features (n, D) of latent points ``Z`` (n, d)."""
        check_is_fitted(self)
        z = check_array(Z, dtype=np.float64, input_name="Z")
        if z.shape[1] != self._n_features_out:
            raise ValueError(f"Z has {z.shape[1]} columns, the latent space {self._n_features_out}")
        with torch.no_grad():
            x = self.network_.decoder(as_tensor(z)).numpy()
        return x * self.scale_ + self.mean_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The class of the nearest centre, or of the side of ``z_0 = 0``."""
        z = self.transform(X)
        if hasattr(self, "centres_"):
            return self.classes_[self._log_joint(z).argmax(1)]
        return self.classes_[(z[:, 0] > 0).astype(int)]

    @available_if(_has_components)
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Posterior of the components under the target density (n, k); mixture target only."""
        log_joint = self._log_joint(self.transform(X))
        return torch.from_numpy(log_joint).softmax(1).numpy()

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """``log p(z)`` of each row under the target density: low for anomalies (n,)."""
        return self.target_.log_density(torch.from_numpy(self.transform(X))).numpy()

    def _log_joint(self, z: np.ndarray) -> np.ndarray:
        return self.target_.log_joint(torch.from_numpy(z)).numpy()
