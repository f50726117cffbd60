"""The task of known routing: its labels, its gates, and seeds that are trained side by side."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from latentspace import contexts
from latentspace.contexts import ConstantGates, GatedDense, IdealGates, LearnedGates, draw_task
from latentspace.routing import CrossConnection

DIGITS = load_digits()
IMAGES, LABELS = DIGITS.images / 16, DIGITS.target


def apart(seeds):
    return lambda router, m, k, w: ConstantGates(torch.eye(2) if m > 1 else torch.ones(1, 2), seeds)


def learned(seeds, **how):
    return lambda router, m, k, w: LearnedGates(m, k, w, seeds, **how)


def test_contexts_change_images_and_labels():
    train, test = draw_task(IMAGES, LABELS, [0, 1], 100, 40, contexts.inverted)
    assert train.x.shape == (100, 2, 64) and test.x.shape == (80, 2, 64)
    for s in range(2):
        # Each test image comes in both contexts, as its own negative and under the next name.
        torch.testing.assert_close(test.x[:40, s], -test.x[40:, s])
        assert torch.equal((test.y[:40, s] + 1) % 10, test.y[40:, s])
        assert test.context[:, s].tolist() == [0] * 40 + [1] * 40
        assert set(train.context[:, s].tolist()) == {0, 1}
    assert not torch.equal(train.x[:, 0], train.x[:, 1])
    # No image is in both parts.
    known = {tuple(v.abs().round(decimals=4).tolist()) for v in train.x[:, 0]}
    unseen = {tuple(v.abs().round(decimals=4).tolist()) for v in test.x[:40, 0]}
    assert len(known & unseen) <= 1  # equal digits exist


def test_permuted_and_rotated():
    context = np.repeat([0, 1], 5)
    images = np.tile(IMAGES[:5], (2, 1, 1))
    mixed = contexts.permuted(images, context, 3)
    np.testing.assert_array_equal(mixed[:5], images[:5])
    flat = [part[5:].reshape(5, -1) for part in (mixed, images)]
    np.testing.assert_allclose(*np.sort(flat, axis=2))
    np.testing.assert_array_equal(mixed, contexts.permuted(images, context, 3))
    turned = contexts.rotated(90)(images, context, 0)
    np.testing.assert_allclose(turned[:5], images[:5], atol=1e-6)
    np.testing.assert_allclose(turned[5:], np.rot90(images[5:], axes=(1, 2)), atol=1e-5)


def test_striped():
    train, test = contexts.striped(IMAGES, LABELS, 0, 1000, 500)
    assert train.x.shape == (1000, 8, 8) and test.x.shape == (500, 8, 8)
    for part in (train, test):
        np.testing.assert_array_equal(part.y, (part.digit + part.negative + 2 * part.standing) % 10)
        # Undo the negative: the stripes' two lines of pixels are the least bright there can be.
        upright = np.where(part.negative[:, None, None] == 1, 1 - part.x, part.x)
        for standing in (0, 1):
            mine = upright[part.standing == standing]
            rows = mine.min(0)[:, 0] if standing == 0 else mine.min(0)[0]
            np.testing.assert_allclose(rows, [0, 0, 0.5, 0.5] * 2)
    mean = train.x.mean((1, 2))
    correlation = lambda a: abs(np.corrcoef(mean, a)[0, 1])  # noqa: E731
    assert correlation(train.negative) > 0.8 and correlation(train.standing) < 0.1
    assert not set(map(bytes, train.x)) & set(map(bytes, test.x))
    other = contexts.striped(IMAGES, LABELS, 1, 1000, 500)[0]
    assert not np.array_equal(other.x, train.x)


def test_too_few_images():
    with pytest.raises(ValueError, match="cannot give"):
        contexts.striped(IMAGES[:50], LABELS[:50], 0, 40, 20)
    with pytest.raises(ValueError, match="cannot give"):
        draw_task(IMAGES[:50], LABELS[:50], [0], 40, 20, contexts.inverted)


def test_gates_of_each_kind():
    x, context = torch.randn(7, 3, 2, 5), torch.randint(2, (7, 3))
    ideal = IdealGates(2, 2)(x, context)
    for n in range(7):
        for s in range(3):
            for i in range(2):
                assert ideal[n, s, i].tolist() == [1 - context[n, s], context[n, s]]
    torch.manual_seed(0)
    plain = LearnedGates(2, 2, 5, 3)
    torch.manual_seed(0)
    twice = LearnedGates(2, 2, 5, 3, scale=2.0)
    torch.testing.assert_close(2 * plain(x, context), twice(x, context))
    torch.testing.assert_close(plain(x, context).sum(-1), torch.ones(7, 3, 2))
    own = LearnedGates(2, 2, 5, 3, own=0.9)(torch.zeros(1, 3, 2, 5), context[:1])
    torch.testing.assert_close(own[0, 1], torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


def test_a_seed_is_a_cross_connection_of_its_own():
    """One seed of the batched network, layer by layer with the library's router."""
    torch.manual_seed(1)
    net = GatedDense([6, 4, 3], learned(2), 2)
    x, context = torch.randn(5, 2, 6), torch.zeros(5, 2, dtype=torch.long)
    for s in range(2):
        paths = x[:, s, None]
        for gates, layer in zip(net.gates, net.layers, strict=True):
            m, scores = paths.shape[1], gates.network.scores
            router = CrossConnection(m, 2, paths.shape[2])
            part = slice(m * s, m * s + m)
            for name, value in scores.named_parameters():
                getattr(router.gates.scores, name).data = value.data[part]
            paths, part = router(paths), slice(2 * s, 2 * s + 2)
            paths = torch.einsum("nkc,kcf->nkf", paths, layer.weight[part]) + layer.bias[part, 0]
            paths = paths.relu() if layer.relu else paths
        torch.testing.assert_close(net(x, context)[:, s], paths.mean(1))


