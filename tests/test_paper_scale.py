"""The paper's settings start: each `*.paper.yaml` builds its models and takes one step here.

Random data of the right shape, on the CPU: a GPU run must not fail on its first line.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from latentspace.data.sources import SETS
from latentspace.deepdpm import DeepDPM
from latentspace.deepkde import DeepKDE
from latentspace.images import random_affine, random_shift
from latentspace.networks import classifier, convnet
from latentspace.neural_mixture import NeuralMixture, two_fold_step
from latentspace.relevance import RelevanceNorm
from latentspace.swav import SwAV
from latentspace.training import fit

PARAMS = Path(__file__).parents[1] / "notebooks" / "params"
# What a set's images are: channels and size. The chapter looks at the data; this must not.
SHAPE = {"fashion-mnist": (1, 28), "mnist": (1, 28), "cifar10": (3, 32)}


@pytest.fixture(scope="module")
def deepkde():
    return yaml.safe_load((PARAMS / "02_deepkde.paper.yaml").read_text())


@pytest.mark.parametrize("swap", [None, "vit_b_16"])
def test_deepkde_primary(deepkde, swap):
    channels, size = SHAPE[deepkde["digits"]]
    backbone = swap or deepkde["digits_backbone"]
    model = classifier(backbone, channels, 10)
    optimizer = torch.optim.SGD(model.parameters(), deepkde["primary_lr"], 0.9)
    generator = torch.Generator().manual_seed(0)
    x = random_shift(torch.rand(2, channels, size, size), generator)
    before = model.head.weight.detach().clone()
    loss = F.cross_entropy(model(x), torch.tensor([3, 8]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, model.head.weight)
    assert model.features(x).shape == (2, {"resnet18": 512, "vit_b_16": 768}[backbone])


def test_deepkde_reshaping(deepkde):
    """One epoch of one full batch, at the widths of the paper's Table 1."""
    rng = np.random.default_rng(0)
    n = deepkde["reshape_batch"]
    y = rng.integers(10, size=n)
    x = rng.normal(size=(n, 512)).astype(np.float32) + 3 * np.eye(10, 512, dtype=np.float32)[y]
    model = DeepKDE(hidden=deepkde["hidden"], batch_size=n, epochs=1, random_state=0).fit(x, y)
    assert model.n_iter_ == 1
    assert np.isfinite(model.history_.loc[0]).all()
    assert model.transform(x[:3]).shape == (3, 10)


def test_deepkde_data_exist(deepkde):
    assert deepkde["digits"] in SETS
    assert deepkde["digits_split"] in SETS[deepkde["digits"]].splits


@pytest.fixture(scope="module")
def images():
    return yaml.safe_load((PARAMS / "06_clustering_images.paper.yaml").read_text())


@pytest.mark.parametrize("which", range(4))
def test_clustering_images(images, which):
    """One two-fold step of each set's network at its full size."""
    side, k = images["sides"][which], 20 if images["sets"][which] == "cifar100" else 10
    model = nn.Sequential(convnet(images["plans"][which], (side, side), k), RelevanceNorm(k))
    before = model[0][-1].weight.detach().clone()
    rate = images["rate"]
    step = two_fold_step(torch.optim.Adam(model.parameters(), rate), random_affine)
    x = torch.rand(4, 1, side, side)
    optimizer = torch.optim.Adam(model.parameters(), images["ratio"] * rate)
    history = fit(model, [(x,)], step, optimizer=optimizer, epochs=1, device="cpu", progress=False)
    assert np.isfinite(history.loc[0]).all()
    assert not torch.equal(before, model[0][-1].weight)


def test_clustering_images_data_exist(images):
    for name in images["sets"]:
        assert set(images["splits"]) <= set(SETS[name].splits)
    lengths = {len(images[key]) for key in ("sets", "n", "sides", "plans", "epochs")}
    assert lengths == {4}


@pytest.fixture(scope="module")
def neural_mixtures():
    return yaml.safe_load((PARAMS / "05_neural_mixtures.paper.yaml").read_text())


def test_neural_mixtures_space(neural_mixtures):
    """One step of the classifier with a bottleneck of two, on digits of their size."""
    channels, size = SHAPE[neural_mixtures["digits"]]
    model = classifier("cnn", channels, 10)
    model.head = nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 10))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    before = model.head[0].weight.detach().clone()
    x = torch.rand(8, channels, size, size)
    F.cross_entropy(model(x), torch.arange(8)).backward()
    optimizer.step()
    assert not torch.equal(before, model.head[0].weight)
    assert model.head[0](model.features(x)).shape == (8, 2)
    source = SETS[neural_mixtures["digits"]]
    assert neural_mixtures["digits_split"] in source.splits


def test_neural_mixtures_clustering(neural_mixtures):
    """One batch of the thesis's network, alone and with copies."""
    x = 50 * np.random.default_rng(0).normal(size=(neural_mixtures["batch"], 2))
    for augment in (None, lambda x, generator: x + 0.1):
        model = NeuralMixture(
            batch_size=len(x), epochs=1, standardize=False, augment=augment, random_state=0
        ).fit(x)
        assert np.isfinite(model.history_.loc[0]).all() and model.labels_.shape == (len(x),)


@pytest.fixture(scope="module")
def swapped():
    return yaml.safe_load((PARAMS / "11_swapped_predictions.paper.yaml").read_text())


def test_swav_at_full_resolution(swapped):
    """One step of a few images, with as many views as the paper has."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    names = ("n_prototypes", "backbone", "n_local", "global_size", "local_size")
    with pytest.warns(UserWarning, match="8 features share"):
        model = SwAV(**{name: swapped[name] for name in names}, epochs=1, batch_size=8).fit(images)
    assert model.n_local == 6
    assert np.isfinite(model.history_.loc[0]).all()
    assert model.transform(images).shape == (8, 64)
    assert swapped["batch_size"] >= 2 * swapped["n_prototypes"]


def test_swav_with_the_backbone_of_many_gpus():
    """ResNet-18 takes each view at its own size, as the chapter's command line asks."""
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    model = SwAV(3, "resnet18", 128, global_size=96, local_size=48, n_local=2, epochs=1)
    assert model.fit(images).transform(images).shape == (4, 512)
    assert "unlabeled" in SETS["stl10"].splits


@pytest.fixture(scope="module")
def unknown_k():
    return yaml.safe_load((PARAMS / "12_unknown_k.paper.yaml").read_text())


def test_unknown_k_data_exist(unknown_k):
    for name in unknown_k["table_sets"]:
        assert "all" in SETS[name].splits
    for split in unknown_k["moco_splits"]:
        assert split in SETS["imagenet50-moco"].splits


def test_unknown_k_network():
    """The widest run: 16 dimensions, fifty clusters; one epoch on a quarter of its points."""
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(50, 16))
    x = rng.normal(size=(16_000, 16)) + centres[rng.integers(50, size=16_000)]
    model = DeepDPM(initial_clusters=50, epochs=1, random_state=0).fit(x)
    assert model.n_clusters_ >= 1
    assert np.isfinite(model.history_["loss"]).all()
    assert model.labels_.shape == (16_000,)


def test_unknown_k_extractor(unknown_k):
    """Its weights need a network; its architecture does not."""
    from torchvision.models import get_model

    model = get_model(unknown_k["photos_by"], weights=None)
    model.fc = torch.nn.Identity()
    assert model.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 2048)
