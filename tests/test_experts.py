"""The mixture's loss against scipy and torch.distributions, its experts against single networks."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy, multinomial
from torch import nn
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from latentspace.dynamic_autoencoder import DynamicAutoencoder
from latentspace.estimators import initial_weights
from latentspace.experts import (
    Experts,
    Manager,
    Mixture,
    Vote,
    balanced_entropy,
    batch_entropy,
    expert_errors,
    mixture_loss,
    sample_entropy,
    soft_labels,
)

SHAPES = [(1, 8, 8), (3, 16, 16), (1, 5, 7), (3, 10, 3)]


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(n=7, k=4, scale=2.0):
    return scale * torch.randn(n, k, generator=source(), dtype=torch.float64)


# --- labels and entropies -------------------------------------------------------------------------


def test_soft_labels_by_hand():
    found = soft_labels([1, 0, 2], [1.0, 0.4, 0.0])
    third = 1 / 3
    expected = [[0, 1, 0], [0.4 + 0.6 * third, 0.6 * third, 0.6 * third], [third] * 3]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_array_equal(soft_labels([1, 0]), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    ("labels", "strengths"),
    [([], None), ([-1, 0], None), ([0.0, 1.0], None), ([0, 1], [1.0]), ([0, 1], [1.0, 1.1]),
     ([0], [math.nan]), ([[0]], None)],
)  # fmt: skip
def test_labels_that_are_none(labels, strengths):
    with pytest.raises(ValueError):
        soft_labels(labels, strengths)


def test_entropies_are_scipys():
    log_p = scores().log_softmax(1)
    p = log_p.exp().numpy()
    assert sample_entropy(log_p).item() == pytest.approx(entropy(p, axis=1).mean())
    assert batch_entropy(log_p).item() == pytest.approx(entropy(p.mean(0)))
    assert batch_entropy(log_p) > sample_entropy(log_p)


def test_an_expert_that_has_lost_everything_gives_no_nan():
    a = torch.tensor([[0.0, -1e4, 30.0], [5.0, -2e4, 0.0]], requires_grad=True)
    loss = mixture_loss(a.log_softmax(1), torch.tensor([[1.0, 2.0, 3.0]]).expand(2, 3))["loss"]
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(a.grad).all()


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_s16_the_entropy_of_balanced_clusters_by_enumeration(n, k):
    """The mean entropy over all ways in which n images can fall into K equal clusters."""
    total = 0.0
    for counts in itertools.product(range(n + 1), repeat=k):
        if sum(counts) == n:
            total += multinomial.pmf(counts, n, [1 / k] * k) * entropy(counts)
    assert balanced_entropy(n, k) == pytest.approx(total, abs=1e-12)


def test_s16_the_numbers():
    assert balanced_entropy(100, 10) == pytest.approx(2.257, abs=5e-4)
    assert balanced_entropy(100, 20) == pytest.approx(2.896, abs=5e-4)


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    p, d = np.array([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]), np.array([[1.0, 3], [2, 0], [5, 4]])
    found = mixture_loss(torch.tensor(p).log(), torch.tensor(d), 3.0, 0.5)
    error = (0.9 + 0.3 + 0.6 + 2.5 + 2.0) / 3
    sample, batch = entropy(p, axis=1).mean(), entropy([1.7, 1.3])
    assert found["error"].item() == pytest.approx(error)
    assert found["loss"].item() == pytest.approx(error + 3 * sample - 0.5 * batch)


def test_s10_with_the_sign_of_its_name_the_batch_entropy_makes_the_mixture_collapse():
    """Eq. 2.21 adds an entropy of the mean; then one expert for all is the minimum."""
    collapsed = torch.tensor([[1 - 1e-9, 1e-9]] * 4).double().log()
    balanced = torch.tensor([[1 - 1e-9, 1e-9], [1e-9, 1 - 1e-9]] * 2).double().log()
    same = torch.ones(4, 2).double()
    ours = [mixture_loss(p, same, 0.0, 1.0)["loss"] for p in (collapsed, balanced)]
    printed = [mixture_loss(p, same, 0.0, -1.0)["loss"] for p in (collapsed, balanced)]
    assert ours[1] < ours[0] and printed[0] < printed[1]


def test_s9_as_printed_eq_2_19_does_not_know_its_manager():
    """One error an image under the sum leaves that error; each expert's own does not."""
    d = np.random.default_rng(0).random((6, 4))
    managers = [scores(6).softmax(1).numpy(), scores(6, scale=0.1).softmax(1).numpy()]

    def eq_2_19(p, errors):
        return -np.log((p * np.exp(-errors)).sum(1)).sum()

    printed = [eq_2_19(p, d[:, :1]) for p in managers]
    assert printed == pytest.approx([d[:, 0].sum()] * 2)
    corrected = [eq_2_19(p, d) for p in managers]
    assert abs(corrected[0] - corrected[1]) > 0.01
    for p, value in zip(managers, corrected, strict=True):  # R is its upper bound
        bound = mixture_loss(torch.tensor(p).log(), torch.tensor(d), 0.0, 0.0)["error"].item()
        assert value < 6 * bound


