"""Gates read, exchanged and regularised: against loops, scipy, scikit-learn and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logit
from scipy.stats import entropy, variation
from sklearn.feature_selection import f_classif
from torch import nn

from latentspace import gates
from latentspace.estimators import initial_weights
from latentspace.gates import GateMixture
from latentspace.maximize import maximize
from latentspace.multipath import multipath
from latentspace.relevance import em_loss, normalize_relevance, sharpened_posterior

PLANS = ("R C4 M R C6 M R F8 R", "P4 M P6 F8 P5")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(plan=PLANS[0], paths=2, seed=0):
    with initial_weights(seed):
        return multipath(plan, (3, 8, 8), 5, paths=paths).eval()


def images(n=12, seed=1):
    return torch.randn(n, 3, 8, 8, generator=seeded(seed))


def scores(m=2, k=3, n=40, seed=2):
    return 2 * torch.randn(n, m, k, generator=seeded(seed), dtype=torch.float64)


class TestRead:
    @pytest.mark.parametrize("plan", PLANS)
    @pytest.mark.parametrize("paths", [2, 3])
    def test_gates_are_the_networks_own(self, plan, paths):
        model, x = network(plan, paths), images()
        found = gates.read(model, x, batch_size=5)
        wanted = model.gates(x)
        assert len(found) == len(wanted) == plan.count("R") + plan.count("P")
        for ours, theirs in zip(found, wanted, strict=True):
            torch.testing.assert_close(ours, theirs.detach())
            torch.testing.assert_close(ours.sum(-1), torch.ones(ours.shape[:2]))
        before = gates.read(model, x, before=True)
        torch.testing.assert_close(before[1].softmax(-1), found[1])

    def test_read_leaves_mode_and_statistics_alone(self):
        model = network().train()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        gates.read(model, images())
        assert all(part.training for part in model.modules())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(part._forward_hooks for part in model.modules())

    def test_watched_scores_carry_the_gradient_and_start_anew(self):
        model = network()
        with gates.watched(model) as found:
            model(images(3))
            model(images(4))
        assert [len(a) for a in found] == [4] * 4
        sum(a.square().sum() for a in found).backward()
        assert model.stages[0].gates.scores.weight2.grad.abs().sum() > 0

    def test_routes_against_a_loop(self):
        model, x = network(), images(4)
        found = gates.routes(model, x)
        for i, route in enumerate(found):
            seen = model._start(x)
            for stage in model.stages:
                if hasattr(stage, "gates"):
                    if i == 0:
                        break
                    i -= 1
                seen = stage(seen)
            after = stage(seen)
            for image in range(len(x)):
                for given, shares in ((seen, route.inputs), (after, route.outputs)):
                    strengths = [given[image, p].abs().mean().item() for p in range(given.shape[1])]
                    wanted = np.array(strengths) / np.sum(strengths)
                    np.testing.assert_allclose(shares[image], wanted, rtol=1e-5)
        torch.testing.assert_close(found[2].gates, model.gates(x)[2])
        assert found[0].inputs.tolist() == [[1.0]] * 4
        # All that reaches the outputs of the first router is the image times the gates.
        torch.testing.assert_close(found[0].outputs, found[0].gates[:, 0])

    def test_explained_is_the_share_of_an_analysis_of_variance(self):
        rng = np.random.default_rng(0)
        groups = rng.choice(4, size=200, p=[0.5, 0.3, 0.15, 0.05])
        values = rng.normal(size=(200, 3)) + np.outer(groups, [0, 1, -3])
        f, _ = f_classif(values, groups)
        wanted = f * 3 / (f * 3 + 200 - 4)
        found = gates.explained(torch.tensor(values), torch.tensor(groups))
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        still = torch.full((200, 2), 0.3)
        assert gates.explained(still, torch.tensor(groups)).tolist() == [0, 0]

    def test_bad_input(self):
        with pytest.raises(ValueError, match="no gates"):
            gates.read(nn.Linear(3, 2), torch.zeros(2, 3))
        with pytest.raises(ValueError, match="no cross-connection"):
            gates.routes(nn.Linear(3, 2), torch.zeros(2, 3))
        with pytest.raises(ValueError, match="groups"):
            gates.explained(torch.zeros(3, 2), torch.zeros(2))


class TestLogOdds:
    @pytest.mark.parametrize("k", [2, 3, 5])
    def test_against_scipy(self, k):
        a = scores(k=k)
        found = gates.log_odds(a)
        np.testing.assert_allclose(found, logit(a.softmax(-1).numpy()), atol=1e-10)
        torch.testing.assert_close(gates.log_odds(a + 7.0), found)

    def test_far_gates_have_finite_odds_and_gradients(self):
        a = torch.tensor([[200.0, -200.0]], requires_grad=True)
        assert gates.log_odds(a).tolist() == [[400, -400]]
        gates.log_odds(a)[0, 0].backward()
        assert a.grad.tolist() == [[1, -1]]

    def test_T22_a_score_can_rise_without_its_gate(self):
        """What section 3.5.2 maximises, the score before the softmax, does not decide the gate."""
        a, b = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 6.0])
        assert b[0] > a[0]
        assert b.softmax(0)[0] < a.softmax(0)[0]
        assert gates.log_odds(b)[0] < gates.log_odds(a)[0]

    def test_one_output_has_none(self):
        with pytest.raises(ValueError, match="only output"):
            gates.log_odds(torch.zeros(2, 1))


class TestGateScore:
    def test_reads_the_odds_of_each_images_gate(self):
        model, x = network(), images(3)
        units = [(0, 1), (1, 0), (1, 1)]
        wanted = [logit(model.gates(x)[2][i, p, q].item()) for i, (p, q) in enumerate(units)]
        np.testing.assert_allclose(gates.gate_score(model, 2, units)(x).detach(), wanted, rtol=1e-4)

    def test_maximised_the_gate_rises(self):
        model, start = network(), 0.01 * images(2)
        score = gates.gate_score(model, 1, [(0, 0), (0, 1)])
        found = maximize(score, start, steps=30, step_size=0.3, limits=(-2, 2))
        before, after = (model.gates(x)[1][:, 0] for x in (start, found))
        assert after[0, 0] > before[0, 0] + 0.02
        assert after[1, 1] > before[1, 1] + 0.02

    def test_of_the_first_router_one_step_is_one_colour(self):
        """A gate that looks at the image sees its mean colour, so that its gradient is flat."""
        model, start = network(), images(1)
        score = gates.gate_score(model, 0, [(0, 0)])
        step = maximize(score, start, steps=1, step_size=1.0, limits=(-99, 99)) - start
        assert step.abs().max() > 0.01
        torch.testing.assert_close(step, step[:, :, :1, :1].expand_as(step), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(
        ("router", "units", "match"),
        [(4, [(0, 0)], "router"), (1, [(2, 0)], "gates"), (1, [(0, 0), (0, 1)], "gates")],
    )
    def test_bad_input(self, router, units, match):
        with pytest.raises(ValueError, match=match):
            gates.gate_score(network(), router, units)(images(1))


class TestExchanged:
    @pytest.mark.parametrize("plan", PLANS)
    def test_own_gates_change_nothing(self, plan):
        model, x = network(plan), images()
        found = gates.predict_exchanged(model, x, gates.read(model, x), batch_size=5)
        torch.testing.assert_close(found, model(x).detach())
        left = gates.predict_exchanged(model, x, [None] * len(model.gates(x)))
        torch.testing.assert_close(left, model(x).detach())

    @pytest.mark.parametrize("paths", [2, 3])
    def test_swapped_first_gates_are_swapped_paths(self, paths):
        """By hand: with the router's output paths exchanged, the rest of the network runs on."""
        model, x = network(paths=paths), images()
        own = gates.read(model, x)
        only = [gates.swap(own)[0]] + [None] * 3
        y = model.stages[0](model._start(x)).roll(1, 1)
        for stage in model.stages[1:]:
            y = stage(y)
        torch.testing.assert_close(gates.predict_exchanged(model, x, only), y.mean(1).detach())

    def test_constant_gates_are_a_cross_stitch(self):
        """Frozen gates make the network one whose routers are matrices."""
        model, x = network(), images()
        frozen = gates.freeze(gates.read(model, x))
        y = x[:, None]
        router = iter(frozen)
        for stage in model.stages:
            y = torch.einsum("mk,nm...->nk...", next(router)[0], y) if hasattr(
                stage, "gates") else stage(y)  # fmt: skip
        ours = gates.predict_exchanged(model, x, [g[:1] for g in frozen])
        torch.testing.assert_close(ours, y.mean(1).detach(), atol=1e-5, rtol=1e-4)

    def test_what_the_exchanges_are(self):
        own = [scores(k=k, n=9).softmax(-1) for k in (2, 3)]
        for g, frozen, equal, swapped in zip(
            own, gates.freeze(own), gates.average(own), gates.swap(own), strict=True
        ):
            np.testing.assert_allclose(frozen, np.tile(g.numpy().mean(0), (9, 1, 1)))
            assert torch.equal(equal, torch.full_like(g, 1 / g.shape[2]))
            assert torch.equal(swapped[..., 1:], g[..., :-1])
        assert torch.equal(gates.swap(own)[0], own[0].flip(-1))
        one, two = gates.shuffle(own, seeded(3))
        origin = [(own[0] == row).all((1, 2)).nonzero().item() for row in one]
        assert sorted(origin) == list(range(9))
        assert all(i != j for i, j in enumerate(origin))  # nobody keeps its own
        assert torch.equal(two, own[1][origin])  # all gates come from the same image

    def test_hooks_go_even_after_an_error(self):
        model, x = network(), images()
        with pytest.raises(ValueError, match="for a router"), gates.exchanged(
            model, [torch.ones(3, 1, 2), None, None, None]
        ):  # fmt: skip
            model(x)
        assert not any(part._forward_hooks for part in model.modules())

    def test_wrong_number_of_routers(self):
        with pytest.raises(ValueError, match="zip"), gates.exchanged(network(), [None]):
            pass


