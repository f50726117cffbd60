"""Top-1 routing against loops over single images, dense oracles, and itself in other forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentspace import contexts, gates
from latentspace.contexts import IdealGates
from latentspace.estimators import initial_weights
from latentspace.sparse import SparseDense, TopOne, dispatch, in_turn, sparse_network, top_one


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linears(k=3, inputs=4, outputs=5, seed=0):
    with initial_weights(seed):
        return [nn.Linear(inputs, outputs).double() for _ in range(k)]


class TestDispatch:
    @pytest.mark.parametrize("n", [1, 2, 17])
    def test_against_a_loop(self, n):
        paths = linears()
        x = torch.randn(n, 4, generator=seeded(1), dtype=torch.float64)
        chosen = torch.randint(3, (n,), generator=seeded(2))
        wanted = torch.stack([
            torch.as_tensor(paths[j].weight.detach().numpy() @ row.numpy()) + paths[j].bias.detach()
            for row, j in zip(x, chosen.tolist(), strict=True)
        ])  # fmt: skip
        torch.testing.assert_close(dispatch(x, chosen, paths).detach(), wanted)

    def test_each_path_is_called_once_and_with_its_own_rows(self):
        calls = []

        def path(j):
            return lambda rows: calls.append((j, rows[:, 0].tolist())) or rows

        x = torch.arange(6.0)[:, None]
        found = dispatch(x, torch.tensor([2, 0, 2, 0, 0, 2]), [path(j) for j in range(3)])
        assert calls == [(0, [1, 3, 4]), (2, [0, 2, 5])]
        assert torch.equal(found, x)

    @pytest.mark.parametrize("n", [1, 5])
    def test_rows_of_one_path_are_neither_sorted_nor_copied(self, n):
        x, seen = torch.arange(4.0 * n).view(n, 4), []
        paths = [None, lambda rows: seen.append(rows) or -rows]
        found = dispatch(x, torch.ones(n, dtype=torch.long), paths)
        assert [rows.data_ptr() for rows in seen] == [x.data_ptr()]
        assert torch.equal(found, -x)

    def test_bad_input(self):
        x = torch.zeros(2, 4)
        for chosen in ([0], [0, 3], [-1, 0]):
            with pytest.raises(ValueError, match="choices"):
                dispatch(x, torch.tensor(chosen), linears())
        with pytest.raises(ValueError, match="rows"):
            dispatch(x[:0], torch.zeros(0, dtype=torch.long), linears())


def dense_oracle(router, x):
    """All paths for all images, in numpy's order of work; the others' weight is 0."""
    s = router.gates.scores
    pooled = x[:, 0].flatten(2).mean(2) if x.ndim > 3 else x[:, 0]
    hidden = (pooled @ s.weight1[0] + s.bias1[0, 0]).clamp_min(0)
    scores = hidden @ s.weight2[0] + s.bias2[0, 0]
    g = torch.exp(scores - scores.logsumexp(1, keepdim=True))
    largest = (g == g.amax(1, keepdim=True)).to(g.dtype)
    outputs = torch.stack([path(x) for path in router.paths], 1)  # (n, k, 1, ...)
    weights = (g * largest).view(*g.shape, *[1] * (outputs.ndim - 2))
    return (weights * outputs).sum(1)


class TestTopOne:
    @pytest.mark.parametrize("k", [1, 2, 4])
    def test_values_and_gradients_are_those_of_the_dense_form(self, k):
        with initial_weights(k):
            router = TopOne([nn.Conv2d(3, 5, 3, padding=1) for _ in range(k)], 3).double()
        for path in router.paths:
            path.forward = _on_maps(path)
        x = torch.randn(30, 1, 3, 6, 6, generator=seeded(3), dtype=torch.float64) * 3
        x.requires_grad_()
        upstream = torch.randn(30, 1, 5, 6, 6, generator=seeded(4), dtype=torch.float64)
        inputs = [x, *router.parameters()]
        got, wanted = router(x), dense_oracle(router, x)
        torch.testing.assert_close(got, wanted)
        ours, theirs = (
            torch.autograd.grad((y * upstream).sum(), inputs, allow_unused=True)
            for y in (got, wanted)
        )
        for a, b in zip(ours, theirs, strict=True):  # a path that nobody chose has no gradient
            a = torch.zeros_like(b) if a is None else a
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)

    def test_the_router_learns_through_the_gate_alone(self):
        router = TopOne(linears(3, 4, 5), 4).double()
        x = torch.randn(9, 1, 4, generator=seeded(5), dtype=torch.float64)
        router(x).square().sum().backward()
        assert router.gates.scores.weight2.grad.abs().sum() > 0

    def test_images_do_not_see_each_other(self):
        model = sparse_network("R C4 M R F8", (3, 8, 8), 5, 3).eval()
        x = torch.randn(11, 3, 8, 8, generator=seeded(6))
        alone = torch.cat([model(row[None]) for row in x])
        torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)

    def test_top_one_keeps_the_largest(self):
        g = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3]])
        assert top_one(g).tolist() == torch.tensor([[0, 0.5, 0], [0.4, 0, 0]]).tolist()


    def test_in_turn_every_path_gets_its_share(self):
        model = in_turn(sparse_network("R C4 M R F8", (3, 8, 8), 5, 3).eval(), 8)
        routers = [part for part in model.modules() if isinstance(part, TopOne)]
        assert len(routers) == 2
        seen = {}
        for i, path in enumerate(path for router in routers for path in router.paths):
            path.register_forward_hook(lambda path, given, y, i=i: seen.update({i: len(y)}))
        for n, shares in ((8, [3, 3, 2]), (6, [2, 2, 2]), (4, [2, 1, 1])):
            model(torch.randn(n, 3, 8, 8, generator=seeded(7)))
            assert [seen[i] for i in range(6)] == 2 * shares


def _on_maps(conv):
    return lambda x: F.conv2d(x[:, 0], conv.weight, conv.bias, padding=1)[:, None]


class TestNetwork:
    def test_the_arithmetic_of_one_path_and_the_weights_of_all(self):
        from torch.utils.flop_counter import FlopCounterMode

        def cost(paths):
            model = sparse_network("R C8 M R C16 M R F16", (3, 16, 16), 10, paths).eval()
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                model(torch.zeros(4, 3, 16, 16))
            return counter.get_total_flops(), sum(p.numel() for p in model.parameters())

        (one, small), (four, large) = cost(1), cost(4)
        assert four < 1.01 * one
        assert large > 3.5 * small

    def test_gates_can_be_read_and_regularised(self):
        model = sparse_network("C4 R C4 M R F8", (3, 8, 8), 5, 3)
        found = gates.read(model, torch.randn(7, 3, 8, 8, generator=seeded(7)))
        assert [tuple(g.shape) for g in found] == [(7, 1, 3)] * 2
        with gates.watched(model.train()) as scores:
            model(torch.randn(7, 3, 8, 8, generator=seeded(8)))
        assert gates.GateMixture.of(model)(scores) > 0

    @pytest.mark.parametrize("plan", ["C4 F8", "R X3", "R F8 R C4"])
    def test_bad_plans(self, plan):
        with pytest.raises(ValueError, match="R|plan|maps"):
            sparse_network(plan, (3, 8, 8), 5, 2)
        with pytest.raises(ValueError, match="paths"):
            sparse_network("R F8", (3, 8, 8), 5, 0)


class TestSparseDense:
    widths, s, k = (6, 5, 4), 3, 2

    def net(self, **how):
        torch.manual_seed(0)
        return SparseDense(self.widths, self.k, self.s, **how)

    def data(self):
        context = torch.arange(20)[:, None].expand(-1, 3) % 2
        return torch.randn(20, self.s, 6, generator=seeded(9)), context

    def test_each_seed_is_a_chain_of_top_one_layers(self):
        net, (x, context) = self.net(), self.data()
        for seed in range(self.s):
            h = x[:, seed, None]
            for gate, layer, last in zip(net.gates, net.layers, (False, True), strict=True):
                mine = slice(seed * self.k, (seed + 1) * self.k)
                own = zip(layer.weight[mine], layer.bias[mine], strict=True)
                paths = [_dense(weight, bias, not last) for weight, bias in own]
                router = TopOne([nn.Identity()] * self.k, h.shape[2])
                scores = gate.network.scores
                for name in ("weight1", "bias1", "weight2", "bias2"):
                    setattr(router.gates.scores, name, nn.Parameter(getattr(scores, name)[[seed]]))
                value, chosen = router.gates(h)[:, 0].max(1)
                h = dispatch(h, chosen, paths) * value[:, None, None]
            torch.testing.assert_close(net(x, context)[:, seed], h[:, 0])

    def test_ideal_gates_give_each_context_a_chain_of_its_own(self):
        net, (x, context) = self.net(gates=lambda i, m, k, w: IdealGates(m, k)), self.data()
        got = net(x, context)
        for c in (0, 1):
            rows = (context[:, 0] == c).nonzero()[:, 0]
            h = x[rows]
            for layer, last in zip(net.layers, (False, True), strict=True):
                weight, bias = layer.weight[c :: self.k], layer.bias[c :: self.k, 0]
                h = torch.einsum("nsa,sab->nsb", h, weight) + bias
                h = h if last else h.clamp_min(0)
            torch.testing.assert_close(got[rows], h)

    def test_soft_weighs_all(self):
        net, (x, context) = self.net(soft=True), self.data()
        found = []
        y = net(x, context, found)
        assert y.shape == (20, 3, 4)
        assert [tuple(g.shape) for g in found] == [(20, 3, 1, 2)] * 2
        assert not torch.allclose(y, self.net()(x, context))

    def test_it_trains_beside_the_other_networks_of_contexts(self):
        rng = np.random.default_rng(0)
        images, labels = rng.random((60, 4, 4)), rng.integers(3, size=60)
        train, _ = contexts.draw_task(images, labels, [0, 1, 2], 40, 10, contexts.inverted)
        net = SparseDense([16, 5, 3], 2, 3)
        before = contexts.mean_loss(net, train)
        contexts.train_together(net, train, 5, batch_size=20, penalty=gates.load_balancing_loss)
        assert contexts.mean_loss(net, train) < before


def _dense(weight, bias, relu):
    return lambda rows: (rows @ weight + bias).relu() if relu else rows @ weight + bias
