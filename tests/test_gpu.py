"""Every method on a GPU against the same on the CPU: values, gradients, training, estimators.

Skipped where there is no CUDA. ``DEVICE=cpu pytest tests/test_gpu.py`` runs all of it with the CPU
in the GPU's place, which checks the tests themselves. They need torch, numpy, pandas and
scikit-learn, no data and no network; what needs torchvision is left out where it is missing.
"""

import importlib.util
import os
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from latentspace import density, dirichlet, images, maximize, prototypes, relevance, routing
from latentspace.deepkde import DeepKDE
from latentspace.extractors import extract
from latentspace.mixture_of_experts import MixtureOfExperts
from latentspace.multipath import multipath
from latentspace.multipath_classifier import MultiPathClassifier
from latentspace.networks import Autoencoder, classifier, convnet, mlp
from latentspace.neural_mixture import NeuralMixture, em_step, two_fold_step
from latentspace.swav import Network, SwAV
from latentspace.training import batches, fit, predict

DEVICE = torch.device(os.environ.get("DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
    ),
]
TORCHVISION = importlib.util.find_spec("torchvision") is not None


@pytest.fixture(autouse=True)
def full_precision():
    """TF32, which torch allows in convolutions, rounds to 10 bits and would hide small errors."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class SameDraws(TorchFunctionMode):
    """Random numbers are drawn on the CPU, whatever the device: equal draws on both."""

    drawing = frozenset([torch.rand, torch.randn, torch.randint, torch.randperm])

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func not in self.drawing:
            return func(*args, **kwargs)
        device = kwargs.pop("device", "cpu")
        return func(*args, **kwargs | {"generator": self.generator}).to(device)


def leaves(result):
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, list | tuple):
        return [leaf for part in result for leaf in leaves(part)]
    return [torch.as_tensor(result)]


def run(function, arguments, device):
    """Results and the gradients of their weighted sum in all floating-point arguments."""
    moved = [a.detach().clone().to(device) if torch.is_tensor(a) else a for a in arguments]
    for argument in moved:
        if torch.is_tensor(argument) and argument.is_floating_point():
            argument.requires_grad_()
    with SameDraws():
        results = leaves(function(*moved))
    floats = [r for r in results if r.requires_grad]
    if floats:
        # Unequal weights, or the gradient of a normalised result would vanish.
        total = sum((r * torch.linspace(1, 2, r.numel()).view(r.shape).to(r)).sum() for r in floats)
        total.backward()
        assert all(r.device.type == DEVICE.type or device == "cpu" for r in floats)
    gradients = [getattr(argument, "grad", None) for argument in moved]
    return [t.detach().cpu() for t in [*results, *gradients] if t is not None]


def assert_agrees(function, *arguments, rtol=1e-4, atol=1e-5):
    here, there = run(function, arguments, "cpu"), run(function, arguments, DEVICE)
    assert len(here) == len(there) > 0
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b, a, rtol=rtol, atol=atol)


# --- densities ------------------------------------------------------------------------------------

Z, OTHER = 2 * normal(300, 3), normal(200, 3, seed=1) + 1
LABELS = torch.arange(300) % 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1, 400], ids=["near", "far"])
def test_kernel_density(dtype, spread):
    x, y = (spread * points.to(dtype) for points in (Z, OTHER))
    assert_agrees(lambda x, y: density.mean_log_density(x, y, 0.4), x, y, atol=1e-4)
    assert_agrees(lambda x: density.mean_log_density(x, x, 0.4, True), x, atol=1e-4)
    assert_agrees(lambda x, y: density.log_density(x, y, 0.4), x, y, rtol=1e-3)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_density_loss(leave_one_out):
    assert_agrees(
        lambda z, t: density.js_loss(z, t, 0.4, leave_one_out), Z, normal(300, 3, seed=2), atol=1e-4
    )


def test_terms_of_the_loss():
    assert_agrees(lambda z, c, y: density.centre_loss(z, y, c, 2.0), Z, 6 * torch.eye(3), LABELS)
    assert_agrees(lambda z, y: density.hyperplane_loss(z, y), Z, LABELS % 2)
    assert_agrees(density.reconstruction_loss, Z, normal(300, 3, seed=4))


def test_target():
    def target(centres):
        mixture = density.TargetMixture(centres)
        return mixture.sample(50), mixture.log_density(Z.to(centres)), mixture.log_joint(centres)

    assert_agrees(target, 6 * torch.eye(3))
    here, there = (density.TargetMixture.on_axes(3, 4, 2.0, d).entropy() for d in ("cpu", DEVICE))
    assert there == pytest.approx(here, abs=0.02)  # other draws


# --- relevance ------------------------------------------------------------------------------------

SCORES, POSTERIOR = 3 * normal(64, 5), normal(64, 5, seed=1).softmax(1)
PRIOR = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]).log()


def test_relevance():
    assert_agrees(relevance.normalize_relevance, SCORES)
    assert_agrees(lambda a: relevance.cluster_scores(a, 4.0), SCORES)
    for posterior in (relevance.sharpened_posterior, relevance.exact_posterior):
        assert_agrees(lambda a, p, f=posterior: f(a, log_prior=p), SCORES, PRIOR)
    assert_agrees(lambda p, q: relevance.update_prior(p.softmax(0), q), PRIOR, POSTERIOR)
    assert_agrees(lambda a, p, q: relevance.em_loss(a, p, 4.0, q), SCORES, POSTERIOR, PRIOR)
    assert_agrees(lambda p, a: relevance.consistency_loss(p, a.log_softmax(1)), POSTERIOR, SCORES)
    assert_agrees(
        lambda a, p: relevance.mutual_information_loss(a.softmax(1), p), SCORES, POSTERIOR
    )


@pytest.mark.parametrize("training", [True, False])
def test_relevance_norm(training):
    def norm(scores):
        module = relevance.RelevanceNorm(5).to(scores.device).train()
        module(scores + 1)
        return module.train(training)(scores), module.running_mean, module.running_var

    assert_agrees(norm, SCORES)


# --- routing --------------------------------------------------------------------------------------

PATHS, GATES = normal(20, 3, 4, 5, 6), normal(20, 3, 2, seed=1).softmax(-1)


def test_routing():
    assert_agrees(routing.route, PATHS, GATES)
    assert_agrees(routing.spread, PATHS, GATES)
    assert_agrees(routing.route_gradient, normal(20, 3, 4), normal(3, 2, 4), normal(20, 2, 4))


ROUTERS = {
    "cross-connection": lambda: routing.CrossConnection(3, 2, 4),
    "cross-prediction": lambda: routing.CrossPrediction(3, 2, 4, 6, norm=True),
    "cross-stitch": lambda: routing.CrossStitch(3, 2),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_routers(name):
    router = ROUTERS[name]()
    assert_agrees(lambda paths: router.to(paths.device)(paths), PATHS, atol=1e-4)


# --- prototypes -----------------------------------------------------------------------------------


def test_prototypes():
    unit = nn.functional.normalize
    scores = unit(normal(3, 40, 8), dim=-1) @ unit(normal(6, 8, seed=1), dim=1).T
    assert_agrees(lambda s: prototypes.sinkhorn(s, 0.05, 5), scores[0], rtol=1e-3)
    codes = scores[:2].softmax(-1)
    assert_agrees(lambda s, c: prototypes.swapped_prediction(s, c.detach(), 0.1), scores, codes)
    assert_agrees(lambda z: prototypes.nt_xent(unit(z, dim=-1)), normal(2, 30, 8))


def test_queue_and_codes():
    def codes(weight):
        network = Network(nn.Identity(), 8, 8, 6, queue_length=50).to(weight.device)
        with torch.no_grad():
            network.prototypes.weight.copy_(weight)
            network.prototypes.normalise()
        z = nn.functional.normalize(normal(2, 30, 8, seed=3), dim=-1).to(weight.device)
        return [network.codes(z, 0.05, 3) for _ in range(3)] + [network.queue.rows]

    assert_agrees(codes, normal(6, 8), rtol=1e-3)


# --- images ---------------------------------------------------------------------------------------

PHOTOS, GREY = uniform(6, 3, 16, 16), uniform(6, 1, 16, 16)
VIEWS = {
    "affine": partial(images.random_affine, degrees=20, scale=(0.8, 1.3), shift=0.1),
    "affine, reflected": partial(images.random_affine, degrees=90, shift=0.2, border="reflection"),
    "light": partial(images.random_light, brightness=0.2, contrast=0.4),
    "crop": lambda x, generator: images.random_crop(x, 10, (0.3, 0.9), generator),
    "jitter": images.colour_jitter,
    "shift": partial(images.random_shift, by=3, flip=True),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("x", [PHOTOS, GREY], ids=["colour", "grey"])
def test_random_views_of_equal_draws(view, x):
    assert_agrees(lambda x: view(x, None), x, atol=1e-4)
    own = view(x.to(DEVICE), torch.Generator(DEVICE).manual_seed(0))
    assert own.device.type == DEVICE.type and own.isfinite().all()


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_under_autocast_are_those_without(view):
    """Places in an image need more than the 8 bits of bfloat16."""
    x = PHOTOS.to(DEVICE)
    with SameDraws():
        plain = view(x, None)
    with SameDraws(), torch.autocast(DEVICE.type, torch.bfloat16):
        mixed = view(x, None)
    torch.testing.assert_close(mixed, plain)


@pytest.mark.parametrize("x", [PHOTOS, GREY], ids=["colour", "grey"])
def test_sobel(x):
    assert_agrees(images.sobel, x)


@pytest.mark.parametrize("where", ["cpu", DEVICE], ids=["cpu generator", "its generator"])
def test_maximize(where):
    network = convnet("C6 M F8", (16, 16), 4)

    def climb(x):
        model = network.to(x.device)
        options = {"steps": 4, "jitter": 2, "smoothness": 0.1, "blur": 1.0, "radius": 3.0}
        colours = maximize.colour_covariance(x.detach())
        score = maximize.unit_score(model, [0, 1, 2, 3, 0, 1])
        filters = maximize.unit_score(model, [0, 1, 2, 3, 4, 5], "1")
        generator = torch.Generator(where if x.device.type == DEVICE.type else "cpu")
        return [
            maximize.maximize(f, x, colours=colours, generator=generator, **options)
            for f in (score, filters)
        ]

    assert_agrees(climb, PHOTOS, atol=2e-3)


# --- networks -------------------------------------------------------------------------------------

NETWORKS = {
    "mlp": (lambda: mlp(4, 3, (16,)), (32, 4)),
    "convnet": (lambda: convnet("C6 M C8 F8", (16, 16), 3), (8, 3, 16, 16)),
    "autoencoder": (lambda: Autoencoder(4, 2, (8,)), (32, 4)),
    "cnn": (lambda: classifier("cnn", 1, 3), (8, 1, 28, 28)),
    "resnet8": (lambda: classifier("resnet8", 3, 3), (8, 3, 32, 32)),
    "resnet8s": (lambda: classifier("resnet8s", 3, 3), (8, 3, 32, 32)),
    "paths": (lambda: multipath("R C8 M R F8", (3, 16, 16), 3, paths=2), (8, 3, 16, 16)),
    "paths, grouped": (
        lambda: multipath("P8 C8 M F8 P8", (3, 16, 16), 3, paths=2, grouped=True),
        (8, 3, 16, 16),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    make, shape = NETWORKS[name]
    network = make()
    weights = {key: value.clone() for key, value in network.state_dict().items()}

    def outputs(x):
        network.load_state_dict(weights)
        return network.to(x.device).train()(x)

    assert_agrees(outputs, uniform(*shape), rtol=1e-3, atol=1e-4)


# --- Dirichlet mixtures ---------------------------------------------------------------------------


def test_dirichlet():
    x = normal(200, 3, dtype=torch.float64) + 4 * (LABELS[:200, None] == torch.arange(3))
    labels, r = LABELS[:200], normal(200, 3, seed=2, dtype=torch.float64).softmax(1)

    def mixture(x, r, labels):
        prior = dirichlet.default_prior(x)
        soft, hard = (
            dirichlet.sufficient_statistics(x, r),
            dirichlet.label_statistics(x, labels, 3),
        )
        means, covariances = dirichlet.map_estimate(prior, soft)
        weights = dirichlet.map_weights(soft.count, 10.0)
        first, second = (dirichlet.select(hard, torch.tensor([i], device=x.device)) for i in (0, 1))
        return [
            *soft, *hard,
            dirichlet.log_marginal_likelihood(prior, soft),
            dirichlet.log_marginal_likelihood(prior, hard),
            dirichlet.log_hastings_split(first, second, prior, 10.0),
            *dirichlet.e_step(x, weights, means, covariances),
        ]  # fmt: skip

    assert_agrees(mixture, x, r, labels, rtol=1e-8, atol=1e-8)


def test_deepdpm_losses():
    from latentspace import dpm_networks

    log_r, log_target = (normal(50, 4, seed=s).log_softmax(1) for s in (0, 1))
    for direction in ("target", "network"):
        assert_agrees(
            lambda a, b, d=direction: dpm_networks.assignment_loss(a, b, d), log_r, log_target
        )
    r = normal(3, 20, 2).softmax(-1)
    assert_agrees(dpm_networks.subcluster_loss, normal(3, 20, 4), r, normal(3, 2, 4, seed=5))


# --- training -------------------------------------------------------------------------------------

X = normal(256, 4)
Y = X.square().sum(1, keepdim=True)


def regression(batch_norm=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # A bias in front of batch normalisation has rounding for a gradient, and Adam enlarges it.
        layers = [nn.Linear(4, 32, bias=not batch_norm)]
        layers += [*([nn.BatchNorm1d(32)] if batch_norm else []), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(32, 1))


def squared(model, batch, generator):
    x, y = batch
    return {"loss": (model(x).float() - y).square().mean(), "constant": 2.5}


def train(device, epochs=3, arrays=(X, Y), **options):
    model = regression()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loader = batches(*arrays, batch_size=32)
    options |= {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)}
    options |= {"device": device, "progress": False, "optimizer": optimizer, "epochs": epochs}
    return model, fit(model, loader, squared, **options)


def assert_close_runs(a, b):
    (model, history), (other, again) = a, b
    np.testing.assert_allclose(history, again, rtol=1e-3)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name].cpu(), value.cpu(), rtol=1e-2, atol=1e-3
        )


def test_fit_agrees():
    here = train("cpu")
    assert_close_runs(train(DEVICE), here)
    assert_close_runs(train(DEVICE, arrays=(X.to(DEVICE), Y.to(DEVICE))), here)
    model, _ = train(DEVICE)
    assert next(model.parameters()).device.type == DEVICE.type


def test_fit_trains_in_mixed_precision(tmp_path):
    dtypes = set()
    model = regression()
    model[0].register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))
    history = fit(
        model, batches(X, Y, batch_size=32), squared, epochs=40, device=DEVICE, progress=False,
        optimizer=torch.optim.Adam(model.parameters(), 0.01), mixed_precision=True,
        checkpoint=tmp_path / "c.pt",
    )  # fmt: skip
    full = torch.float32 if DEVICE.type == "cpu" else None
    assert dtypes <= {full or torch.bfloat16, full or torch.float16} and dtypes
    assert history["loss"].iloc[-1] < 0.3 * history["loss"][0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("first, second", [("cpu", DEVICE), (DEVICE, "cpu")], ids=["up", "down"])
def test_a_checkpoint_moves_between_devices(first, second, tmp_path):
    path = tmp_path / "c.pt"
    train(first, 2, checkpoint=path)
    assert_close_runs(train(second, 4, checkpoint=path), train("cpu", 4))


def test_a_loss_that_is_not_finite_is_found():
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1, batch"):
        train(DEVICE, arrays=(X, Y * torch.nan))


def test_predict():
    model = regression().eval()
    expected = predict(model, X)
    there = predict(model, X.double().numpy(), batch_size=100, device=DEVICE)
    assert there.device.type == "cpu"
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(model, X), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("two_fold", [False, True])
def test_mixture_steps(two_fold):
    def losses(device):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(mlp(4, 3, (16,)), relevance.RelevanceNorm(3)).to(device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        step = em_step()
        if two_fold:
            step = two_fold_step(torch.optim.Adam(model.parameters(), 1e-3), lambda x, g: x + 0.1)
        options = {"optimizer": optimizer, "epochs": 3, "device": device, "progress": False}
        return fit(model, batches(X, batch_size=64), step, **options)

    np.testing.assert_allclose(losses(DEVICE), losses("cpu"), rtol=1e-3)


# --- extractors and estimators --------------------------------------------------------------------

BYTES = (255 * uniform(64, 12, 12, 3, seed=5)).byte().numpy()
POINTS = (X.numpy() + 4 * (np.arange(256) % 3)[:, None] * np.eye(1, 4)).astype(np.float64)
GROUPS = np.arange(256) % 3


def test_extract(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    found = [extract(model, BYTES, device=device, progress=False) for device in ("cpu", DEVICE)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["mixture", "normal"])
def test_deepkde(target):
    options = {"hidden": (32,), "epochs": 60, "batch_size": 128, "radius": 6.0, "random_state": 0}
    y = GROUPS if target == "mixture" else GROUPS // 2
    model = DeepKDE(target, device=str(DEVICE), weights=(0.3, 0.5, 0.2), **options).fit(POINTS, y)
    assert model.score(POINTS, y) > 0.85
    assert next(model.network_.parameters()).device.type == "cpu"
    assert model.inverse_transform(model.transform(POINTS)).shape == POINTS.shape


def test_mixture_of_experts():
    options = {"filters": 2, "latent_dim": 2, "expert_dim": 2, "pretrain_epochs": 1, "epochs": 2}
    options |= {"umap": False, "expert_epochs": 2, "batch_size": 20, "random_state": 0}
    model = MixtureOfExperts("gaussian", 2, device=str(DEVICE), **options).fit(BYTES)
    assert np.isfinite(model.history_).all(axis=None)
    assert model.sample(1, 3).shape == (3, 12, 12, 3)
    np.testing.assert_array_equal(model.predict(BYTES), model.labels_)


def test_neural_mixture_of_vectors():
    options = {"hidden": (32,), "epochs": 5, "random_state": 0, "augment": lambda x, g: x + 0.05}
    there, here = (NeuralMixture(3, device=str(d), **options).fit(POINTS) for d in (DEVICE, "cpu"))
    np.testing.assert_allclose(there.history_, here.history_, rtol=1e-2)
    assert (there.labels_ == here.labels_).mean() > 0.95


def test_neural_mixture_of_images():
    options = {"plan": "C8 M F8", "epochs": 3, "batch_size": 32, "random_state": 0}
    there, here = (NeuralMixture(3, device=str(d), **options).fit(BYTES) for d in (DEVICE, "cpu"))
    np.testing.assert_allclose(there.history_, here.history_, rtol=1e-2)
    np.testing.assert_array_equal(there.predict(BYTES), there.labels_)


@pytest.mark.parametrize("x, plan", [(POINTS, "R F16 R"), (BYTES, "R C8 M R F8")],
                         ids=["vectors", "images"])  # fmt: skip
def test_multi_path_classifier(x, plan):
    y, options = GROUPS[: len(x)], {"epochs": 3, "batch_size": 32, "random_state": 0}
    there, here = (
        MultiPathClassifier(plan, device=str(d), **options).fit(x, y) for d in (DEVICE, "cpu")
    )
    np.testing.assert_allclose(there.history_.loss, here.history_.loss, rtol=1e-2)
    np.testing.assert_allclose(there.predict_proba(x), here.predict_proba(x), atol=0.05)
    assert next(there.model_.parameters()).device.type == "cpu"


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_swav(mixed_precision, tmp_path):
    options = {"dim": 8, "global_size": 12, "local_size": 8, "n_local": 2, "epochs": 3}
    options |= {"batch_size": 32, "queue_length": 40, "freeze_steps": 2, "random_state": 0}
    model = SwAV(6, device=str(DEVICE), mixed_precision=mixed_precision, **options)
    model.fit(BYTES, checkpoint=tmp_path / "c.pt")
    assert np.isfinite(model.history_).all(axis=None)
    assert model.history_["loss"].iloc[-1] < model.history_["loss"][0]
    assert model.transform(BYTES).shape == (64, 64)
    np.testing.assert_array_equal(model.predict(BYTES), model.labels_)


@pytest.mark.skipif(not TORCHVISION, reason="torchvision is not installed")
def test_swav_with_a_large_backbone():
    model = SwAV(4, "resnet18", dim=8, global_size=32, epochs=1, batch_size=16, random_state=0)
    model.set_params(device=str(DEVICE)).fit(BYTES[:16])
    assert model.transform(BYTES[:4]).shape == (4, 512)


def test_deepdpm_beside_a_gpu():
    """It trains on the CPU, where its small steps are fastest, whatever else is there."""
    from latentspace.deepdpm import DeepDPM

    model = DeepDPM(epochs=20, random_state=0).fit(POINTS)
    assert model.predict_proba(POINTS).shape == (256, model.n_clusters_)
