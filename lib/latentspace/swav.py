"""SwAV as one estimator: image features trained by predicting the codes of other views."""

import argparse
import math
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import distributed, nn
from torchvision.models import VisionTransformer

from latentspace.images import colour_jitter, image_tensor, random_crop
from latentspace.networks import classifier
from latentspace.prototypes import (
    Prototypes,
    Queue,
    sinkhorn,
    swapped_prediction,
)
from latentspace.training import batches, fit, pick_device, predict

__all__ = ["Network", "SwAV", "everywhere", "usage", "views"]


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

    def __init__(self, backbone, width, dim, n_prototypes, queue_length=0):
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim)
        )
        self.prototypes = Prototypes(n_prototypes, dim)
        self.queue = Queue(2, queue_length, dim) if queue_length else None
        self.register_buffer("steps", torch.tensor(0))

    def features(self, x):
        """What is kept after training (n, width): the backbone's output."""
        return self.backbone.features(x)

    def forward(self, x):
        """Unit vectors (n, dim)."""
        return F.normalize(self.projection(self.features(x)), dim=1)

    def scores(self, x):
        """Similarities of images and prototypes (n, K)."""
        return self.prototypes(self(x))

    @torch.no_grad()
    def codes(self, z, epsilon, iterations):
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


def views(images, generator, global_size, local_size, n_local, global_area, local_area):
    """Two global views of each image and ``n_local`` smaller ones, in two tensors.

    Returns (2 n, channels, global_size, global_size) and (n_local n, channels, local_size,
    local_size), view by view; the second is None without local views.
    """

    def several(count, size, area):
        repeated = images.repeat(count, 1, 1, 1)
        return colour_jitter(random_crop(repeated, size, area, generator), generator)

    local = several(n_local, local_size, local_area) if n_local else None
    return several(2, global_size, global_area), local


