"""torchvision's data sets, from files that we download: with a time-out, and the MD5 it knows."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentspace.data.downloads import download, fetcher

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

__all__ = ["one_archive", "stl10", "svhn", "usps"]

Parts = Iterator[tuple[str, dict[str, np.ndarray]]]


def _files(kind: str, folder: Path, part: str) -> Iterator[tuple[list[str], Path, str]]:
    """For each file of a torchvision class: addresses to try, where it belongs, its MD5."""
    from torchvision import datasets

    source = getattr(datasets, kind)
    if hasattr(source, "resources"):  # MNIST and its kind
        for name, md5 in source.resources:
            yield [mirror + name for mirror in source.mirrors], folder / kind / "raw" / name, md5
    elif hasattr(source, "split_list"):  # a file for each split
        url, name, md5 = source.split_list[part]
        yield [url], folder / name, md5
    else:
        yield [source.url], folder / source.filename, source.tgz_md5


def _get(urls: list[str], path: Path, md5: str) -> None:
    """Download a file from the first address that has it; a wrong MD5 is tried once more.

    torchvision would do without a time-out. It finds the file and downloads nothing.
    """
    if path.is_file():
        return
    for url in urls:
        source = fetcher(path.parent, "", {path.name: f"md5:{md5}"})
        source.urls[path.name] = url
        try:
            source.fetch(path.name, downloader=download)
            return
        except Exception:
            if url == urls[-1]:
                raise


def _torchvision(kind: str, folder: Path, part: str, **options: object) -> "VisionDataset":
    """Return one of torchvision's data sets from files that `_get` has downloaded."""
    from torchvision import datasets

    for urls, path, md5 in _files(kind, Path(folder), part):
        _get(urls, path, md5)
    return getattr(datasets, kind)(folder, download=True, **options)


def _arrays(dataset: "VisionDataset") -> dict[str, np.ndarray]:
    """Return x and y of a torchvision data set, colour images with their channels last."""
    x = np.asarray(dataset.data)
    y = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    if x.ndim == 4 and x.shape[1] == 3:
        x = x.transpose(0, 2, 3, 1)
    return {"x": np.ascontiguousarray(x), "y": np.asarray(y).astype(np.int64)}


def one_archive(kind: str, folder: Path, split: str) -> Parts:
    """Yield training and test set of a class whose download holds both."""
    for part in ("train", "test"):
        dataset = _torchvision(kind, folder, part, train=part == "train")
        names = {"names": np.array(dataset.classes)} if kind == "CIFAR100" else {}
        yield part, _arrays(dataset) | names


def usps(folder: Path, split: str) -> Parts:
    """Yield the split."""
    yield split, _arrays(_torchvision("USPS", folder, split, train=split == "train"))


def svhn(folder: Path, split: str) -> Parts:
    """Yield the split."""
    yield split, _arrays(_torchvision("SVHN", folder, split, split=split))


def stl10(folder: Path, split: str) -> Parts:
    """Yield all three splits, which come in one archive."""
    for part in ("train", "test", "unlabeled"):
        yield part, _arrays(_torchvision("STL10", folder, part, split=part))
