"""Routers against loops over single tensors, autograd and conservation."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from latentspace.routing import (
    CrossConnection,
    CrossPrediction,
    CrossStitch,
    GateNetwork,
    SqueezeExcitation,
    route,
    route_gradient,
    spread,
    stack,
)

COUNTS = st.integers(1, 4)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(gate, image):
    """Gates of one image, one path at a time: eq. 3.3-3.5 written out."""
    gate.requires_grad_(False)
    scores, rows = gate.scores, []
    for i, path in enumerate(image):
        z = [float(channel.mean()) for channel in path]
        hidden = [
            max(0.0, float(scores.bias1[i, 0, h]) + sum(
                float(scores.weight1[i, c, h]) * z[c] for c in range(len(z))))
            for h in range(scores.weight1.shape[2])
        ]  # fmt: skip
        a = [
            float(scores.bias2[i, 0, j]) + sum(
                float(scores.weight2[i, h, j]) * hidden[h] for h in range(len(hidden)))
            for j in range(scores.weight2.shape[2])
        ]  # fmt: skip
        total = sum(math.exp(value) for value in a)
        rows.append([math.exp(value) / total for value in a])
    return rows


@settings(max_examples=25, deadline=None)
@given(COUNTS, COUNTS, st.sampled_from([(3,), (3, 2, 4)]), st.integers(0, 99))
def test_all_outputs_together_are_all_inputs_together(m, k, shape, seed):
    torch.manual_seed(seed)
    router = CrossConnection(m, k, shape[0], hidden=5).double()
    paths = draw(2, m, *shape, seed=seed)
    gates = router.gates(paths)
    assert gates.shape == (2, m, k) and (gates > 0).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(2, m, dtype=gates.dtype))
    torch.testing.assert_close(router(paths).sum(1), paths.sum(1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_cross_connection_is_the_loop_over_single_tensors(shape):
    torch.manual_seed(1)
    router = CrossConnection(3, 2, 3, hidden=4).double()
    paths = [draw(2, *shape, seed=i) for i in range(3)]
    found = router(paths)
    for n in range(2):
        gates = by_hand(router.gates, [path[n] for path in paths])
        for j in range(2):
            expected = sum(gates[i][j] * paths[i][n] for i in range(3))
            torch.testing.assert_close(found[n, j], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_cross_prediction_is_the_loop_over_pairs(kernel):
    """The reference predicts each U_ij by a layer of its own and gates it afterwards, eq. 3.6."""
    torch.manual_seed(2)
    m, k, width, features = 3, 2, 4, 5
    router = CrossPrediction(m, k, width, features, hidden=4, kernel=kernel).double()
    with torch.no_grad():
        router.bias.normal_()
    paths = [draw(2, width, *([4, 5] if kernel else []), seed=i) for i in range(m)]
    found = router(paths)
    assert found.shape == (2, k, features, *paths[0].shape[2:])
    for n in range(2):
        gates = by_hand(router.gates, [path[n] for path in paths])
        for j in range(k):
            expected = 0
            for i in range(m):
                weight = router.weight[j][:, i * width : (i + 1) * width]
                if kernel:
                    u = F.conv2d(paths[i][n], weight, router.bias[i, j], padding=kernel // 2)
                else:
                    u = F.linear(paths[i][n], weight, router.bias[i, j])
                expected = expected + gates[i][j] * u
            torch.testing.assert_close(found[n, j], expected.relu(), atol=1e-12, rtol=0)


def test_cross_prediction_normalises_each_output_by_itself():
    torch.manual_seed(3)
    router = CrossPrediction(2, 3, 4, 5, norm=True)
    plain = CrossPrediction(2, 3, 4, 5)
    plain.load_state_dict(router.state_dict(), strict=False)
    paths = torch.randn(6, 2, 4, 4, 4)
    router(paths)
    # Before the ReLU, so that what is compared is not cut off.
    summed = torch.stack([
        F.conv2d(spread(paths, plain.gates(paths))[:, j], plain.weight[j], padding=1)
        for j in range(3)
    ], 1)  # fmt: skip
    mean = summed.mean((0, 3, 4)).flatten()
    torch.testing.assert_close(router.norm.running_mean, 0.1 * mean)


def test_T1_an_output_is_no_average_of_the_inputs():
    """Gates sum to 1 over outputs; equal inputs then come out scaled, by their column's sum."""
    torch.manual_seed(8)
    router = CrossConnection(3, 2, 4).double()
    x = draw(1, 1, 4).expand(1, 3, 4)
    gates = router.gates(x)
    torch.testing.assert_close(gates.sum(2), torch.ones(1, 3, dtype=gates.dtype))
    assert (gates.sum(1) - 1).abs().min() > 0.1
    torch.testing.assert_close(router(x), gates.sum(1)[..., None] * x[:, :1])


def test_T1_the_jacobian_needs_no_transpose():
    g = draw(5).softmax(0)
    jacobian = torch.autograd.functional.jacobian(lambda a: a.softmax(0), g.log())
    torch.testing.assert_close(jacobian, jacobian.T)
    torch.testing.assert_close(jacobian, g.diag() - torch.outer(g, g))


@settings(max_examples=15, deadline=None)
@given(COUNTS, COUNTS, st.integers(0, 99))
def test_router_gradient_by_hand_is_that_of_autograd(m, k, seed):
    """Eq. 3.9-3.15, several images at once; float64."""
    x, w = draw(3, m, 5, seed=seed).requires_grad_(), draw(m, k, 5, seed=seed + 1).requires_grad_()
    upstream = draw(3, k, 5, seed=seed + 2)
    gates = [torch.softmax(x[:, i] @ w[i].T, 1) for i in range(m)]
    y = [sum(gates[i][:, j, None] * x[:, i] for i in range(m)) for j in range(k)]
    loss = sum((upstream[:, j] * y[j]).sum() for j in range(k))
    expected = torch.autograd.grad(loss, (x, w))
    for found, wanted in zip(route_gradient(x, w, upstream), expected, strict=True):
        assert (found - wanted).abs().max() < 1e-12