def test_seeds_are_trained_as_if_alone():
    """A second seed beside it changes nothing in the first one's steps."""
    tasks = draw_task(IMAGES, LABELS, [0, 1], 60, 20, contexts.inverted)[0]
    torch.manual_seed(2)
    both = GatedDense([64, 5, 10], learned(2), 2)
    alone = GatedDense([64, 5, 10], learned(1), 1)
    for (name, value), (_, source) in zip(
        alone.named_parameters(), both.named_parameters(), strict=True
    ):
        assert len(source) == 2 * len(value), name
        value.data = source.data[: len(value)].clone()
    first = contexts.Task(*(part[:, :1] for part in tasks))
    contexts.train_together(both, tasks, 1, batch_size=60, lr=0.1)
    contexts.train_together(alone, first, 1, batch_size=60, lr=0.1)
    for a, b in zip(alone.parameters(), both.parameters(), strict=True):
        torch.testing.assert_close(a, b[: len(a)], atol=1e-5, rtol=1e-4)


def test_ideal_gates_keep_the_contexts_apart():
    torch.manual_seed(3)

    def gates(r, m, k, w):
        return IdealGates(m, k) if r == 0 else apart(1)(r, m, k, w)

    net = GatedDense([6, 4, 3], gates, 1)
    x = torch.randn(4, 1, 6)
    context = torch.tensor([0, 0, 1, 1])[:, None]
    before = net(x, context)
    with torch.no_grad():
        net.layers[0].weight[0] += 1  # the path of context 0
    after = net(x, context)
    torch.testing.assert_close(after[2:], before[2:])
    assert not torch.allclose(after[:2], before[:2])
    task = contexts.Task(x, torch.zeros(4, 1, dtype=torch.long), context)
    np.testing.assert_allclose(contexts.separation(net, task), [[1], [0]])


def test_joined_inputs_are_a_cross_prediction():
    """With equal weights for both inputs, joining is summing."""
    torch.manual_seed(4)
    summed, joined = (GatedDense([6, 4, 3], learned(1), 1, joined=j) for j in (False, True))
    joined.gates.load_state_dict(summed.gates.state_dict())
    for a, b in zip(summed.layers, joined.layers, strict=True):
        repeats = b.weight.shape[1] // a.weight.shape[1]
        b.weight.data, b.bias.data = a.weight.data.repeat(1, repeats, 1), a.bias.data
    x, context = torch.randn(5, 1, 6), torch.zeros(5, 1, dtype=torch.long)
    torch.testing.assert_close(summed(x, context), joined(x, context))


def test_networks_of_equal_widths_share_their_layers():
    nets = []
    for gates in (learned(2), apart(2)):
        torch.manual_seed(5)
        nets.append(GatedDense([6, 4, 3], gates, 2))
    for a, b in zip(nets[0].layers, nets[1].layers, strict=True):
        assert torch.equal(a.weight, b.weight)
    frozen = [p.requires_grad for p in nets[1].gates.parameters()]
    assert frozen == [False, False]


def test_it_learns():
    tasks = draw_task(IMAGES, LABELS, [0, 1], 1200, 200, contexts.inverted)
    torch.manual_seed(6)
    net = contexts.train_together(GatedDense([64, 16, 10], learned(2), 2), tasks[0], 8)
    assert (contexts.accuracy(net, tasks[1]) > 0.7).all()


