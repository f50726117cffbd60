"""The networks of the runs at the documents' scale, each as a function that takes one step.

`tests/benchmarks/gpu.py` measures them on a GPU and `scale.py` counts what they cost, each with the
batch and the number of samples that the chapters' `paper.yaml` files ask for. Needs torch, numpy
and pandas; torchvision's networks only where it is installed.
"""

import ast
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lib"))

from latentspace import density, gates  # noqa: E402
from latentspace.autoencoders import PlainAutoencoder  # noqa: E402
from latentspace.cluster_gates import use_posteriors  # noqa: E402
from latentspace.dynamic_autoencoder import DynamicAutoencoder  # noqa: E402
from latentspace.experts import Experts, Manager, Mixture, expert_errors, mixture_loss  # noqa: E402
from latentspace.generative_autoencoders import KINDS, gentle_views, objective  # noqa: E402
from latentspace.images import random_affine, random_shift  # noqa: E402
from latentspace.multipath import network as routed  # noqa: E402
from latentspace.networks import Autoencoder, classifier, convnet, mlp  # noqa: E402
from latentspace.neural_mixture import em_step, two_fold_step  # noqa: E402
from latentspace.relevance import RelevanceNorm  # noqa: E402
from latentspace.swav import SwAV  # noqa: E402

__all__ = ["Task", "parameters", "tasks"]

Step = Callable[[], object]


class Task(NamedTuple):
    """A network at work: ``make(device, n, mixed)`` returns a function that takes one step.

    ``samples`` go through it in the whole run that ``command`` starts; "" if the book has none.
    """

    chapter: int
    name: str
    batch: int
    samples: float
    make: Callable[[torch.device, int, bool], Step]
    command: str
    needs_torchvision: bool = False
    trains: bool = True


# --- the settings, from the chapters' parameter files ---------------------------------------------


def parameters(chapter: str) -> dict[str, object]:
    """The flat YAML of a parameter file, without a YAML library: scalars and [lists] of a line."""
    found: dict[str, object] = {}
    for line in (ROOT / "notebooks" / "params" / f"{chapter}.paper.yaml").read_text().splitlines():
        text = line.split(" #")[0].rstrip()
        if text and not text.startswith(("#", " ")):
            key, _, rest = text.partition(":")
            found[key] = value(rest.strip())
    return found


def value(text: str) -> object:
    if text.startswith("[") and text.endswith("]"):
        return [value(part.strip()) for part in text[1:-1].split(",")]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text or None


# --- the steps ------------------------------------------------------------------------------------