def test_the_second_term_of_the_gradient_is_needed():
    """Eq. 3.15 without what flows through the gates is another gradient."""
    x, w, upstream = draw(3, 2, 5), draw(2, 2, 5, seed=1), draw(3, 2, 5, seed=2)
    gates = torch.einsum("nmc,mkc->nmk", x, w).softmax(-1)
    direct = torch.einsum("nmk,nkc->nmc", gates, upstream)
    assert (route_gradient(x, w, upstream)[0] - direct).abs().max() > 0.01


def test_gates_that_look_at_nothing_are_a_cross_stitch():
    torch.manual_seed(4)
    router, stitch = CrossConnection(3, 2, 4), CrossStitch(3, 2)
    with torch.no_grad():
        router.gates.scores.weight2.zero_()
        router.gates.scores.bias2.normal_()
        stitch.gates.copy_(router.gates.scores.bias2[:, 0].softmax(-1))
    paths = torch.randn(5, 3, 4, 2, 2)
    torch.testing.assert_close(router(paths), stitch(paths))


def test_cross_stitch_starts_nearly_apart():
    torch.testing.assert_close(
        CrossStitch(3, 3).gates.detach(),
        torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]]),
    )
    torch.testing.assert_close(CrossStitch(1, 2).gates.detach(), torch.ones(1, 2))
    assert CrossStitch(1, 1).gates.item() == 1


def test_squeeze_and_excitation_is_the_loop_over_channels():
    torch.manual_seed(5)
    layer, maps = SqueezeExcitation(3, 2), torch.randn(4, 3, 2, 5)
    found = layer(maps)
    for n in range(4):
        z = torch.stack([maps[n, c].mean() for c in range(3)])
        hidden = torch.relu(layer.squeeze.weight @ z + layer.squeeze.bias)
        gates = 1 / (1 + torch.exp(-(layer.excite.weight @ hidden + layer.excite.bias)))
        for c in range(3):
            torch.testing.assert_close(found[n, c], gates[c] * maps[n, c])


def test_images_do_not_see_each_other():
    torch.manual_seed(6)
    paths = torch.randn(6, 2, 4, 3, 3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for router in (CrossConnection(2, 3, 4), CrossPrediction(2, 3, 4, 5)):
        torch.testing.assert_close(router(paths)[order], router(paths[order]))


def test_T1_a_one_to_many_connector_divides_one_path():
    """What each output gets is a share of about 1 / k at the start, on average exactly."""
    torch.manual_seed(7)
    paths = torch.rand(2000, 1, 8)
    shares = CrossConnection(1, 4, 8).gates(paths)
    assert float(shares.detach().sum(-1).mean()) == pytest.approx(1)
    many = torch.stack([CrossConnection(1, 4, 8).gates(paths[:1]) for _ in range(400)])
    torch.testing.assert_close(many.mean((0, 1, 2)), torch.full((4,), 0.25), atol=0.03, rtol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="one shape"):
        stack([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="one or more"):
        stack([])
    with pytest.raises(ValueError, match="need 2 paths"):
        CrossConnection(2, 2, 3)(torch.zeros(4, 3, 3))
    with pytest.raises(ValueError, match="one shape"):
        CrossConnection(2, 2, 3)([torch.zeros(4, 3, 5, 5), torch.zeros(4, 3, 5, 6)])
    for router in (CrossConnection(2, 2, 3), CrossPrediction(2, 2, 3, 4), CrossStitch(2, 2)):
        with pytest.raises(ValueError, match="one or more"):
            router([])
    for router in (CrossConnection(2, 2, 3), CrossPrediction(2, 2, 3, 4)):
        with pytest.raises(ValueError, match=r"need 2 paths \(n, 2, 3, ...\)"):
            router(torch.zeros(4, 2, 5, 6, 6))
    with pytest.raises(ValueError, match=r"need 1 paths"):  # one image without its axis of images
        CrossConnection(1, 2, 3)(torch.zeros(3, 6, 6)[:, None])
    with pytest.raises(ValueError, match="hidden must be"):
        GateNetwork(2, 2, 3, hidden=0)
    for width in (0, 2.5, math.nan):
        with pytest.raises(ValueError, match="width must be"):
            GateNetwork(2, 2, width)
    with pytest.raises(ValueError, match="inputs must be"):
        CrossConnection(0, 2, 3)
    with pytest.raises(ValueError, match="outputs must be"):
        CrossStitch(2, 0)
    with pytest.raises(ValueError, match="features must be"):
        CrossPrediction(2, 2, 3, 0)
    with pytest.raises(ValueError, match="kernel must be odd"):
        CrossPrediction(2, 2, 3, 4, kernel=2)
    with pytest.raises(ValueError, match="of maps"):
        CrossPrediction(2, 2, 3, 4, kernel=0, norm=True)
    with pytest.raises(ValueError, match="width must be"):
        SqueezeExcitation(0, 2)
    with pytest.raises(ValueError, match="do not fit"):
        route(torch.zeros(2, 3, 4), torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="do not fit"):  # reshaping would mix up images and outputs
        spread(torch.zeros(2, 3, 4), torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="do not fit"):  # einsum would stretch an axis of one
        route_gradient(torch.zeros(2, 3, 4), torch.zeros(3, 2, 1), torch.zeros(2, 2, 4))