class TestLosses:
    def test_mixture_is_em_on_each_gate(self):
        """One path's scores at a time, with the uniform prior's log k added."""
        found = [scores(m=1, k=2), scores(m=2, k=3, seed=4)]
        mixture = GateMixture([(1, 2), (2, 3)], rate=0.0).double()
        wanted = []
        for a in found:
            for path in range(a.shape[1]):
                one = normalize_relevance(a[:, path])
                wanted.append(em_loss(one, sharpened_posterior(one)) + np.log(a.shape[2]))
        torch.testing.assert_close(mixture(found), torch.stack(wanted).mean())
        for prior in mixture.priors:
            uniform = torch.full_like(prior, 1 / prior.shape[1])
            torch.testing.assert_close(prior, uniform, rtol=1e-6, atol=0)

    def test_prior_moves_towards_the_posterior_in_training_only(self):
        a = scores()
        mixture = GateMixture([(2, 3)], rate=0.25).double()
        uniform = mixture.priors[0].clone()
        mixture.eval()([a])
        assert torch.equal(mixture.priors[0], uniform)
        mixture.train()([a])
        z = ((a - a.mean(0)) / (a.var(0, correction=0) + 1e-5).sqrt()).softmax(-1).mean(0)
        torch.testing.assert_close(mixture.priors[0], 0.75 * uniform + 0.25 * z)
        state = mixture.state_dict()
        again = GateMixture([(2, 3)]).double()
        again.load_state_dict(state)
        assert torch.equal(again.priors[0], mixture.priors[0])

    def test_of_a_model_and_its_gradient(self):
        model, x = network(paths=3).train(), images()
        mixture = GateMixture.of(model)
        assert [tuple(p.shape) for p in mixture.priors] == [(1, 3), (3, 3), (3, 3), (3, 3)]
        with gates.watched(model) as found:
            model(x)
        mixture(found).backward()
        assert all(
            stage.gates.scores.weight2.grad.abs().sum() > 0
            for stage in model.stages
            if hasattr(stage, "gates")
        )

    def test_it_wakes_a_gate_that_sleeps(self):
        """Descent on the loss alone drives a gate that is .98 for all images apart."""
        model, x = network(), images(64)
        with torch.no_grad():
            model.stages[0].gates.scores.bias2[..., 0] += 4
        mixture, router = GateMixture.of(model), model.stages[0].gates
        optimizer = torch.optim.Adam(router.parameters(), 0.02)
        before = router(x[:, None])[..., 0]
        assert before.min() > 0.9
        for _ in range(200):
            optimizer.zero_grad()
            with gates.watched(model) as found:
                model(x)
            mixture(found).backward()
            optimizer.step()
        after = router(x[:, None])[..., 0]
        assert after.std() > 3 * before.std()

    def test_other_losses_against_scipy(self):
        a = [scores(m=2, k=3), scores(m=1, k=2, seed=5)]
        g = [one.softmax(-1).numpy() for one in a]
        each = [entropy(one, axis=2).mean(0) for one in g]
        whole = [entropy(one.mean(0), axis=1) for one in g]
        for one, e, w in zip(a, each, whole, strict=True):
            found = gates.entropies(one)
            np.testing.assert_allclose(found[0], e)
            np.testing.assert_allclose(found[1], w)
        wanted = np.mean(np.concatenate([e - w for e, w in zip(each, whole, strict=True)]))
        assert gates.entropy_loss(a).item() == pytest.approx(wanted)
        wanted = np.concatenate([variation(one.sum(0), axis=1) ** 2 for one in g]).mean()
        assert gates.importance_loss(a).item() == pytest.approx(wanted)
        shares = [np.stack([np.bincount(one[:, p].argmax(1), minlength=one.shape[2]) / len(one)
                            for p in range(one.shape[1])]) for one in g]  # fmt: skip
        wanted = np.concatenate(
            [one.shape[2] * (f * one.mean(0)).sum(1) for f, one in zip(shares, g, strict=True)]
        ).mean()
        assert gates.load_balancing_loss(a).item() == pytest.approx(wanted)

    def test_extremes(self):
        """Decided and even, undecided, and always the same output."""
        decided = 1e3 * F.one_hot(torch.arange(40) % 2, 2).double()[:, None]
        undecided = torch.zeros(40, 1, 2).double()
        same = torch.tensor([1e3, 0.0]).double().expand(40, 1, 2)
        entropy_, importance, balance = (
            [loss([a]).item() for a in (decided, undecided, same)]
            for loss in (gates.entropy_loss, gates.importance_loss, gates.load_balancing_loss)
        )
        assert entropy_ == pytest.approx([-np.log(2), 0, 0])
        assert importance == pytest.approx([0, 0, 1])
        assert balance == pytest.approx([1, 1, 2])

    def test_bad_input(self):
        mixture = GateMixture([(2, 3)])
        with pytest.raises(ValueError, match="for priors"):
            mixture([torch.zeros(5, 2, 2)])
        with pytest.raises(ValueError, match="zip"):
            mixture([])
        with pytest.raises(ValueError, match="no gates"):
            GateMixture.of(nn.Linear(2, 2))