def training(loss: Step, optimizer: torch.optim.Optimizer, device, mixed) -> Step:
    """A function that makes one update; ``loss()`` is computed under autocast if ``mixed``."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            value = loss()
        value.float().backward()
        optimizer.step()

    return step


def classify(build, shape, device, n, mixed):
    model = build().to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    x, y = torch.rand(n, *shape, device=device), torch.arange(n, device=device) % 10

    def loss():
        return F.cross_entropy(model(random_shift(x, generator)), y)

    return training(loss, torch.optim.SGD(model.parameters(), 0.05, 0.9), device, mixed)


def regularised(name, device, n, mixed):
    """A multi-path network with posterior gates and the mixture loss on each of them."""
    model = use_posteriors(routed(name)).to(device).train()
    mixture = gates.GateMixture.of(model).to(device)
    x, y = torch.rand(n, 3, 32, 32, device=device), torch.arange(n, device=device) % 10

    def loss():
        with gates.watched(model) as scores:
            logits = model(x)
        return F.cross_entropy(logits, y) + 0.01 * mixture(scores)

    return training(loss, torch.optim.SGD(model.parameters(), 0.05, 0.9), device, mixed)


def reshape(hidden, device, n, mixed):
    model = Autoencoder(512, 10, hidden).to(device).train()
    target = density.TargetMixture.on_axes(10, 10, 6.0, device)
    generator = torch.Generator(device).manual_seed(0)
    x, y = torch.randn(n, 512, device=device), torch.arange(n, device=device) % 10

    def loss():
        latent, reconstructed = model(x)
        latent = latent.float()
        terms = (
            density.js_loss(latent, target.sample(n, generator), density.scott_bandwidth(n, 10)),
            density.centre_loss(latent, y, target.centres, 4.0),
            density.reconstruction_loss(x, reconstructed.float()),
        )
        return 0.7 * terms[0] + 0.1 * terms[1] + 0.2 * terms[2]

    return training(loss, torch.optim.Adam(model.parameters()), device, mixed)


def mixture(device, n, mixed):
    model = nn.Sequential(mlp(2, 10), RelevanceNorm(10)).to(device).train()
    x, step = torch.randn(n, 2, device=device), em_step()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return training(lambda: step(model, (x,), None)["loss"], optimizer, device, mixed)


def two_fold(plan, shape, device, n, mixed):
    model = nn.Sequential(convnet(plan, shape[1:], 10), RelevanceNorm(10)).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(n, *shape, device=device)
    augment = partial(random_affine, degrees=10, scale=(0.8, 1.2), shift=0.1)
    step = two_fold_step(torch.optim.Adam(model.parameters(), 5e-5), augment)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    return training(lambda: step(model, (x,), generator)["loss"], optimizer, device, mixed)


def autoencode(shape, units, filters, device, n, mixed):
    model = DynamicAutoencoder(shape, units, True, filters).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(n, *shape, device=device)

    def loss():
        seen = gentle_views(x, generator)
        return objective(model, seen, seen, generator, kind=KINDS["VAE"], l1=1e-4)["loss"]

    return training(loss, torch.optim.Adam(model.parameters(), 5e-4), device, mixed)


def experts(shape, k, units, filters, device, n, mixed):
    model = Mixture(Manager(shape, k, filters), Experts(shape, [units] * k, filters))
    model, x = model.to(device).train(), torch.rand(n, *shape, device=device)

    def loss():
        return mixture_loss(model(x), expert_errors(model.experts, x))["loss"]

    return training(loss, torch.optim.Adam(model.parameters()), device, mixed)


def plain(inputs, hidden, device, n, mixed):
    model = PlainAutoencoder(inputs, 10, hidden).to(device).train()
    x = torch.randn(n, inputs, device=device)

    def loss():
        return (model.both(x)[1] - x).square().mean()

    return training(loss, torch.optim.Adam(model.parameters()), device, mixed)


def swav(options, size, device, n, mixed):
    model = SwAV(**options, device=device)
    x = torch.rand(n, 3, size, size)
    network = model._build(x).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True)
    x = x.to(device)
    loss = lambda: model._step(network, (x,), generator)["loss"]  # noqa: E731
    return training(loss, optimizer, device, mixed)


def features(name, device, n, mixed):
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    model.fc = nn.Identity()
    model, x = model.to(device).eval(), torch.rand(n, 3, 224, 224, device=device)

    def step():
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            model(x)

    return step


# --- the runs -------------------------------------------------------------------------------------

TABLE = (
    "BaseCNN", "WideCNN", "DeepCNN", "SEBaseCNN", "SEDeepCNN", "BaseCNN-3", "Cr-Stitch2",
    "BaseCNN-2-CC", "BaseCNN-3-CC", "BaseCNN-4-CC", "BaseCNN-2-CP", "BaseCNN-3-CP", "BaseCNN-4-CP",
)  # fmt: skip


def run_of(name: str) -> str:
    return f"make run CHAPTER={name} PARAMS={name}.paper.yaml"


def tasks() -> list[Task]:
    """One for each network of the paper-scale runs, in the order of the chapters."""
    names = (
        "02_deepkde", "03_multipath_routing", "04_reading_gates", "05_neural_mixtures",
        "06_clustering_images", "06_clustering_images_evidence", "07_regularised_gates",
        "08_noise_and_latent_size", "09_mixture_of_experts", "10_imbalanced_clustering",
        "11_swapped_predictions", "12_unknown_k",
    )  # fmt: skip
    found = {name: parameters(name) for name in names}
    kde, em, digits, photos = (found[names[i]] for i in (0, 3, 4, 5))
    noise, moe, dec, swapped, unknown = (found[name] for name in names[7:])
    commands = {name: run_of(name) for name in names}
    resnet = lambda channels: partial(classifier, kde["digits_backbone"], channels, 10)  # noqa: E731
    vit = partial(classifier, "vit_b_16", 3, 10)
    digit_shape, photo_shape = (1, 28, 28), (3, 32, 32)
    cost = 10 / 3  # passes of one image in the two-fold optimisation
    usps, k = 9_298, 10
    options = {
        name: swapped[name]
        for name in ("n_prototypes", "backbone", "n_local", "global_size", "local_size")
    }
    hidden = dec.get("hidden", [500, 500, 1000])
    long_tailed = 4 * dec["colours_max"]  # images in all, about, at ratio 10
    multipath = [
        Task(3, f"{name}, classifier, 32 pixels", 128, 3 * 200 * 50_000,
             partial(classify, partial(routed, name), photo_shape),
             "python book/tools/multipath_cifar.py")
        for name in TABLE
    ]  # fmt: skip
    lessons = [
        Task(chapter, "BaseCNN-2-CC, classifier, 32 pixels", 64,
             found[name]["photos_n"] * found[name]["photos_epochs"],
             partial(classify, partial(routed, "BaseCNN-2-CC"), photo_shape), commands[name])
        for chapter, name in ((3, names[1]), (4, names[2]))
    ]  # fmt: skip
    gated = found[names[6]]
    return [
        Task(2, f"{kde['digits_backbone']}, classifier, 28 to 224 pixels", 128,
             60_000 * kde["primary_epochs"], partial(classify, resnet(1), digit_shape),
             commands[names[0]], True),
        Task(2, "autoencoder 512-" + "-".join(map(str, kde["hidden"])) + "-10",
             kde["reshape_batch"], 60_000 * kde["passes"] * kde["reshape_epochs"],
             partial(reshape, kde["hidden"]), commands[names[0]]),
        Task(2, f"{kde['digits_backbone']}, classifier, 32 to 224 pixels", 128,
             50_000 * kde["primary_epochs"], partial(classify, resnet(3), photo_shape), "", True),
        Task(2, "vit_b_16, classifier, 32 to 224 pixels", 128, 50_000 * kde["primary_epochs"],
             partial(classify, vit, photo_shape), "", True),
        *multipath,
        *lessons,
        Task(5, "cnn, classifier, 28 pixels", em["batch"], 60_000 * em["space_epochs"],
             partial(classify, partial(classifier, "cnn", 1, 10), digit_shape), commands[names[3]]),
        Task(5, "2-32-32-10, EM", em["batch"], 60_000 * em["epochs"], mixture, commands[names[3]]),
        Task(6, f"{digits['plan']}, two-fold EM, mnist, 28 pixels", 128,
             5 * len(digits["seeds"]) * digits["passes"] / cost * digits["n"],
             partial(two_fold, digits["plan"], digit_shape), commands[names[4]]),
        Task(6, f"{photos['photos_plan']}, two-fold EM, cifar10, 32 pixels", 128,
             3 * len(photos["seeds"]) * photos["passes"] / cost * photos["photos_n"],
             partial(two_fold, photos["photos_plan"], photo_shape), commands[names[5]]),
        Task(7, "BaseCNN-2-CC, mixture loss on gates, 32 pixels", 64,
             gated["photos_n"] * gated["photos_epochs"], partial(regularised, "BaseCNN-2-CC"),
             commands[names[6]]),
        Task(8, f"VAE, {noise['filters']} filters, 28 to 32 pixels", 100,
             70_000 * (noise["finder_epochs"] + noise["epochs"]),
             partial(autoencode, digit_shape, 100, noise["filters"]), commands[names[7]]),
        Task(9, f"manager and {k} experts, {moe['filters']} filters, 16 pixels", 100,
             usps * (moe["manager_epochs"] + 3 * moe["epochs"] + moe["expert_epochs"]),
             partial(experts, (1, 16, 16), k, moe["latent_dim"], moe["filters"]),
             commands[names[8]]),
        Task(10, "autoencoder 3072-" + "-".join(map(str, hidden)) + "-10", dec["batch_size"],
             long_tailed * (dec["pretrain_epochs"] + 3 * dec["cluster_epochs"]),
             partial(plain, 3072, hidden), commands[names[9]]),
        Task(11, f"{swapped['backbone']}, 2 + {swapped['n_local']} views of 32 and 16 pixels",
             swapped["batch_size"], len(swapped["seeds"]) * swapped["epochs"] * swapped["n_train"],
             partial(swav, options, 32), commands[names[10]]),
        Task(12, f"{unknown['photos_by']}, features, 224 pixels", 16, 1_000,
             partial(features, unknown["photos_by"]), commands[names[11]], True, False),
    ]  # fmt: skip