class SwAV(ClusterMixin, TransformerMixin, BaseEstimator):
    """Features and clusters of images without labels, by swapped prediction.

    Parameters
    ----------
    n_prototypes : int
        K, several times the number of clusters expected.
    backbone : str or nn.Module
        A name for `backbones.classifier`, or a module with a method ``features``, which `fit`
        trains in place; its width is found by one image.
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

    def __init__(
        self,
        n_prototypes=30,
        backbone="resnet8s",
        dim=32,
        epsilon=0.05,
        temperature=0.1,
        sinkhorn_iterations=3,
        global_size=24,
        local_size=12,
        n_local=0,
        global_area=(0.3, 1.0),
        local_area=(0.1, 0.3),
        epochs=20,
        batch_size=256,
        lr=0.1,
        weight_decay=1e-4,
        freeze_steps=0,
        queue_length=0,
        random_state=None,
        device=None,
        progress=False,
    ):
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
        self.random_state = random_state
        self.device = device
        self.progress = progress

    def fit(self, X, y=None, callback=None, accelerator=None):
        """Train on images ``X``, see `image_tensor`; ``y`` is ignored.

        ``callback`` and ``accelerator`` are those of `training.fit`; with several processes the
        codes are computed over the whole global batch. Warns if there are fewer images in a batch
        (and the queue) than prototypes. Raises ValueError on images or parameters that cannot be.
        """
        x = image_tensor(X)
        self._check_parameters(len(x))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        # A fork keeps the caller's global random state; the initial weights come from the seed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._build(x)
        size = min(self.batch_size, len(x))
        loader = batches(x, batch_size=size, drop_last=True)
        optimizer = torch.optim.SGD(
            network.parameters(), self.lr, 0.9, weight_decay=self.weight_decay, nesterov=True
        )
        self.channels_ = x.shape[1]
        self.history_ = fit(
            network,
            loader,
            self._step,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.epochs)),
            epochs=self.epochs,
            seed=seed,
            device=None if accelerator else pick_device(self.device),
            callback=callback,
            progress=self.progress,
            accelerator=accelerator,
        )
        network.prototypes.normalise()
        self.network_ = network.cpu().eval()
        self.labels_ = self.predict(X)
        return self

    def _build(self, x):
        backbone = self.backbone
        if isinstance(backbone, str):
            backbone = classifier(backbone, x.shape[1], 1)
            if not isinstance(backbone.body, VisionTransformer):
                backbone.image_size = None  # each view at its own size
        width = predict(backbone.features, x[:1]).shape[1]
        self.n_features_out_ = width
        return Network(backbone, width, self.dim, self.n_prototypes, self.queue_length)

    def _step(self, network, batch, generator):
        """The loss of one batch of images, as `training.fit` wants it."""
        (x,) = batch
        network.prototypes.normalise()
        large, small = views(
            x, generator, self.global_size, self.local_size, self.n_local,
            self.global_area, self.local_area,
        )  # fmt: skip
        z = network(large) if small is None else torch.cat([network(large), network(small)])
        z = z.view(2 + self.n_local, len(x), -1)
        scores = network.prototypes(z, frozen=int(network.steps) < self.freeze_steps)
        codes = network.codes(z[:2].detach(), self.epsilon, self.sinkhorn_iterations)
        network.steps += 1
        loss = swapped_prediction(scores, codes, self.temperature)
        return {"loss": loss, "usage": usage(scores[0])}

    def _check_parameters(self, n):
        whole = ("n_prototypes", "dim", "epochs", "batch_size", "global_size", "local_size")
        for name in whole:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("n_local", "freeze_steps", "queue_length", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("epsilon", "temperature", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.n_prototypes < 2:
            raise ValueError("SwAV needs 2 prototypes or more, got 1")
        if n < 2:
            raise ValueError("SwAV needs 2 images or more, got 1: a batch of one has no clusters")
        together = min(self.batch_size, n) + self.queue_length
        if together < self.n_prototypes:
            warnings.warn(
                f"{together} features share {self.n_prototypes} prototypes: no code can name one "
                "prototype; enlarge batch_size or queue_length, or lower n_prototypes",
                stacklevel=3,
            )

    def _images(self, X):
        check_is_fitted(self)
        x = image_tensor(X)
        if x.shape[1] != self.channels_:
            raise ValueError(f"X has {x.shape[1]} channels, SwAV was fitted on {self.channels_}")
        size = (self.global_size, self.global_size)
        return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)

    def transform(self, X):
        """Features (n, n_features_out_) of whole images, resized to ``global_size``."""
        x = self._images(X)
        return predict(self.network_.features, x).numpy()

    def decision_function(self, X):
        """Similarities (n, n_prototypes) of images and prototypes, in [-1, 1]."""
        x = self._images(X)
        return predict(self.network_.scores, x).numpy()

    def predict(self, X):
        """The nearest prototype of each image (n,)."""
        return self.decision_function(X).argmax(1)


def usage(scores):
    """Entropy of how often each prototype is the nearest, over ln K: scores (n, K) to a scalar.

    0 if all images are nearest to one prototype, 1 if each prototype has equally many.
    """
    share = scores.argmax(1).bincount(minlength=scores.shape[1]) / len(scores)
    return torch.special.entr(share).sum() / math.log(scores.shape[1])


def everywhere(rows):
    """The rows (n, d) of all processes, one after the other, and which of them are ours (a slice).

    Every process must have n rows.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return rows, slice(None)
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    start = distributed.get_rank() * len(rows)
    return torch.cat(parts), slice(start, start + len(rows))


def main(argv=None):
    """Train on a data set, in as many processes as started this: see ``--help``."""
    parser = argparse.ArgumentParser(
        prog="python -m latentspace.swav",
        description="Train SwAV on images; under torchrun, on several GPUs or machines. "
        "Writes network.pt and history.csv.",
    )
    parser.add_argument("name", help="a set of latentspace.data, such as cifar10")
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--split", default="train")
    for option, kind in (("backbone", str), ("n-prototypes", int), ("dim", int), ("n-local", int),
                         ("global-size", int), ("local-size", int), ("epochs", int),
                         ("batch-size", int), ("lr", float), ("freeze-steps", int),
                         ("queue-length", int), ("random-state", int)):  # fmt: skip
        parser.add_argument(f"--{option}", type=kind, default=argparse.SUPPRESS)
    options = vars(parser.parse_args(argv))
    from accelerate import Accelerator

    from latentspace import data

    name, split, folder = (options.pop(key) for key in ("name", "split", "folder"))
    accelerator = Accelerator()
    x = data.load(name, split).x
    model = SwAV(**{"random_state": 0, "progress": True} | options)
    model.fit(x, accelerator=accelerator)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.network_.state_dict(), folder / "network.pt")
        model.history_.to_csv(folder / "history.csv", index=False)
    accelerator.end_training()


if __name__ == "__main__":
    main()
