"""A multi-path network as one estimator: vectors or images to classes, and what gates decide."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_X_y
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from latentspace import __version__
from latentspace.data import data_home
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
from latentspace.files import fingerprint
from latentspace.images import has_images, image_tensor, random_shift
from latentspace.multipath import MultiPath, multipath
from latentspace.training import batches, fit, pick_device, predict

__all__ = ["MultiPathClassifier", "step_schedule"]

PLANS = {"images": "R C16 C16 M R C32 C32 M R F64 R", "vectors": "R F32 R F32 R"}

_NO_RESULT = ("device", "progress", "cache")  # parameters that the weights do not depend on


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
        SGD with momentum .9; the rate falls as `step_schedule` says.
    shift : int
        In training images move by up to so many pixels in each direction, zeros coming in.
    flip : bool
        In training half of the images are mirrored.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool
        Show a progress bar.
    cache : bool
        Keep the weights in the data home, by a fingerprint of the data and of all parameters that
        decide the result, and read them where they are kept already, or go on from them. Needs an
        integer ``random_state``.

    Attributes
    ----------
    classes_ : array of the classes that `fit` saw, in order; no other is ever predicted
    model_ : multipath.MultiPath on the CPU, in evaluation mode; in double precision for vectors
    history_ : DataFrame, one row an epoch: loss and accuracy in training
    n_iter_ : int
    image_shape_ : (channels, height, width) of the images it was fitted on; absent for vectors

    `fit` takes vectors (n, d), which are standardised, or images as `images.image_tensor` does:
    (n, height, width) or (n, height, width, 1 or 3), bytes or floats in [0, 1].

    Source: Tissera's thesis, chapter 3.
    """

    _parameter_constraints = RULES | {
        "plan": [str, None],
        "paths": [at_least(1)],
        "hidden": [at_least(1)],
        "norm": ["boolean"],
        "epochs": [at_least(1)],
        "batch_size": [at_least(1)],
        "lr": [POSITIVE],
        "weight_decay": [NOT_NEGATIVE],
        "shift": [at_least(0)],
        "flip": ["boolean"],
        "cache": ["boolean"],
    }

    def __init__(
        self,
        plan: str | None = None,
        paths: int = 2,
        hidden: int = 10,
        norm: bool = True,
        epochs: int = 30,
        batch_size: int = 64,
        lr: float = 0.05,
        weight_decay: float = 1e-4,
        shift: int = 0,
        flip: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
        cache: bool = False,
    ) -> None:
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
        self.cache = cache

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        callback: Callable[[int, nn.Module], Any] | None = None,
    ) -> "MultiPathClassifier":
        """Train on ``X`` with classes ``y`` (n,). ``callback(epoch, model)`` follows each epoch.

        Raises ValueError on NaN, fewer than two classes, images that the plan's poolings exhaust,
        or parameters out of range.
        """
        with fitting(self):
            if has_images(X):
                x = self._centred(image_tensor(X))
                _, y = check_X_y(x.numpy(), y, allow_nd=True, estimator=self)
                self.image_shape_ = tuple(x.shape[1:])
            else:
                rows, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
                self.mean_, self.scale_ = column_scales(rows)
                x = self._standardised(rows).float()
            check_classification_targets(y)
            self.classes_, labels = np.unique(y, return_inverse=True)
            if len(self.classes_) < 2:
                raise ValueError(
                    f"need two classes or more, but y holds one class: {self.classes_[0]!r}"
                )
            seed = draw_seed(self.random_state)
            with initial_weights(seed):
                model = self._network(x)
            self._train(model, x, torch.tensor(labels), seed, callback)
        return self

    def _network(self, x: torch.Tensor) -> MultiPath:
        plan = self.plan or PLANS["images" if x.ndim == 4 else "vectors"]
        return multipath(
            plan, x.shape[1:], len(self.classes_), paths=self.paths, hidden=self.hidden,
            norm=self.norm, grouped=True,
        )  # fmt: skip

    def _train(
        self,
        model: MultiPath,
        x: torch.Tensor,
        labels: torch.Tensor,
        seed: int,
        callback: Callable | None,
    ) -> None:
        device = pick_device(self.device)
        model.to(device)  # before an optimizer holds its parameters
        optimizer = torch.optim.SGD(
            model.parameters(), self.lr, 0.9, weight_decay=self.weight_decay
        )
        self.history_ = fit(
            model,
            batches(x, labels, batch_size=min(self.batch_size, len(x)), drop_last=True),
            self._step,
            optimizer=optimizer,
            scheduler=step_schedule(optimizer, self.epochs),
            epochs=self.epochs,
            seed=seed,
            device=device,
            callback=callback,
            checkpoint=self._kept(x, labels) if self.cache else None,
            progress=self.progress,
        )
        self.n_iter_ = self.epochs
        # Double precision on vectors costs little, and no answer hangs on the order of the rows.
        self.model_ = (model.cpu() if x.ndim == 4 else model.cpu().double()).eval()

    def _kept(self, x: torch.Tensor, labels: torch.Tensor) -> Path:
        """Where the weights for these data and parameters are kept."""
        if not isinstance(self.random_state, int | np.integer):
            raise ValueError(f"cache needs an integer random_state, got {self.random_state!r}")
        settings = {k: v for k, v in self.get_params().items() if k not in _NO_RESULT}
        if type(self) is not MultiPathClassifier:  # a subclass may train another network
            settings["class"] = type(self).__qualname__
        text = repr((__version__, sorted(settings.items()))).encode()
        key = fingerprint(x.numpy(), labels.numpy(), np.frombuffer(text, np.uint8))
        return data_home() / "weights" / f"multipath-{key}.pt"

    def _step(
        self, model: nn.Module, batch: Sequence[torch.Tensor], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch, as `training.fit` wants it."""
        x, labels = batch
        if x.ndim == 4 and (self.shift or self.flip):
            # Shifted as bytes would be: what comes in is black, -2 after centring.
            x = random_shift(x + 2, generator, self.shift, self.flip) - 2
        logits = model(x)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Logits: (n, n_classes), or the second minus the first (n,) for two classes."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probabilities (n, n_classes) in the order of ``classes_``."""
        return self._logits(X).double().softmax(1).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The most probable class of each row (n,)."""
        chosen = self._logits(X).argmax(1).numpy()
        return self.classes_[chosen]

    def gates(self, X: ArrayLike) -> list[np.ndarray]:
        """What each adaptive router decides, a list of (n, inputs, outputs), rows summing to 1."""
        x = self._inputs(X)
        found = predict(lambda rows: tuple(self.model_.gates(rows)), x)
        return [gates.numpy() for gates in found]

    def _logits(self, X: ArrayLike) -> torch.Tensor:
        x = self._inputs(X)
        return predict(self.model_, x)

    def _inputs(self, X: ArrayLike) -> torch.Tensor:
        """What the network sees of ``X``, which must be of the kind that `fit` saw."""
        check_is_fitted(self)
        if hasattr(self, "image_shape_"):
            return self._centred(image_tensor(X, shape=self.image_shape_))
        return self._standardised(validate_data(self, X, reset=False, dtype=np.float64))

    def _standardised(self, X: np.ndarray) -> torch.Tensor:
        return torch.tensor((X.astype(np.float64, copy=False) - self.mean_) / self.scale_)

    @staticmethod
    def _centred(images: torch.Tensor) -> torch.Tensor:
        return 4 * images - 2


def step_schedule(
    optimizer: torch.optim.Optimizer, epochs: int
) -> torch.optim.lr_scheduler.MultiStepLR:
    """The thesis's learning rate: a tenth after 40 %, a hundredth after 75 % of the epochs.

    In whole epochs, the first of which always has the full rate: 80 and 150 of 200, as there.
    """
    milestones = [max(1, round(share * epochs)) for share in (0.4, 0.75)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
