"""The paper's settings start: each `*.paper.yaml` builds its models and takes one step here.

The models come from the chapter's own parameters, those of its text and over them those of the
file. Random data of the right shape, on the CPU: a GPU run must not fail on its first line.
"""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import nn

import chapters
from latentspace import gates
from latentspace.autoencoders import ConvAutoencoder, UNetAutoencoder, pretrain
from latentspace.cluster_gates import use_posteriors
from latentspace.data.sources import SETS
from latentspace.deepdpm import DeepDPM
from latentspace.deepkde import DeepKDE
from latentspace.generative_autoencoders import KINDS, mirrored_views, train_autoencoder
from latentspace.images import random_affine, random_shift
from latentspace.maximize import maximize
from latentspace.mixture_of_experts import MixtureOfExperts
from latentspace.multipath import multipath
from latentspace.multipath_classifier import MultiPathClassifier
from latentspace.networks import classifier, convnet
from latentspace.neural_mixture import NeuralMixture, two_fold_step
from latentspace.relevance import RelevanceNorm
from latentspace.sparse import sparse_network
from latentspace.statdec import StatDEC
from latentspace.swav import SwAV
from latentspace.training import fit

PARAMS = chapters.NOTEBOOKS / "params"
# What a set's images are: channels and size. A chapter looks at the data; this must not.
SHAPE = {"fashion-mnist": (1, 28), "mnist": (1, 28), "cifar10": (3, 32), "cifar100": (3, 32),
         "stl10": (3, 96), "usps": (1, 16), "coil20": (1, 32)}  # fmt: skip
TESTED = {"02_deepkde", "03_multipath_routing", "04_reading_gates", "05_neural_mixtures",
          "06_clustering_images", "06_clustering_images_evidence", "07_regularised_gates",
          "08_noise_and_latent_size", "08_noise_and_latent_size_evidence",
          "09_mixture_of_experts", "10_imbalanced_clustering",
          "10_imbalanced_clustering_evidence", "11_swapped_predictions",
          "12_unknown_k"}  # fmt: skip
WITHOUT_A_NETWORK = {"01_measuring_clusters"}


