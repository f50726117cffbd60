"""A multi-path network as one estimator: vectors or images to classes, and what gates decide."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, validate_data
from torch import nn

from latentspace.images import image_tensor, random_shift
from latentspace.multipath import multipath
from latentspace.training import batches, fit, pick_device, predict

__all__ = ["MultiPathClassifier", "step_schedule"]

PLANS = {"images": "R C16 C16 M R C32 C32 M R F64 R", "vectors": "R F32 R F32 R"}


class MultiPathClassifier(ClassifierMixin, BaseEstimator):
    """Classify vectors or images with parallel paths that route their own input.

    Parameters
    ----------
    plan : str, optional
        The network, in the language of `multipath.multipath`; by default "R C16 C16 M R C32 C32 M
        R F64 R" for images and "R F32 R F32 R" for vectors. BASE_CC there is the thesis's.
    paths : int
    hidden : int
        Units of each gate network.
    norm : bool
        Batch normalisation of the convolutions.
    epochs, batch_size : int
        A last batch that is not full is left out.
    lr, weight_decay : float
        SGD with momentum .9; the rate falls to a tenth after 40 % and to a hundredth after 75 % of
        the epochs, as the thesis's after 80 and 150 of 200.
    shift : int
        In training images move by up to so many pixels in each direction, zeros coming in.
    flip : bool
        In training half of the images are mirrored.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool
        Show a progress bar.

    Attributes
    ----------
    image_shape_ : (channels, height, width), or None for vectors
    classes_ : array of the classes that `fit` saw, in order; no other is ever predicted
    model_ : multipath.MultiPath on the CPU, in evaluation mode
    history_ : DataFrame, one row an epoch: loss and accuracy in training
    n_features_in_ : int, for vectors

    `fit` takes vectors (n, d), which are standardised, or images as `images.image_tensor` does:
    (n, height, width) or (n, height, width, 1 or 3), bytes or floats in [0, 1].

    Source: Tissera's thesis, chapter 3.
    """

    def __init__(
        self,
        plan=None,
        paths=2,
        hidden=10,
        norm=True,
        epochs=30,
        batch_size=64,
        lr=0.05,
        weight_decay=1e-4,
        shift=0,
        flip=False,
        random_state=None,
        device=None,
        progress=False,
    ):
        self.plan = plan
        self.paths = paths
        self.hidden = hidden
        self.norm = norm
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.shift = shift
        self.flip = flip
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X, y, callback=None):
        """Train on ``X`` with classes ``y`` (n,). ``callback(epoch, model)`` follows each epoch.

        Raises ValueError on NaN, fewer than two classes, images that the plan's poolings exhaust,
        or parameters out of range.
        """
        if y is None:
            raise ValueError("it requires y to be passed, but the target y is None")
        X, y = self._validated(X, y)
        self._check_parameters()
        check_classification_targets(y)
        classes, targets = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"need two classes or more, but y holds one class: {classes[0]!r}")
        mean, scale = None, None
        if self.image_shape_ is None:
            mean, scale = X.mean(0), X.std(0)
            scale[scale < 1e-12 * (1 + np.abs(mean))] = 1  # constant columns
        self.classes_, self.mean_, self.scale_ = classes, mean, scale
        x = self._tensor(X).float()
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        # A fork keeps the caller's global random state; the initial weights come from the seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self._network(tuple(x.shape[1:]))
        optimizer = torch.optim.SGD(
            model.parameters(), self.lr, 0.9, weight_decay=self.weight_decay
        )
        size = min(self.batch_size, len(x))
        self.history_ = fit(
            model,
            batches(x, torch.as_tensor(targets), batch_size=size, drop_last=True),
            self._step,
            optimizer=optimizer,
            scheduler=step_schedule(optimizer, self.epochs),
            epochs=self.epochs,
            seed=seed,
            device=pick_device(self.device),
            callback=callback,
            progress=self.progress,
        )
        self.n_iter_ = self.epochs
        # Double precision on vectors costs little, and no answer hangs on the order of the rows.
        self.model_ = (model.cpu() if self.image_shape_ else model.cpu().double()).eval()
        return self

    def _step(self, model, batch, generator):
        """The loss of one batch, as `training.fit` wants it."""
        x, y = batch
        if x.ndim == 4 and (self.shift or self.flip):
            # Shifted as bytes would be: what comes in is black, -2 after centring.
            x = random_shift(x + 2, generator, self.shift, self.flip) - 2
        logits = model(x)
        accuracy = (logits.argmax(1) == y).float().mean()
        return {"loss": F.cross_entropy(logits, y), "accuracy": accuracy}

    def _network(self, shape: tuple[int, ...]) -> nn.Module:
        plan = self.plan or PLANS["images" if len(shape) == 3 else "vectors"]
        options = {"paths": self.paths, "hidden": self.hidden, "norm": self.norm}
        return multipath(plan, shape, len(self.classes_), grouped=True, **options)

    def _validated(self, X, y=None):
        """X checked, with y in `fit`: vectors in float64, images as they came."""
        fitting = y is not None
        if (X.ndim if hasattr(X, "ndim") else np.asarray(X).ndim) in (3, 4):
            X = np.asarray(X)
            X = X.astype(X.dtype.newbyteorder("="), order="C", copy=False)
            shape = tuple(image_tensor(X[:1]).shape[1:])
            if not fitting and shape != self.image_shape_:
                raise ValueError(f"X has images {shape}, fit had {self.image_shape_ or 'vectors'}")
            if fitting:
                check_consistent_length(X, y)
                y, self.image_shape_ = column_or_1d(y), shape
            return (X, y) if fitting else X
        if fitting:
            self.image_shape_ = None
        elif self.image_shape_:
            raise ValueError(f"X has shape {np.shape(X)}, fit had images {self.image_shape_}")
        return validate_data(self, X, *([y] if fitting else []), reset=fitting, dtype=np.float64)

    def _check_parameters(self):
        for name in ("paths", "hidden", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("weight_decay", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")

    def _tensor(self, X):
        if self.image_shape_ is None:
            return torch.tensor((X - self.mean_) / self.scale_)
        return 4 * image_tensor(X) - 2

    def decision_function(self, X):
        """Logits: (n, n_classes), or the second minus the first (n,) for two classes."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X):
        """Probabilities (n, n_classes) in the order of ``classes_``."""
        return torch.tensor(self._logits(X)).double().softmax(1).numpy()

    def predict(self, X):
        """The most probable class of each row (n,)."""
        chosen = self._logits(X).argmax(1)
        return self.classes_[chosen]

    def gates(self, X):
        """What each adaptive router decides, a list of (n, inputs, outputs), rows summing to 1."""
        check_is_fitted(self)
        x = self._tensor(self._validated(X))
        found = predict(lambda rows: tuple(self.model_.gates(rows)), x)
        return [gates.numpy() for gates in found]

    def _logits(self, X):
        check_is_fitted(self)
        return predict(self.model_, self._tensor(self._validated(X))).numpy()


def step_schedule(optimizer: torch.optim.Optimizer, epochs: int):
    """The thesis's learning rate: a tenth after 40 %, a hundredth after 75 % of the epochs."""
    milestones = [round(0.4 * epochs), round(0.75 * epochs)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
