"""The linear layer against numpy in double precision."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from latentspace import linear
from latentspace.networks import mlp

here = pytest.mark.skipif(not linear.HERE, reason="oneDNN brings nothing on this processor")


def layer(inputs, outputs, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return linear.Linear(inputs, outputs, bias=bias)


def rows(n, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, width))).float()


def double(tensor):
    return tensor.detach().numpy().astype(float)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "inputs", "outputs"), [
    (3, 5, 2), (256, 784, 500), (16, 300, 700), (150, 2000, 10), (1, 1500, 900), (300, 10, 2000),
])  # fmt: skip
def test_values_and_gradients(n, inputs, outputs, bias):
    module, x, g = layer(inputs, outputs, bias), rows(n, inputs), rows(n, outputs, seed=1)
    x.requires_grad_()
    y = module(x)
    y.backward(g)
    a, w, b = double(x), double(module.weight), double(g)
    expected = a @ w.T + (double(module.bias) if bias else 0)
    np.testing.assert_allclose(double(y), expected, atol=1e-4)
    np.testing.assert_allclose(double(x.grad), b @ w, atol=1e-3)
    np.testing.assert_allclose(double(module.weight.grad), b.T @ a, atol=1e-3)
    assert not bias or np.allclose(double(module.bias.grad), b.sum(0), atol=1e-4)


@here
def test_large_products_are_onednn_s_and_others_torch_s(monkeypatch):
    taken = []
    monkeypatch.setattr(linear, "_product", lambda *args: taken.append(args) or args[0])
    module, x = layer(1024, 1024), rows(4, 1024)
    module(x)
    assert len(taken) == 1
    module(x[:0]), module(x[0]), module(x[None]), layer(8, 8)(rows(4, 8))
    copy.deepcopy(module).double()(x.double())
    assert len(taken) == 1


@here
def test_rows_and_gradients_that_are_not_contiguous():
    module, x = layer(512, 700), rows(512, 400).t()[:, ::1]
    wide = rows(400, 1024)[:, ::2]
    np.testing.assert_array_equal(module(wide).detach(), module(wide.contiguous()).detach())
    np.testing.assert_array_equal(module(x).detach(), module(x.contiguous()).detach())
    module(x).sum().backward()  # the gradient of a sum is one number, expanded
    np.testing.assert_allclose(double(module.weight.grad[0]), double(x.sum(0)), atol=1e-3)


def test_what_needs_no_gradient_gets_none():
    module, x = layer(1024, 1024), rows(4, 1024)
    module.weight.requires_grad_(False)
    module(x).sum().backward()
    assert (module.weight.grad, x.grad) == (None, None)
    assert module.bias.grad is not None


def test_a_perceptron_has_the_weights_of_nn_linear_and_can_be_copied():
    torch.manual_seed(3)
    ours = mlp(700, 10, (1500,))
    torch.manual_seed(3)
    plain = nn.Sequential(nn.Linear(700, 1500), nn.ReLU(), nn.Linear(1500, 10))
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True)
    )
    x = rows(100, 700)
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(pickle.loads(pickle.dumps(ours))(x), ours(x))