@cache
def settings(name):
    """The parameters of the chapter's run at the paper's scale."""
    given = yaml.safe_load((PARAMS / f"{name}.paper.yaml").read_bytes())
    return chapters.parameters(chapters.read(name)) | given


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def classifier_step(backbone, which, rate, flip):
    """One step of SGD on two random images, as the chapter trains its primary classifier."""
    channels, size = SHAPE[which]
    model = classifier(backbone, channels, 10)
    optimizer = torch.optim.SGD(model.parameters(), rate, 0.9)
    x = torch.rand(2, channels, size, size)
    x = random_shift(x, torch.Generator().manual_seed(0), flip=flip)
    before = weights(model)
    loss = F.cross_entropy(model(x), torch.tensor([3, 8]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, weights(model))
    return model.features(x)


def test_each_paper_file_is_tested():
    names = {path.name.split(".")[0] for path in PARAMS.glob("*.paper.yaml")}
    assert names == TESTED | WITHOUT_A_NETWORK


@pytest.mark.parametrize("name", sorted(TESTED | WITHOUT_A_NETWORK))
def test_the_data_exist(name):
    """Every set that a parameter names is one that can be loaded, with the splits beside it."""
    values = settings(name)
    known = {key: value for key, value in values.items() if isinstance(value, str)}
    for key, split in known.items():
        if key.endswith("_split"):
            kind = key.removesuffix("_split")
            sets = [values[kind]] if kind in values else values[f"{kind}_sets"]
            assert all(split in SETS[each].splits for each in sets)
    for key in ("digits", "colours", "foreign", "images", "photos", "table_set", "moco"):
        assert values.get(key, "digits") in SETS
    for key in ("sets", "table_sets", "imbalanced_sets"):
        assert set(values.get(key, [])) <= set(SETS)
    for source, *splits in values.get("image_sets", {}).values():
        assert set(splits) <= set(SETS[source].splits)


@pytest.mark.parametrize(
    ("which", "swap"), [("digits", None), ("colours", None), ("digits", "vit_b_16")]
)
def test_deepkde_primary(which, swap):
    values = settings("02_deepkde")
    if which not in values:
        pytest.skip(f"the chapter has no parameter {which}")
    backbone = swap or values[f"{which}_backbone"]
    features = classifier_step(backbone, values[which], values["primary_lr"], which == "colours")
    assert features.shape == (2, {"resnet18": 512, "vit_b_16": 768}[backbone])


def test_deepkde_reshaping():
    """One epoch of one full batch, at the widths of the paper's Table 1."""
    values, rng = settings("02_deepkde"), np.random.default_rng(0)
    n = values["reshape_batch"]
    y = rng.integers(10, size=n)
    x = rng.normal(size=(n, 512)).astype(np.float32) + 3 * np.eye(10, 512, dtype=np.float32)[y]
    model = DeepKDE(hidden=values["hidden"], batch_size=n, epochs=1, random_state=0).fit(x, y)
    assert model.n_iter_ == 1
    assert np.isfinite(model.history_.loc[0]).all()
    assert model.transform(x[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    ("chapter", "before"),
    [("06_clustering_images", ""), ("06_clustering_images_evidence", "photos_")],
    ids=["digits", "photographs"],
)
def test_clustering_images(chapter, before):
    """One two-fold step of a network at its full size."""
    values = settings(chapter)
    images = values[before.removesuffix("_") or "images"]
    side = values[before + "side"]
    assert values["split"] in SETS[images].splits and side == SHAPE[images][1]
    model = nn.Sequential(convnet(values[before + "plan"], (side, side), 10), RelevanceNorm(10))
    start = weights(model)
    rate = values.get("rate", 1e-3)
    step = two_fold_step(torch.optim.Adam(model.parameters(), rate), random_affine)
    optimizer = torch.optim.Adam(model.parameters(), 2 * rate)
    x = torch.rand(4, 1, side, side)
    history = fit(model, [(x,)], step, optimizer=optimizer, epochs=1, device="cpu", progress=False)
    assert np.isfinite(history.loc[0]).all()
    assert not torch.equal(start, weights(model))


def test_neural_mixtures_space():
    """One step of the classifier with a bottleneck of two, on digits of their size."""
    values = settings("05_neural_mixtures")
    channels, size = SHAPE[values["digits"]]
    model = classifier("cnn", channels, 10)
    model.head = nn.Sequential(nn.Linear(64, 2), nn.Linear(2, 10))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    before = weights(model)
    x = torch.rand(8, channels, size, size)
    F.cross_entropy(model(x), torch.arange(8)).backward()
    optimizer.step()
    assert not torch.equal(before, weights(model))
    assert model.head[0](model.features(x)).shape == (8, 2)


@pytest.mark.parametrize("augment", [None, lambda x, generator: x + 0.1], ids=["alone", "copies"])
def test_neural_mixtures_clustering(augment):
    """One batch of the thesis's network, alone and with copies."""
    x = 50 * np.random.default_rng(0).normal(size=(settings("05_neural_mixtures")["batch"], 2))
    model = NeuralMixture(
        batch_size=len(x), epochs=1, standardize=False, augment=augment, random_state=0
    ).fit(x)
    assert np.isfinite(model.history_.loc[0]).all()
    assert model.labels_.shape == (len(x),)


def test_mixture_of_experts_at_full_size():
    """An epoch of one batch of each training, ten experts at the thesis's width."""
    values = settings("09_mixture_of_experts")
    x = np.random.default_rng(0).random((20, 16, 16), dtype=np.float32)
    model = MixtureOfExperts(
        np.arange(20) % 10, autoencoder=None, expert_dim=values["latent_dim"],
        filters=values["filters"], manager_epochs=1, epochs=1, expert_epochs=1, random_state=0,
        device="cpu",
    ).fit(x)  # fmt: skip
    assert np.isfinite(model.history_).all(axis=None)
    assert model.sample(9, 2).shape == (2, 16, 16)


def test_noise_and_latent_size():
    """One batch of both autoencoders at the thesis's widths and depth."""
    values = settings("08_noise_and_latent_size")
    assert set(values["splits"]) <= set(SETS[values["digits"]].splits)
    x = torch.rand(4, *SHAPE[values["digits"]][:1], *SHAPE[values["digits"]][1:] * 2)
    for units in (values["finder_dim"], 23):
        network, history = train_autoencoder(
            x, units, filters=values["filters"], epochs=1, lr=values["rate"], device="cpu"
        )
        assert np.isfinite(history.loc[0]).all()
        assert network(x).shape == (4, units)
        assert network.mean.in_features == 2 * 2 * 8 * values["filters"]


def test_noise_evidence():
    """One batch of each kind on each set at the thesis's widths and depth."""
    values = settings("08_noise_and_latent_size_evidence")
    assert values["parts"].keys() == values["compared"].keys() == values["routed"].keys()
    lr, filters = values["pipeline"]["lr"], values["pipeline"]["filters"]
    for number, (name, splits) in enumerate(values["parts"].items()):
        assert set(splits) <= set(SETS[name].splits)
        channels, side = SHAPE[name]
        x = torch.rand(3, channels, side, side)
        network, history = train_autoencoder(
            x, 100, list(KINDS)[number], filters=filters, epochs=1, lr=lr, device="cpu",
            likelihood="gaussian", views=mirrored_views,
        )  # fmt: skip
        assert np.isfinite(history.loc[0]).all()
        wide = 2 ** (side - 1).bit_length()  # filters of the first block: the side, as padded
        assert network.mean.in_features == 2 * 2 * wide * wide // 4


def test_statdec_on_colour_images():
    """A few steps of pretraining and clustering at the paper's widths and batch."""
    values = settings("10_imbalanced_clustering")
    x = np.random.default_rng(0).random((260, 3 * 32 * 32), dtype=np.float32)
    model = StatDEC(hidden=values["hidden"], pretrain_epochs=1, epochs=1, n_init=1, random_state=0)
    model.fit(x)
    assert np.isfinite(model.history_).all(axis=None)
    assert model.network_.pooled.pooling.mean.shape == (10, 500)


@pytest.mark.parametrize("network", [ConvAutoencoder, UNetAutoencoder])
def test_statdec_on_other_networks(network):
    x = torch.rand(16, 3 * 32 * 32)
    network = pretrain(x, network=network((3, 32, 32), 10), epochs=1)
    model = StatDEC(autoencoder=network, epochs=1, n_init=1, random_state=0).fit(x.numpy())
    assert model.transform(x.numpy()).shape == (16, 10)


def test_sets_of_the_evidence_of_statdec():
    values = settings("10_imbalanced_clustering_evidence")
    for key in (key for key in values if key.endswith("_sets")):
        for name, split in (case.split(", ")[0].split("/") for case in values[key]):
            assert split in SETS[name].splits
    pairs = [pair.split(" to ") for pair in values["transfer_pairs"]]
    assert ["svhn", "mnist"] in pairs and {name for pair in pairs for name in pair} <= set(SETS)


def test_multipath_at_full_size():
    """The thesis's two paths: one epoch of one batch, with the gates of all five routers."""
    values = settings("03_multipath_routing")
    channels, side = SHAPE[values["photos"]]
    assert values["photos_side"] == side
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, side, side, channels), dtype=np.uint8)
    model = MultiPathClassifier(
        values["photos_plan"], epochs=1, batch_size=20, shift=values["photos_shift"], flip=True,
        random_state=0, device="cpu",
    ).fit(images, np.arange(20) % 10)  # fmt: skip
    assert sum(p.numel() for p in model.model_.parameters()) == 1_111_066  # BaseCNN-2-CC
    assert np.isfinite(model.history_.loc[0]).all()
    assert len(model.gates(images)) == values["photos_plan"].split().count("R")


