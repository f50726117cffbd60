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

from latentspace.augment import random_affine
from latentspace.backbones import classifier, random_shift
from latentspace.deepkde import DeepKDE
from latentspace.mixture import RelevanceNorm
from latentspace.neural_mixture import NeuralMixture, convnet, two_fold_step
from latentspace.sources import SETS
from latentspace.training import fit

PARAMS = Path(__file__).parents[1] / "notebooks" / "params"
# What a set's images are: channels and size. The chapter looks at the data; this must not.
SHAPE = {"fashion-mnist": (1, 28), "mnist": (1, 28), "cifar10": (3, 32)}


@pytest.fixture(scope="module")
def deepkde():
    return yaml.safe_load((PARAMS / "02_deepkde.paper.yaml").read_text())


@pytest.mark.parametrize(
    ("which", "swap"), [("digits", None), ("colours", None), ("colours", "vit_b_16")]
)
def test_deepkde_primary(deepkde, which, swap):
    channels, size = SHAPE[deepkde[which]]
    backbone = swap or deepkde[f"{which}_backbone"]
    model = classifier(backbone, channels, 10)
    optimizer = torch.optim.SGD(model.parameters(), deepkde["primary_lr"], 0.9)
    generator = torch.Generator().manual_seed(0)
    x = random_shift(torch.rand(2, channels, size, size), generator, flip=which == "colours")
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
    for which in ("digits", "colours", "foreign"):
        assert deepkde[which] in SETS
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