def test_the_rate_is_chosen_by_the_training_loss():
    task = draw_task(IMAGES, LABELS, [0, 1], 200, 20, contexts.inverted)[0]

    def build():
        torch.manual_seed(7)
        return GatedDense([64, 8, 10], apart(2), 2)

    net, rate = contexts.train_at_best_rate(build, task, 2, [1e-6, 0.05, 1e4])
    assert rate == 0.05
    again = contexts.train_together(build(), task, 2, lr=0.05)
    for a, b in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_rate_that_breaks_the_training_is_no_choice():
    task = draw_task(IMAGES, LABELS, [0, 1], 200, 20, contexts.inverted)[0]
    with pytest.raises(ValueError, match="finite loss"):
        contexts.train_at_best_rate(lambda: GatedDense([64, 8, 10], apart(2), 2), task, 2, [1e30])


def test_a_part_of_a_batch_is_left_out_and_each_epoch_is_told():
    task = draw_task(IMAGES, LABELS, [0, 1], 50, 10, contexts.inverted)[0]
    net, epochs, sizes = GatedDense([64, 8, 10], apart(2), 2), [], []
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    contexts.train_together(net, task, 2, batch_size=20, callback=epochs.append)
    assert epochs == [1, 2] and sizes == [20] * 4  # 50 = 20 + 20 + 10, twice
    del sizes[:]
    contexts.train_together(net, task, 1, batch_size=80)  # unless there is no other
    assert sizes == [50]


def test_told_adds_the_context_and_changes_no_pixel():
    task = draw_task(IMAGES, LABELS, [0, 1], 30, 5, contexts.inverted)[0]
    more = contexts.told(task, 3)
    assert torch.equal(more.x[..., :64], task.x)
    assert torch.equal(more.x[..., 64:].mean(-1), 4.0 * task.context - 2)


def test_thinned_keeps_a_share_of_context_1():
    train, _ = draw_task(IMAGES, LABELS, [0, 1, 2], 400, 40, contexts.inverted)
    few = contexts.thinned(train, 0.1)
    assert len({len(t) for t in few}) == 1
    for s in range(3):
        share = few.context[:, s].double().mean().item()
        assert share == pytest.approx(0.1, abs=0.005)
        rows, kept = (
            {(*x.tolist(), int(y)) for x, y, _ in zip(*(t[:, s] for t in part), strict=True)}
            for part in (train, few)
        )
        assert kept <= rows
    for share in (0, 0.6):
        with pytest.raises(ValueError, match="share"):
            contexts.thinned(train, share)


def test_a_penalty_counts_in_each_seed_as_if_it_were_alone():
    """Ten steps by hand for one of two seeds, with the scores of that seed alone."""
    train, _ = draw_task(IMAGES, LABELS, [0, 1], 100, 40, contexts.inverted)

    def penalty(scores):
        return 0.3 * torch.stack([a.square().mean() for a in scores]).mean()

    def net():
        torch.manual_seed(0)
        return GatedDense([64, 5, 10], learned(2), 2)

    together = contexts.train_together(net(), train, 1, batch_size=10, lr=0.05, penalty=penalty)
    assert not together.training
    alone, draw = net(), torch.Generator().manual_seed(0)
    # The first of one epochs has a tenth of the rate already.
    optimizer = torch.optim.SGD(alone.parameters(), 0.005, 0.9, weight_decay=1e-4)
    column = torch.arange(2)
    for rows in torch.rand(train.y.shape, generator=draw).argsort(0).split(10):
        logits = alone(train.x[rows, column], train.context[rows, column])
        scores = [gate.network.scores(x) for gate, x in _inputs(alone, train, rows, column)]
        loss = torch.nn.functional.cross_entropy(logits[:, 0], train.y[rows[:, 0], 0])
        mine = [a.unflatten(1, (2, -1))[:, 0].square().mean() for a in scores]
        loss = loss + 0.3 * torch.stack(mine).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in alone.named_parameters():
        half = len(value) // 2
        torch.testing.assert_close(
            dict(together.named_parameters())[name][:half], value[:half], rtol=1e-4, atol=1e-5
        )


def _inputs(net, task, rows, column):
    """Each router's gates beside what they look at, (n, s m, c)."""
    x = task.x[rows, column][:, :, None]
    for gates, layer in zip(net.gates, net.layers, strict=True):
        yield gates, x.flatten(1, 2)
        y = torch.einsum("nsmk,nsmc->nskc", gates(x, None), x)
        x = layer(y.flatten(1, 2)).unflatten(1, (net.seeds, -1))