@pytest.mark.parametrize("task", ["photos", "known"])
def test_reading_gates_at_full_size(task):
    """One epoch of one batch, whose gates are then read and climbed on."""
    values = settings("04_reading_gates")
    channels, side = (3, values["photos_side"]) if task == "photos" else (1, 16)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, side, side, channels), dtype=np.uint8)
    model = MultiPathClassifier(
        values[f"{task}_plan"], epochs=1, batch_size=20, lr=values["lr"], random_state=0,
        device="cpu",
    ).fit(images, np.arange(20) % 10)  # fmt: skip
    found = gates.read(model.model_, torch.rand(2, channels, side, side))
    assert len(found) == values[f"{task}_plan"].split().count("R")
    start = torch.rand(2, channels, side, side)
    score = gates.gate_score(model.model_, len(found) - 1, [(0, 0), (1, 1)])
    assert not torch.equal(maximize(score, start, steps=1), start)


def test_regularised_gates_at_full_size():
    """One step of the thesis's two paths with the loss on all gates; one sparse pass."""
    values = settings("07_regularised_gates")
    channels, side = SHAPE[values["photos"]]
    assert values["photos_side"] == side
    model = multipath(values["photos_plan"], (channels, side, side), 10, paths=2, grouped=True)
    mixture = gates.GateMixture.of(use_posteriors(model))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4)
    x, before = torch.randn(20, channels, side, side), weights(model)
    with gates.watched(model) as scores:
        logits = model(x)
    loss = F.cross_entropy(logits, torch.arange(20) % 10) + values["weights"][0] * mixture(scores)
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, weights(model))
    assert sum(a.shape[1] for a in scores) == 9
    sparse = sparse_network(values["timed_plan"], (channels, side, side), 10, values["experts"])
    assert sparse.eval()(x).shape == (20, 10)


