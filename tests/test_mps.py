"""Written for Apple's MPS: a stand-in device that has no float64 and no safe asynchronous copies.

Its tensors lie in ordinary memory, call themselves ``mps``, and make everything computed from them
lie there too. A float64 among them, or a copy to them that does not block, is an error, as is a
mixture with what never left the CPU.
"""

import numpy as np
import pytest
import torch
import torch._dynamo  # the first optimizer would import it, and it reads what the fixture replaces
from torch.overrides import TorchFunctionMode

from latentspace import data
from latentspace.deepkde import DeepKDE
from latentspace.density import mean_log_density
from latentspace.extractors import extract
from latentspace.maximize import maximize
from latentspace.multipath_classifier import MultiPathClassifier
from latentspace.neural_mixture import NeuralMixture
from latentspace.swav import SwAV
from latentspace.training import predict
from latentspace.training.tensors import to_device

MPS = torch.device("mps")
PLAIN = torch.device("cpu")


class OnMPS(torch.Tensor):
    device = MPS  # what the code under test asks for


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, list | tuple):
        for part in tree:
            yield from tensors(part)


def place(tree, kind):
    if isinstance(tree, torch.nn.Parameter) or type(tree) is kind:
        return tree
    if isinstance(tree, torch.Tensor):
        return tree.as_subclass(kind)
    if type(tree) in (list, tuple):
        return type(tree)(place(part, kind) for part in tree)
    return tree


class FakeMPS(TorchFunctionMode):
    """Takes the requests for the device and follows where tensors lie."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__", "device", "_parse_to"):
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        asked = [a for a in (*args, *kwargs.values()) if self.is_device(a)]
        here = any(isinstance(t, OnMPS) for t in tensors([*args, *kwargs.values()]))
        there = any(torch.device(a).type == "mps" for a in asked) or (here and not asked)
        there = there and name not in ("cpu", "numpy")
        if name in ("to", "copy_") and any(torch.device(a).type == "mps" for a in asked):
            assert not kwargs.get("non_blocking"), "an unsafe copy"
        plain = [PLAIN if self.is_device(a) else a for a in args]
        kwargs = {k: PLAIN if self.is_device(a) else a for k, a in kwargs.items()}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*plain, **kwargs)
        if there:
            self.calls += 1
            for tensor in tensors(result):
                assert tensor.dtype not in (torch.float64, torch.complex128), f"{name}: float64"
        return place(result, OnMPS if there else torch.Tensor)

    @staticmethod
    def is_device(value):
        named = isinstance(value, str) and value in ("mps", "cpu")
        return named or isinstance(value, torch.device)


class Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        return super().__new__(cls)


class Autocast(torch.autocast):
    def __init__(self, device_type, *args, **options):
        super().__init__("cpu", *args, **options)


@pytest.fixture
def mps(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    with FakeMPS() as mode:
        yield mode
    assert mode.calls > 0


def test_the_stand_in_forbids_what_the_device_does_not_have(mps):
    x = torch.ones(3).to("mps")
    assert x.device.type == "mps" and (x + 1).device.type == "mps"
    assert x.cpu().device.type == "cpu"
    for bad in (
        lambda: x.double(),
        lambda: torch.ones(2, dtype=torch.float64).to("mps"),
        lambda: torch.zeros(2, device=MPS, dtype=torch.float64),
        lambda: torch.ones(2).to("mps", non_blocking=True),
    ):
        with pytest.raises(AssertionError):
            bad()


def test_doubles_arrive_as_floats(mps):
    moved = to_device({"x": [torch.ones(2, dtype=torch.float64), torch.arange(3)]}, MPS)
    assert [t.dtype for t in moved["x"]] == [torch.float32, torch.int64]
    assert all(t.device.type == "mps" for t in moved["x"])
    double = predict(lambda x: 2 * x, np.ones(3), device="mps")
    assert double.tolist() == [2, 2, 2] and double.device.type == "cpu"


def test_far_points_are_computed_elsewhere(mps):
    """Beyond 64 bandwidths the density needs doubles, which it finds on the CPU."""
    x = torch.tensor([[0.0, 0], [1, 1], [500, 500], [501, 500]])
    far = x.to("mps").requires_grad_()
    value = mean_log_density(far, far, 0.5, leave_one_out=True)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(-4.9, abs=1)
    value.backward()
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("which", [
    "mixture", "normal", "vectors", "images", "paths of vectors", "paths of images", "swav",
])  # fmt: skip
def test_estimators(which, mps):
    moons, images = data.moons(120, seed=0), data.load("colour-shapes", "test").x[:24]
    kinds = np.arange(24) % 3
    options = {"epochs": 2, "random_state": 0}
    make, x, y = {
        "mixture": (DeepKDE(hidden=(8,), batch_size=60, **options), moons.x, moons.y),
        "normal": (DeepKDE("normal", hidden=(8,), batch_size=60, **options), moons.x, moons.y),
        "vectors": (NeuralMixture(3, (8,), augment=lambda x, g: x + 0.1, **options), moons.x, None),
        "images": (NeuralMixture(3, plan="C4 M F8", batch_size=12, **options), images, None),
        "paths of vectors": (MultiPathClassifier("R F8 R", **options), moons.x, moons.y),
        "paths of images": (MultiPathClassifier("R C4 M P4 C4", batch_size=12, shift=1, flip=True,
                                                **options), images, kinds),
        "swav": (SwAV(4, dim=4, global_size=8, local_size=6, n_local=1, batch_size=12,
                      queue_length=6, **options), images, None),
    }[which]  # fmt: skip
    found = make.set_params(device="mps").fit(x, y)
    used = mps.calls
    assert used > 100
    assert found.predict(x).shape == (len(x),)
    assert np.isfinite(found.history_).all(axis=None)


def test_extract_and_maximize(mps):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    features = extract(torch.nn.Sequential(torch.nn.Flatten()), images, device="mps")
    np.testing.assert_allclose(features, images.transpose(0, 3, 1, 2).reshape(5, -1) / 255)
    start = torch.full((2, 3, 6, 6), 0.5).to("mps")
    moved = maximize(lambda x: x[:, 0].mean((1, 2)), start, steps=3, jitter=1, blur=1.0)
    assert (moved[:, 0].mean((1, 2)) > 0.5).all() and moved.device.type == "mps"