def test_the_error_alone_prefers_the_better_expert():
    """Its gradient in the scores is p_k (d_k - sum_j p_j d_j), here by finite differences."""
    a, d = scores(1), torch.tensor([[0.3, 0.1, 0.9, 0.2]], dtype=torch.float64)

    def error(a):
        return mixture_loss(a.log_softmax(1), d, 0.0, 0.0)["loss"].item()

    p = a.softmax(1)[0]
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    slopes = [(error(a + s) - error(a - s)) / 2e-6 for s in step]
    np.testing.assert_allclose(slopes, p * (d[0] - (p * d[0]).sum()), atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 100.0])
def test_where_experts_can_overrule_the_manager(alpha):
    """Of two experts: the slope in the log odds u is q (1 - q) (d_1 - d_2 - alpha u)."""
    d = torch.tensor([[0.31, 0.30]], dtype=torch.float64)
    for u in (-3.0, -0.01, 1e-5, 0.02, 1.0):
        odds = torch.tensor(u, dtype=torch.float64, requires_grad=True)
        a = torch.stack([odds, torch.zeros_like(odds)])[None]
        mixture_loss(a.log_softmax(1), d, alpha, 0.0)["loss"].backward()
        q = 1 / (1 + math.exp(-u))
        assert odds.grad.item() == pytest.approx(q * (1 - q) * (0.01 - alpha * u), abs=1e-12)


def test_the_batch_entropy_pulls_to_the_smaller_share():
    """Its slope in one image's log odds is q (1 - q) ln(share_1 / share_2) beta / n."""
    u = torch.tensor([2.0, 1.0, -0.5], dtype=torch.float64, requires_grad=True)
    a = torch.stack([u, torch.zeros_like(u)], 1)
    loss = mixture_loss(a.log_softmax(1), torch.zeros(3, 2, dtype=torch.float64), 0.0, 0.7)["loss"]
    q = 1 / (1 + np.exp(-u.detach().numpy()))
    ratio = math.log(q.mean() / (1 - q.mean()))
    slopes = torch.autograd.grad(loss, u)[0]
    np.testing.assert_allclose(slopes, 0.7 * q * (1 - q) * ratio / 3, atol=1e-12)


# --- the experts ----------------------------------------------------------------------------------


def single(experts, k, filters):
    """Expert k as a network of its own, its weights taken out of the groups by position."""
    with initial_weights(9):
        network = DynamicAutoencoder(experts.shape, experts.d, filters=filters)

    def part(tensor, axis=0):
        return tensor.detach().chunk(experts.k, axis)[k]

    def copy(wide, narrow):
        for (name, value), (other, small) in zip(
            wide.state_dict().items(), narrow.state_dict().items(), strict=True
        ):
            assert name == other
            small.copy_(value if value.ndim == 0 else part(value))

    copy(experts.body, nn.Sequential(*network.body[:-1]))
    copy(experts.back, nn.Sequential(*network.decoder[2:-1]))
    copy(experts.last, network.decoder[-1])
    weight, bias = part(experts.code.weight)[:, :, 0, 0], part(experts.code.bias)
    network.mean.weight.data, network.log_variance.weight.data = weight.chunk(2)
    network.mean.bias.data, network.log_variance.bias.data = bias.chunk(2)
    network.decoder[0].weight.data = part(experts.start.weight)[:, :, 0, 0]
    network.decoder[0].bias.data = part(experts.start.bias)
    return network