def test_swav_at_full_resolution():
    """One step of a few images, with as many views as the paper has."""
    values = settings("11_swapped_predictions")
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    names = ("n_prototypes", "backbone", "n_local", "global_size", "local_size")
    with pytest.warns(UserWarning, match="8 features share"):
        model = SwAV(**{name: values[name] for name in names}, epochs=1, batch_size=8).fit(images)
    assert model.n_local == 6
    assert np.isfinite(model.history_.loc[0]).all()
    assert model.transform(images).shape == (8, 64)
    assert values["batch_size"] >= 2 * values["n_prototypes"]


def test_swav_with_the_backbone_of_many_gpus():
    """ResNet-18 takes each view at its own size, as the chapter's command line asks."""
    images = np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    model = SwAV(3, "resnet18", 128, global_size=96, local_size=48, n_local=2, epochs=1)
    assert model.fit(images).transform(images).shape == (4, 512)
    assert "unlabeled" in SETS["stl10"].splits


def test_unknown_k_network():
    """The widest run of the chapter's settings: fifty clusters in ten dimensions, one epoch."""
    rng = np.random.default_rng(0)
    centres = 6 * rng.normal(size=(50, 10))
    x = rng.normal(size=(8_000, 10)) + centres[rng.integers(50, size=8_000)]
    options = settings("12_unknown_k")["deep"] | {"epochs": 1}
    model = DeepDPM(initial_clusters=50, random_state=0, **options).fit(x)
    assert model.n_clusters_ >= 1
    assert np.isfinite(model.history_["loss"]).all()
    assert model.labels_.shape == (8_000,)


def test_unknown_k_extractor():
    """Its weights need a network; its architecture does not."""
    from torchvision.models import get_model

    model = get_model(settings("12_unknown_k")["photos_by"], weights=None)
    model.fc = torch.nn.Identity()
    assert model.eval()(torch.rand(1, 3, 224, 224)).shape == (1, 2048)
