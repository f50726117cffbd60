"""The three trainings: a bare loop, what each expert sees, an expert without images."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from latentspace.estimators import initial_weights
from latentspace.expert_training import train_experts, train_manager, train_mixture, train_voters
from latentspace.experts import Experts, Manager, Mixture
from latentspace.training.checkpoints import seed_of

SHAPE = (1, 8, 8)


def halves(n=40):
    """Images bright on the left or on the right, and which."""
    y = np.arange(n) % 2
    x = 0.1 * torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    x[y == 0, :, :, :4] = 0.9
    x[y == 1, :, :, 4:] = 0.9
    return x, y


def experts(k=2, d=2, **settings):
    with initial_weights(0):
        return Experts(SHAPE, [d] * k, filters=2, **settings)


def fresh(k=2):
    with initial_weights(0):
        return Mixture(Manager(SHAPE, k, filters=2), Experts(SHAPE, [2] * k, filters=2))


def test_a_manager_learns_its_labels():
    x, y = halves()
    targets = torch.tensor([[0.8, 0.2], [0.2, 0.8]])[torch.tensor(y)]
    settings = {"views": None, "filters": 2, "epochs": 40, "batch_size": 10, "lr": 1e-2}
    manager, history = train_manager(x, targets, **settings)
    p = manager(x).softmax(1)
    assert (p.argmax(1).numpy() == y).all()
    assert (p - targets).abs().mean() < 0.05
    assert history["loss"].iloc[-1] < 0.05 < history["loss"].iloc[0]
    again, _ = train_manager(x, targets, **settings)
    assert torch.equal(again(x), manager(x))


def test_the_first_phase_by_a_bare_loop():
    """Two epochs written out, with the loss from its definition."""
    x, _ = halves(23)
    mixture, bare = fresh(), fresh()
    history = train_mixture(
        mixture, x, alpha=0.7, beta=0.3, views=None, epochs=2, batch_size=10, manager_lr=0.01,
        lr=0.02, seed=3, device="cpu",
    )  # fmt: skip
    assert history.columns.tolist() == [
        "epoch", "loss", "error", "sample", "batch", "share_0", "share_1",
    ]  # fmt: skip
    manager, networks = bare.manager, bare.experts
    for part in (manager, networks):
        part.to(memory_format=torch.channels_last).train()
    steps = [torch.optim.Adam(manager.parameters(), 0.01),
             torch.optim.Adam(networks.parameters(), 0.02)]  # fmt: skip
    for epoch in (1, 2):
        shuffle = torch.Generator().manual_seed(seed_of(3, epoch, "order"))
        order = torch.randperm(23, generator=shuffle)
        noises = torch.Generator().manual_seed(seed_of(3, epoch, "step", 0))
        total = 0.0
        for rows in order.split(10):
            images = x[rows]
            p = manager(images).softmax(1)
            mean, log_variance = networks.encode(images)
            noise = torch.randn(mean.shape, generator=noises)
            logits = networks.decode(mean + (log_variance / 2).exp() * noise)
            wanted = images[:, None].expand(-1, 2, -1, -1, -1)
            nats = -(wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log())
            kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum(2) / 2
            d = (nats.sum((2, 3, 4)) + kl) / 64
            entropy = -(p * p.log()).sum(1).mean()
            balance = -(p.mean(0) * p.mean(0).log()).sum()
            loss = (p * d).sum(1).mean() + 0.7 * entropy - 0.3 * balance
            for step in steps:
                step.zero_grad()
            loss.backward()
            for step in steps:
                step.step()
            total += loss.item() * len(rows)
        assert history["loss"][epoch - 1] == pytest.approx(total / 23, rel=1e-4)
    bare.eval()
    torch.testing.assert_close(mixture(x), bare(x), atol=2e-3, rtol=2e-3)


def test_each_expert_sees_its_own_images_only():
    x, y = halves()
    model = experts()
    history = train_experts(model, x, y, views=None, epochs=60, batch_size=20, lr=1e-2)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    painted = model.grey(torch.zeros(1, 2, 2))[0]
    for k in (0, 1):
        bright = painted[k, 0, :, :4].mean() - painted[k, 0, :, 4:].mean()
        assert (bright > 0.4) if k == 0 else (bright < -0.4)


def test_an_expert_without_images_keeps_its_weights():
    x, y = halves()
    model = experts(4)
    before = {name: value.clone() for name, value in model.named_parameters()}
    history = train_experts(model, x, np.where(y == 0, 1, 3), views=None, epochs=2)
    assert np.isfinite(history["loss"]).all()
    for name, value in model.named_parameters():
        for k, (old, new) in enumerate(zip(before[name].chunk(4), value.chunk(4), strict=True)):
            assert torch.equal(old, new) == (k in (0, 2)), (name, k)


def by_least_error(model, x):
    """The vote written out, with the bound from torch's distributions."""
    with torch.no_grad():
        means, log_variances = model.encode(x)
        logits = model.decode(means)
    pixels = Bernoulli(logits=logits, validate_args=False).log_prob(x[:, None]).sum((2, 3, 4))
    code = kl_divergence(Normal(means, (log_variances / 2).exp()), Normal(0.0, 1.0)).sum(2)
    return (pixels - code).argmax(1).numpy()