def built(shape, sizes=(3, 3, 3), **settings):
    with initial_weights(1):
        experts = Experts(shape, sizes, filters=2, **settings)
    for layer in experts.modules():  # so that no two copies agree by chance
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data = 0.5 + torch.rand(layer.weight.shape, generator=source(2))
            layer.bias.data = torch.randn(layer.bias.shape, generator=source(3))
    return experts


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_experts_are_single_autoencoders(shape, own, training):
    experts = built(shape).train(training)
    x = torch.rand(6, 3, *shape, generator=source())
    x = x if own else x[:, 0]
    noise = torch.randn(6, 3, 3, generator=source(4))
    alone = [single(experts, k, 2).train(training) for k in range(3)]
    mean, log_variance = experts.encode(x)
    painted = experts.decode(noise)
    for k, network in enumerate(alone):
        m, v = network.encode(x[:, k] if own else x)
        torch.testing.assert_close(mean[:, k], m, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(log_variance[:, k], v, atol=1e-5, rtol=1e-4)
        expected = network.decode(noise[:, k])
        torch.testing.assert_close(painted[:, k], expected, atol=1e-5, rtol=1e-4)
        alike = experts.by(k, noise[:, k])
        torch.testing.assert_close(alike, expected.sigmoid(), atol=1e-5, rtol=1e-4)


def test_gradients_do_not_meet():
    experts = built((1, 8, 8))
    x = torch.rand(5, 1, 8, 8, generator=source())
    experts.grey(experts.encode(x)[0])[:, 1].sum().backward()
    for name, value in experts.named_parameters():
        for k, part in enumerate(value.grad.chunk(3)):
            assert (k == 1) == bool(part.any()), (name, k)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_errors_are_minus_the_evidence_bound(likelihood):
    experts = built((1, 5, 7), likelihood=likelihood).eval()
    x = torch.rand(4, 1, 5, 7, generator=source())
    noise = torch.randn(4, 3, 3, generator=source(4))
    found = expert_errors(experts, x, noise)
    for k in range(3):
        network = single(experts, k, 2).eval()
        mean, log_variance = network.encode(x)
        code = Independent(Normal(mean, (log_variance / 2).exp()), 1)
        painted = network.decode(mean + (log_variance / 2).exp() * noise[:, k])
        if likelihood == "bernoulli":  # its density at grey values, as cross-entropies use it
            pixels = Bernoulli(logits=painted, validate_args=False)
            log_density = pixels.log_prob(x).flatten(1).sum(1)
        else:
            log_density = Normal(painted, 1.0).log_prob(x).flatten(1).sum(1)
            log_density = log_density + 35 * math.log(2 * math.pi) / 2
        prior = Independent(Normal(torch.zeros(4, 3), torch.ones(4, 3)), 1)
        bound = log_density - kl_divergence(code, prior)
        torch.testing.assert_close(found[:, k], -bound / 35, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_vote_is_bayes_rule_with_equal_shares(likelihood):
    """Of each image by each expert, one at a time, the bound from torch's distributions."""
    with initial_weights(0):
        experts = Experts((2, 8, 8), [3, 1, 2], filters=2, likelihood=likelihood).eval()
    x = torch.rand(9, 2, 8, 8, generator=source())
    means, log_variances = experts.encode(x)
    painted = experts.decode(means)
    bounds = torch.empty(9, 3)
    for i, k in itertools.product(range(9), range(3)):
        of_pixel = (Bernoulli(logits=painted[i, k], validate_args=False)
                    if likelihood == "bernoulli" else Normal(painted[i, k], 1.0))  # fmt: skip
        code = Normal(means[i, k], (log_variances[i, k] / 2).exp())
        prior = Normal(torch.zeros(3), torch.ones(3))
        bounds[i, k] = of_pixel.log_prob(x[i]).sum() - kl_divergence(code, prior).sum()
    vote = Vote(experts)(x)
    torch.testing.assert_close(vote.softmax(1), bounds.softmax(1), rtol=1e-3, atol=1e-5)
    assert torch.equal(vote.argmax(1), bounds.argmax(1))
    mixture = Mixture(Vote(experts), experts)
    expected = (bounds.softmax(1)[:, :, None, None, None] * experts.grey(means)).sum(1)
    torch.testing.assert_close(mixture.reconstruct(x), expected, rtol=1e-3, atol=1e-4)


def test_experts_of_unequal_size():
    experts = built((1, 8, 8), (1, 4, 2)).eval()
    assert experts.d == 4
    x = torch.rand(5, 1, 8, 8, generator=source())
    mean, log_variance = experts.encode(x)
    beyond = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 1]]).bool()
    assert not mean[:, beyond].any() and not log_variance[:, beyond].any()
    assert mean[:, ~beyond].all()
    z = torch.randn(5, 3, 4, generator=source(4))
    other = torch.where(beyond, 7.0, z)
    assert torch.equal(experts.decode(z), experts.decode(other))
    errors = expert_errors(experts, x, z)
    assert torch.equal(errors, expert_errors(experts, x, other))


def test_s32_two_answers_of_a_mixture():
    """Probabilities, and paintings weighted by them."""
    experts = built((3, 10, 3)).eval()
    with initial_weights(5):
        manager = Manager((3, 10, 3), 3, filters=2).eval()
    x = torch.rand(4, 3, 10, 3, generator=source())
    mixture = Mixture(manager, experts)
    p = manager(x).softmax(1)
    torch.testing.assert_close(mixture(x).exp(), p)
    expected = torch.zeros_like(x)
    for k in range(3):
        network = single(experts, k, 2).eval()
        expected += p[:, k, None, None, None] * network.decode(network(x)).sigmoid()
    torch.testing.assert_close(mixture.reconstruct(x), expected, atol=1e-5, rtol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="positive"):
        Experts((1, 8, 8), [])
    with pytest.raises(ValueError, match="positive"):
        Experts((1, 8, 8), [3, 0])
    with pytest.raises(ValueError, match="likelihood"):
        Experts((1, 8, 8), [3], likelihood="poisson")
    with pytest.raises(ValueError, match="need images"):
        built((1, 8, 8)).encode(torch.rand(2, 1, 8, 9))
    with pytest.raises(ValueError, match="need images"):
        Manager((1, 8, 8), 3, 2)(torch.rand(2, 3, 8, 8))
