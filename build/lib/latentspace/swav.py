"""SwAV as one estimator: image features trained by predicting the codes of other views."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import distributed, nn

from latentspace.estimators import (
    NOT_NEGATIVE,
    POSITIVE,
    RULES,
    at_least,
    draw_seed,
    fitting,
    initial_weights,
)
from latentspace.images import colour_jitter, image_tensor, random_crop
from latentspace.networks import classifier
from latentspace.prototypes import Prototypes, Queue, sinkhorn, swapped_prediction
from latentspace.training import batches, fit, pick_device, predict

__all__ = ["Network", "SwAV", "everywhere", "usage", "views"]

# --- what is trained ------------------------------------------------------------------------------


class Network(nn.Module):
    """A backbone, a projection onto the unit sphere and the prototypes on it.

    Parameters
    ----------
    backbone : nn.Module
        With a method ``features``, images (n, channels, height, width) to (n, width).
    width : int
    dim : int
        Of the sphere's space; the projection is Linear, BatchNorm, ReLU, Linear.
    n_prototypes : int
    queue_length : int
        Features of past batches kept for each of the two coded views; 0 for none.
    """

    def __init__(
        self, backbone: nn.Module, width: int, dim: int, n_prototypes: int, queue_length: int = 0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim)
        )
        self.prototypes = Prototypes(n_prototypes, dim)
        self.queue = Queue(2, queue_length, dim) if queue_length else None
        self.register_buffer("steps", torch.tensor(0))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What is kept after training (n, width): the backbone's output."""
        return self.backbone.features(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Unit vectors (n, dim)."""
        return F.normalize(self.projection(self.features(x)), dim=1)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """Similarities of images and prototypes (n, K)."""
        return self.prototypes(self(x))

    @torch.no_grad()
    def codes(self, z: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
        """Codes (views, n, K) of unit vectors (views, n, dim), which the queue then takes up.

        A view's codes are computed among the rows of all processes and, once the queue is full,
        those in the queue.
        """
        gathered, ours = zip(*map(everywhere, z), strict=True)
        gathered = torch.stack(gathered)
        among = gathered
        if self.queue is not None and self.queue.full:
            among = torch.cat([gathered, self.queue.rows], 1)
        codes = [sinkhorn(self.prototypes(rows), epsilon, iterations)[ours[0]] for rows in among]
        if self.queue is not None:
            self.queue.push(gathered)
        return torch.stack(codes)[:, : z.shape[1]]


def views(
    images: torch.Tensor,
    generator: torch.Generator,
    global_size: int,
    local_size: int,
    n_local: int,
    global_area: Sequence[float],
    local_area: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Two global views of each image and ``n_local`` smaller ones, in two tensors.

    Returns (2 n, channels, global_size, global_size) and (n_local n, channels, local_size,
    local_size), view by view; the second is None without local views.
    """

    def several(count: int, size: int, area: Sequence[float]) -> torch.Tensor:
        repeated = images.repeat(count, 1, 1, 1)
        return colour_jitter(random_crop(repeated, size, area, generator), generator)

    local = several(n_local, local_size, local_area) if n_local else None
    return several(2, global_size, global_area), local


def usage(scores: torch.Tensor) -> torch.Tensor:
    """Entropy of how often each prototype is the nearest, over ln K: scores (n, K) to a scalar.

    0 if all images are nearest to one prototype, 1 if each prototype has equally many.
    """
    share = scores.argmax(1).bincount(minlength=scores.shape[1]) / len(scores)
    return torch.special.entr(share).sum() / math.log(scores.shape[1])


def everywhere(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """The rows (n, d) of all processes, one after the other, and which of them are ours (a slice).

    Every process must have n rows.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return rows, slice(None)
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    start = distributed.get_rank() * len(rows)
    return torch.cat(parts), slice(start, start + len(rows))


# --- the estimator --------------------------------------------------------------------------------


class SwAV(ClusterMixin, TransformerMixin, BaseEstimator):
    """Features and clusters of images without labels, by swapped prediction.

    Parameters
    ----------
    n_prototypes : int
        K, several times the number of clusters expected.
    backbone : str or nn.Module
        A name for `networks.classifier`, or a module with a method ``features``, of which `fit`
        trains a copy; its width is found by one image.
    dim : int
        Of the space whose unit sphere holds projections and prototypes.
    epsilon, temperature, sinkhorn_iterations : float, float, int
        As in `sinkhorn` and `swapped_prediction`.
    global_size, local_size, n_local : int
        Pixels of the two global views, and of ``n_local`` local ones (0: no multi-crop).
    global_area, local_area : (float, float)
        Shares of the image's area that a view is cut from.
    epochs, batch_size, lr, weight_decay : int, int, float, float
        SGD with momentum 0.9 and a cosine schedule. The paper's LARS is for batches of thousands.
    freeze_steps : int
        For so many steps the prototypes stay where they are (313, an epoch, in the paper).
    queue_length : int
        Past features of each global view that take part in the codes, once there are so many.
    mixed_precision : bool
        Of the networks on CUDA, see `training.fit`; the codes and the loss stay in float32.
    random_state : int, RandomState or None
    device : str, optional
        A torch device; the best there is by default.
    progress : bool
        Show a progress bar.

    Attributes
    ----------
    network_ : Network, on the CPU and in eval mode
    labels_ : int array (n,), the prototype nearest to each image, seen whole
    n_features_out_ : int, width of the features
    history_ : DataFrame, one row an epoch: the loss and ``usage``, the entropy of how often each
        prototype is the nearest within a batch, over its maximum (0: all images at one, 1: equal)

    Source: SwAV (Caron et al. 2020) as the seminar slides describe it, errata L2-L6.
    """

    _parameter_constraints = RULES | {
        "n_prototypes": [at_least(2)],
        "backbone": [str, nn.Module],
        "dim": [at_least(1)],
        "epsilon": [POSITIVE],
        "temperature": [POSITIVE],
        "sinkhorn_iterations": [at_least(1)],
        "global_size": [at_least(1)],
        "local_size": [at_least(1)],
        "n_local": [at_least(0)],
        "global_area": ["array-like"],
        "local_area": ["array-like"],
        "epochs": [at_least(1)],
        "batch_size": [at_least(1)],
        "lr": [POSITIVE],
        "weight_decay": [NOT_NEGATIVE],
        "freeze_steps": [at_least(0)],
        "queue_length": [at_least(0)],
        "mixed_precision": ["boolean"],
    }

    def __init__(
        self,
        n_prototypes: int = 30,
        backbone: str | nn.Module = "resnet8s",
        dim: int = 32,
        epsilon: float = 0.05,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        global_size: int = 24,
        local_size: int = 12,
        n_local: int = 0,
        global_area: Sequence[float] = (0.3, 1.0),
        local_area: Sequence[float] = (0.1, 0.3),
        epochs: int = 20,
        batch_size: int = 256,
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        freeze_steps: int = 0,
        queue_length: int = 0,
        mixed_precision: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str | torch.device | None = None,
        progress: bool = False,
    ) -> None:
        self.n_prototypes = n_prototypes
        self.backbone = backbone
        self.dim = dim
        self.epsilon = epsilon
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.global_size = global_size
        self.local_size = local_size
        self.n_local = n_local
        self.global_area = global_area
        self.local_area = local_area
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.freeze_steps = freeze_steps
        self.queue_length = queue_length
        self.mixed_precision = mixed_precision
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(
        self,
        X: ArrayLike,
        y: object = None,
        callback: Callable[[int, nn.Module], Any] | None = None,
        checkpoint: str | Path | None = None,
        accelerator: Any = None,
    ) -> "SwAV":
        """Train on images ``X``, see `image_tensor`; ``y`` is ignored.

        ``callback``, ``checkpoint`` and ``accelerator`` are those of `training.fit`; with several
        processes the codes are computed over the whole global batch. Warns if there are fewer
        images in a batch (and the queue) than prototypes. Raises ValueError on images or
        parameters that cannot be.
        """
        with fitting(self):
            x = image_tensor(X)
            self._check(len(x))
            seed = draw_seed(self.random_state)
            with initial_weights(seed):
                network = self._build(x)
            optimizer = torch.optim.SGD(
                network.parameters(), self.lr, 0.9, weight_decay=self.weight_decay, nesterov=True
            )
            self.history_ = fit(
                network,
                batches(x, batch_size=min(self.batch_size, len(x)), drop_last=True),
                self._step,
                optimizer=optimizer,
                scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs),
                epochs=self.epochs,
                seed=seed,
                device=None if accelerator else pick_device(self.device),
                callback=callback,
                mixed_precision=self.mixed_precision,
                checkpoint=checkpoint,
                progress=self.progress,
                accelerator=accelerator,
            )
            network.prototypes.normalise()
            self.network_ = network.cpu().eval()
            self.channels_, self.image_size_ = x.shape[1], self.global_size
            self.labels_ = predict(self.network_.scores, self._resized(x)).argmax(1).numpy()
        return self

    def _check(self, n: int) -> None:
        """What a table of rules cannot say; ``n`` is the number of images."""
        if n < 2:
            raise ValueError("SwAV needs 2 images or more, got 1: a batch of one has no clusters")
        together = min(self.batch_size, n) + self.queue_length
        if together < self.n_prototypes:
            warnings.warn(
                f"{together} features share {self.n_prototypes} prototypes: no code can name one "
                "prototype; enlarge batch_size or queue_length, or lower n_prototypes",
                stacklevel=3,
            )

    def _build(self, x: torch.Tensor) -> Network:
        if isinstance(self.backbone, str):
            backbone = classifier(self.backbone, x.shape[1], 1)
            if not self.backbone.startswith("vit"):
                backbone.image_size = None  # each view at its own size
        else:
            backbone = copy.deepcopy(self.backbone)
        width = predict(backbone.features, x[:1]).shape[1]
        self.n_features_out_ = width
        return Network(backbone, width, self.dim, self.n_prototypes, self.queue_length)

    def _step(
        self, network: Network, batch: Sequence[torch.Tensor], generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The loss of one batch of images, as `training.fit` wants it."""
        (x,) = batch
        network.prototypes.normalise()
        large, small = views(
            x, generator, self.global_size, self.local_size, self.n_local,
            self.global_area, self.local_area,
        )  # fmt: skip
        z = network(large) if small is None else torch.cat([network(large), network(small)])
        z = z.view(2 + self.n_local, len(x), -1)
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            scores = network.prototypes(z, frozen=int(network.steps) < self.freeze_steps)
            codes = network.codes(z[:2].detach(), self.epsilon, self.sinkhorn_iterations)
            loss = swapped_prediction(scores, codes, self.temperature)
        network.steps += 1
        return {"loss": loss, "usage": usage(scores[0])}

    def _images(self, X: ArrayLike) -> torch.Tensor:
        check_is_fitted(self)
        x = image_tensor(X)
        if x.shape[1] != self.channels_:
            raise ValueError(f"X has {x.shape[1]} channels, SwAV was fitted on {self.channels_}")
        return self._resized(x)

    def _resized(self, x: torch.Tensor) -> torch.Tensor:
        size = (self.image_size_, self.image_size_)
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Features (n, n_features_out_) of whole images, resized to ``global_size``."""
        x = self._images(X)
        return predict(self.network_.features, x).numpy()

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Similarities (n, n_prototypes) of images and prototypes, in [-1, 1]."""
        x = self._images(X)
        return predict(self.network_.scores, x).numpy()

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The nearest prototype of each image (n,)."""
        return self.decision_function(X).argmax(1)
