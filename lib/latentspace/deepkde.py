"""DeepKDE as one estimator: an autoencoder whose latent space takes a chosen density."""

import math

import numpy as np
import torch
from scipy.stats import chi
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_array, check_random_state
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
from latentspace.networks import Autoencoder
from latentspace.training import batches, fit, pick_device

__all__ = ["DeepKDE"]


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
    network_ : Autoencoder, in double precision and evaluation mode
    target_ : TargetMixture
    centres_ : array (k, d), the class centres (mixture target only)
    history_ : DataFrame, one row an epoch: loss, pdf, js, cluster, reconstruction
    n_iter_ : int

    Source: DeepKDE, eq. 7-14 and Table 1, corrected: errata K1-K11.
    """

    def __init__(
        self,
        target="mixture",
        latent_dim=None,
        radius=6.0,
        weights=(0.7, 0.1, 0.2),
        threshold=None,
        hidden=(64, 32),
        epochs=300,
        batch_size=2000,
        lr=0.01,
        drop_epoch=200,
        leave_one_out=True,
        floor=0.0,
        random_state=None,
        device=None,
        progress=False,
    ):
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

    def fit(self, X, y, callback=None):
        """Train on features ``X`` (n, D) with class labels ``y`` (n,).

        ``callback(epoch, network)`` is called after each epoch. Raises ValueError on NaN, fewer
        than 4 rows, one class, or parameters out of range.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=4)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        k = len(self.classes_)
        d = self.latent_dim or k
        self._check_parameters(k, d)
        device = pick_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))

        self.mean_, self.scale_ = X.mean(0), X.std(0)
        self.scale_[self.scale_ < 1e-12 * (1 + np.abs(self.mean_))] = 1  # constant features
        x = torch.tensor((X - self.mean_) / self.scale_, dtype=torch.float32)
        # A fork keeps the caller's global random state; the initial weights come from the seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Autoencoder(X.shape[1], d, self.hidden)
        mixture = self.target == "mixture"
        self.target_ = TargetMixture.on_axes(k if mixture else 1, d, self.radius * mixture, device)
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [self.drop_epoch])
        # A last batch of a few rows would be a poor density estimate.
        size = min(self.batch_size, len(x))
        loader = batches(x, torch.tensor(labels), batch_size=size, drop_last=True)

        self.history_ = fit(
            network,
            loader,
            self._step(d),
            optimizer=optimizer,
            scheduler=scheduler,
            epochs=self.epochs,
            seed=seed,
            device=device,
            callback=callback,
            progress=self.progress,
        )
        self.n_iter_ = self.epochs
        self.network_ = network.cpu().double().eval()
        self.target_ = TargetMixture(self.target_.centres.cpu())
        if mixture:
            self.centres_ = self.target_.centres.double().numpy()
        self._n_features_out = d
        return self

    def _check_parameters(self, k, d):
        if self.target not in ("mixture", "normal"):
            raise ValueError(f"target must be 'mixture' or 'normal', got {self.target!r}")
        if k < 2:
            raise ValueError("DeepKDE needs two classes or more, the labels have 1 class")
        if self.target == "normal" and k != 2:
            raise ValueError(f"target='normal' divides two classes, the labels have {k} classes")
        if len(self.weights) != 3 or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise ValueError(f"weights must be three non-negative numbers, got {self.weights}")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")
        if self.threshold is not None and not self.threshold >= 0:
            raise ValueError(f"threshold must be 0 or more, got {self.threshold}")
        if not 0 <= self.floor <= 1 or (self.floor and not self.leave_one_out):
            raise ValueError(
                f"floor, in [0, 1], is the weight of what is left out, got {self.floor}"
            )
        if self.batch_size < 4:
            raise ValueError(f"batch_size must be 4 or more, got {self.batch_size}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be 1 or more, got {self.epochs}")

    def _step(self, d):
        """The loss of one batch (eq. 12), as `training.fit` wants it."""
        alpha, beta, rho = self.weights
        target, entropy = self.target_, self.target_.entropy()
        threshold = self.threshold
        if threshold is None:
            threshold = min(chi(d).ppf(0.99), self.radius / math.sqrt(2))

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

    def transform(self, X):
        """Latent points (n, d) of ``X`` (n, D)."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        with torch.no_grad():
            return self.network_.encoder(torch.from_numpy((X - self.mean_) / self.scale_)).numpy()

    def inverse_transform(self, Z):
        """Reconstructed features (n, D) of latent points ``Z`` (n, d)."""
        check_is_fitted(self)
        Z = check_array(Z, dtype=np.float64, input_name="Z")
        if Z.shape[1] != self._n_features_out:
            raise ValueError(f"Z has {Z.shape[1]} columns, the latent space {self._n_features_out}")
        with torch.no_grad():
            x = self.network_.decoder(torch.from_numpy(Z)).numpy()
        return x * self.scale_ + self.mean_

    def predict(self, X):
        """The class of the nearest centre, or of the side of ``z_0 = 0``."""
        z = self.transform(X)
        if self.target == "normal":
            return self.classes_[(z[:, 0] > 0).astype(int)]
        return self.classes_[self._log_joint(z).argmax(1)]

    @available_if(lambda self: self.target == "mixture")
    def predict_proba(self, X):
        """Posterior of the components under the target density (n, k); mixture target only."""
        log_joint = self._log_joint(self.transform(X))
        return torch.from_numpy(log_joint).softmax(1).numpy()

    def score_samples(self, X):
        """``log p(z)`` of each row under the target density: low for anomalies (n,)."""
        return self.target_.log_density(torch.from_numpy(self.transform(X))).numpy()

    def _log_joint(self, z):
        return self.target_.log_joint(torch.from_numpy(z)).numpy()
