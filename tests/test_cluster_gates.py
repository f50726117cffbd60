"""Gates that are posteriors: against formulas in numpy, and what the mixture loss cannot see."""

import numpy as np
import pytest
import torch
from scipy.special import log_expit, softmax
from torch import nn

from latentspace import gates
from latentspace.cluster_gates import ClusterScores, use_posteriors
from latentspace.estimators import initial_weights
from latentspace.gates import GateMixture
from latentspace.multipath import multipath
from latentspace.routing import GateNetwork


def scores(m=2, k=3, n=40, seed=2):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(n, m, k, generator=draw, dtype=torch.float64) + torch.arange(k) / 2


def normalized(a):
    return (a - a.mean(0)) / np.sqrt(a.var(0) + 1e-5)


def network(seed=0):
    with initial_weights(seed):
        return multipath("R C4 M R F8 R", (3, 8, 8), 5, paths=2)


class TestMixtureOnGates:
    @pytest.mark.parametrize("m", [1, 3])
    def test_against_loops(self, m):
        """Routers of different numbers of paths, uneven priors, every gate network counts alike."""
        lists = [scores(1, 3, seed=3), scores(m, 2, seed=4)]
        mixture = GateMixture([(1, 3), (m, 2)], gamma=4.0, rate=0.2).double()
        draw = np.random.default_rng(0)
        priors = [draw.dirichlet(np.ones(a.shape[2]), a.shape[1]) for a in lists]
        mixture.prior0, mixture.prior1 = (torch.tensor(p) for p in priors)
        wanted, moved = [], []
        for a, prior in zip(lists, priors, strict=True):
            z = normalized(a.numpy())
            for i in range(a.shape[1]):
                p = softmax(z[:, i] + np.log(prior[i]), axis=1)
                wanted.append(-(p * (np.log(prior[i]) + log_expit(z[:, i] / 4.0))).sum(1).mean())
                moved.append(0.8 * prior[i] + 0.2 * p.mean(0))
        assert mixture(lists).item() == pytest.approx(np.mean(wanted), rel=1e-6)
        found = np.concatenate([p.numpy().ravel() for p in mixture.priors])
        np.testing.assert_allclose(found, np.concatenate(moved), rtol=1e-6)

    def test_T19_the_loss_sees_neither_mean_nor_scale_of_a_score(self):
        """The thesis says that it cures skewed gates; of raw gates it cannot see the skew."""
        a = scores(2, 2)
        even, skewed = a - a.mean(0), a - a.mean(0) + torch.tensor([3.0, -3.0])
        assert even.softmax(-1)[..., 0].mean() < 0.6
        assert skewed.softmax(-1)[..., 0].mean() > 0.9
        losses = [GateMixture([(2, 2)]).double()([b]).item() for b in (even, skewed, 5 * even)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert losses[2] == pytest.approx(losses[0], rel=1e-4)
        seen = [gates.importance_loss([b]).item() for b in (even, skewed)]
        assert seen[1] > 10 * seen[0] + 0.1

    def test_T19_a_routers_own_loss_has_no_gradient_on_its_last_bias(self):
        model = network()
        with gates.watched(model) as found:
            model(torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        routers = [part.scores for part in model.modules() if isinstance(part, GateNetwork)]
        for router, a in zip(routers, found, strict=True):
            for loss, blind in ((GateMixture([a.shape[1:]]), True), (gates.importance_loss, False)):
                parameters = router.bias2, router.weight2
                by_bias, by_weight = torch.autograd.grad(loss([a]), parameters, retain_graph=True)
                assert by_weight.abs().max() > 0
                assert (by_bias.abs().max() < 1e-6) == blind

    def test_T19_alone_it_wakes_a_sleeping_gate_by_the_other_weights(self):
        """So "no gradient on the bias" is not "cannot wake": a network of its own learns to."""
        draw = torch.Generator().manual_seed(3)
        group = torch.arange(400) % 2
        x = torch.randn(400, 1, 6, generator=draw) + 2 * (2 * group - 1)[:, None, None]
        with initial_weights(1):
            model = nn.Sequential(GateNetwork(1, 2, 6))
        layer = model[0].scores
        with torch.no_grad():
            odds = layer(x)[:, 0, 0] - layer(x)[:, 0, 1]
            layer.bias2[0, 0, 0] += 0.1 - odds.min()
        assert (model(x)[:, 0, 0] > 0.5).all()
        bias, mixture = layer.bias2.detach().clone(), GateMixture.of(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
        for _ in range(200):
            with gates.watched(model) as found:
                model(x)
            optimizer.zero_grad()
            mixture(found).backward()
            optimizer.step()
        torch.testing.assert_close(layer.bias2, bias, rtol=0, atol=1e-5)
        assert 0.3 < (model(x)[:, 0, 0] > 0.5).double().mean() < 0.7

    def test_a_prior_of_two_outputs_never_runs_away(self):
        """For scores that stay: the likelihood's slope at either end points inwards (Jensen)."""
        rng = np.random.default_rng(0)
        for trial in range(20):
            raw = rng.gamma(rng.uniform(0.05, 2), size=(200, 2)) * rng.normal(size=2)
            z = normalized(raw)
            for away in (z[:, 0] - z[:, 1], z[:, 1] - z[:, 0]):
                assert np.exp(away).mean() >= 1 - 1e-12
            prior = np.array([1e-6, 1 - 1e-6])
            for _ in range(800):
                prior = softmax(z + np.log(prior), axis=1).mean(0)
            assert prior.min() > 1e-4, trial


class TestClusterScores:
    def test_gates_are_the_mixtures_posterior(self):
        raw = scores(2, 3)
        layer = ClusterScores(nn.Identity(), 2, 3, rate=0.3).double()
        prior = np.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
        layer.prior = torch.tensor(prior)
        g = layer(raw).softmax(-1).numpy()
        wanted = softmax(normalized(raw.numpy()) + np.log(prior), axis=2)
        np.testing.assert_allclose(g, wanted, rtol=1e-6)
        np.testing.assert_allclose(layer.prior, 0.7 * prior + 0.3 * wanted.mean(0), rtol=1e-6)

    def test_its_prior_is_the_losss(self):
        model = use_posteriors(network(), rate=0.2)
        mixture = GateMixture.of(model, rate=0.2)
        for seed in range(4):
            draw = torch.Generator().manual_seed(seed)
            with gates.watched(model) as found:
                model(torch.randn(30, 3, 8, 8, generator=draw))
            mixture(found)
        held = [part.prior for part in model.modules() if isinstance(part, ClusterScores)]
        for ours, theirs in zip(held, mixture.priors, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert (ours - 1 / ours.shape[1]).abs().max() > 0

    def test_one_image_is_routed_as_among_others(self):
        model = use_posteriors(network())
        x = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        model(x)
        model.eval()
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)
        found, wanted = gates.read(model, x), model.gates(x)
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)

    def test_even_without_the_loss_its_gates_are_balanced(self):
        """What a skewed bias does to raw gates it cannot do here."""
        model = network()
        for part in model.modules():
            if isinstance(part, GateNetwork):
                part.scores.bias2.data[:, 0] += torch.tensor([4.0, -4.0])
        x = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(3))
        assert min(float(g.mean(0)[..., 0].min()) for g in gates.read(model, x)) > 0.9
        use_posteriors(model, rate=0.0)
        model(x)
        means = [g.mean(0) for g in model.gates(x)]
        assert max(float((mean.detach() - 0.5).abs().max()) for mean in means) < 0.15

    def test_bad_input(self):
        with pytest.raises(ValueError, match="no gates"):
            use_posteriors(nn.Linear(3, 2))