def test_rounds_of_the_vote_by_hand():
    x, y = halves()
    x, y = torch.cat([x, x[:3].mean(0, keepdim=True)]), np.append(y, 0)  # one that is in between
    settings = {"views": None, "batch_size": 10, "lr": 5e-3}
    model, bare, labels = experts(), experts(), y
    rounds = {"rounds": 3, "epochs": 4, "round_epochs": 2, "seed": 5}
    votes, history = train_voters(model, x, y, **rounds, **settings)
    assert len(votes) == 3 and len(history) == 8
    for turn, epochs in enumerate((4, 2, 2)):
        train_experts(bare, x, labels, epochs=epochs, seed=5 + turn, **settings)
        labels = by_least_error(bare, x)
        np.testing.assert_array_equal(votes[turn], labels)


def test_a_vote_mends_labels():
    x, y = halves(60)
    wrong = y.copy()
    wrong[:6] = 1 - y[:6]
    settings = {"views": None, "epochs": 40, "round_epochs": 10, "batch_size": 10, "lr": 5e-3}
    votes, _ = train_voters(experts(), x, wrong, rounds=2, **settings)
    np.testing.assert_array_equal(votes[-1], y)


def test_an_expert_that_loses_all_images_in_a_round():
    """It had half of them in the first; in the second it stays as it was, and nothing is NaN."""
    x, y = halves()
    once, twice = experts(), experts()
    train_voters(once, x, y, rounds=1, epochs=1, views=None)
    votes, history = train_voters(twice, x, y, rounds=2, epochs=1, round_epochs=3, views=None)
    assert (votes[0] == 0).all() and (votes[1] == 0).all()
    assert len(history) == 4 and np.isfinite(history["loss"]).all()
    for old, new in zip(once.parameters(), twice.parameters(), strict=True):
        assert torch.equal(old.chunk(2)[1], new.chunk(2)[1])
        assert not torch.equal(old.chunk(2)[0], new.chunk(2)[0])


def test_an_expert_of_one_image():
    x, y = halves()
    labels = np.where(np.arange(40) == 7, 1, 0)
    model = experts()
    train_experts(model, x, labels, views=None, epochs=3)
    assert torch.isfinite(model.grey(torch.zeros(1, 2, 2))).all()


def test_constant_images_and_a_gaussian_likelihood():
    x = torch.full((12, *SHAPE), 0.25)
    mixture = Mixture(fresh().manager, experts(likelihood="gaussian"))
    history = train_mixture(mixture, x, epochs=2, batch_size=5, views=None)
    assert np.isfinite(history).all(axis=None)
    assert torch.isfinite(mixture.reconstruct(x)).all()


def test_callbacks_see_the_mixture():
    x, _ = halves(20)
    seen = []
    train_mixture(fresh(), x, epochs=3, batch_size=20, views=None,
                  callback=lambda epoch, model: seen.append((epoch, model(x).shape)))  # fmt: skip
    assert seen == [(epoch, (20, 2)) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("labels", [[0, 1], [0] * 39 + [2], [-1] * 40, [0.5] * 40])
def test_labels_of_no_expert(labels):
    x, _ = halves()
    with pytest.raises(ValueError, match="label"):
        train_experts(experts(), x, np.array(labels), epochs=1)


def test_evaluation_mode_afterwards():
    x, y = halves()
    mixture = fresh()
    train_mixture(mixture, x, epochs=1, views=None)
    train_experts(mixture.experts, x, y, epochs=1, views=None)
    assert not any(part.training for part in mixture.modules() if isinstance(part, nn.BatchNorm2d))
