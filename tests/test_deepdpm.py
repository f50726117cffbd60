"""DeepDPM's networks against plain loops, the estimator's contract; erratum L8."""

import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from scipy.special import rel_entr
from scipy.stats import multivariate_normal, ortho_group
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from latentspace.deepdpm import DeepDPM
from latentspace.dpm_networks import (
    ClusteringNet,
    SubclusteringNets,
    assignment_loss,
    draw_members,
    half_means,
    own_halves,
    reindex,
    subcluster_loss,
)

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
from five_blobs import X, Y

SHORT = {"epochs": 8, "move_every": 2, "settle": 2, "freeze": 1, "random_state": 0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


@parametrize_with_checks([DeepDPM(**SHORT)])
def test_scikit_learn(estimator, check):
    check(estimator)


# --- losses ---


def test_L8_the_papers_divergence_is_not_its_codes():
    """KL(r || r^E) is printed, KL(r^E || r) is coded: other values, and other minima."""
    logits, log_target = 3 * normal(6, 3), normal(6, 3, seed=1).log_softmax(1)
    r, target = logits.softmax(1).numpy(), log_target.exp().numpy()
    printed = assignment_loss(logits.log_softmax(1), log_target, "network")
    coded = assignment_loss(logits.log_softmax(1), log_target, "target")
    assert float(printed) == pytest.approx(rel_entr(r, target).sum(1).mean(), rel=1e-5)
    assert float(coded) == pytest.approx(rel_entr(target, r).sum(1).mean(), rel=1e-5)
    assert abs(float(printed - coded)) > 0.05

    # One unit of assignment for two opposite targets: the code's minimum is their mean, the
    # paper's is their normalised geometric mean.
    log_targets = torch.tensor([[0.98, 0.01, 0.01], [0.30, 0.10, 0.60]]).log()
    minima = {}
    for direction in ("network", "target"):
        shared = torch.zeros(3, requires_grad=True)
        optimizer = torch.optim.LBFGS([shared], max_iter=100)

        def closure(shared=shared, optimizer=optimizer, direction=direction):
            optimizer.zero_grad()
            loss = assignment_loss(shared.log_softmax(0).expand(2, 3), log_targets, direction)
            loss.backward()
            return loss

        optimizer.step(closure)
        minima[direction] = shared.detach().softmax(0)
    torch.testing.assert_close(minima["target"], log_targets.exp().mean(0), rtol=0, atol=1e-3)
    geometric = log_targets.mean(0).softmax(0)
    torch.testing.assert_close(minima["network"], geometric, rtol=0, atol=1e-3)


@pytest.mark.parametrize("direction", ["network", "target"])
def test_assignment_loss_where_probabilities_vanish(direction):
    log_r = torch.tensor([[0.0, -math.inf], [-200.0, 0.0]], requires_grad=True)
    loss = assignment_loss(log_r, torch.tensor([[-math.inf, 0.0], [-300.0, 0.0]]), direction)
    (gradient,) = torch.autograd.grad(loss, log_r)
    assert loss.isfinite() and gradient.isfinite().all()
    same = assignment_loss(log_r, log_r.detach(), direction)
    assert same.item() == 0
    with pytest.raises(ValueError, match="direction"):
        assignment_loss(log_r, log_r, "both")


def test_subcluster_loss_is_the_loops():
    x, r, means = normal(3, 4, 2), normal(3, 4, 2, seed=1).softmax(-1), normal(3, 2, 2, seed=2)
    total = sum(
        r[k, i, j] * ((x[k, i] - means[k, j]) ** 2).sum()
        for k in range(3)
        for i in range(4)
        for j in range(2)
    )
    assert float(subcluster_loss(x, r, means)) == pytest.approx(float(total) / 12, rel=1e-5)


# --- networks ---


def one_by_one(networks, k, points):
    """Network k of the batch, by hand."""
    hidden = torch.relu(points @ networks.w1[k] + networks.b1[k])
    return torch.softmax(hidden @ networks.w2[k] + networks.b2[k], -1)


def subnetworks(k=3, d=2, hidden=5):
    networks = SubclusteringNets(k, d, hidden, generator())
    networks.centre.copy_(normal(k, d, seed=3))
    networks.whiten.copy_(normal(k, d, d, seed=4))
    return networks


def test_points_are_located_in_the_frame_of_their_cluster():
    networks, x = subnetworks(), normal(3, 7, 2)
    z = networks.locate(x)
    for k in range(3):
        for i in range(7):
            expected = networks.whiten[k] @ (x[k, i] - networks.centre[k])
            torch.testing.assert_close(z[k, i], expected)


def test_initial_weights_are_linears_and_the_generators():
    """Uniform within 1 / sqrt(inputs), from the generator and nothing else."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b = (ClusteringNet(9, 40, 400, generator(seed)) for seed in (1, 1))
    SubclusteringNets(3, 9, 50, generator())
    assert torch.equal(torch.get_rng_state(), state)
    for ours, again in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(ours, again)
    for layer in (a.hidden, a.output):
        theirs = torch.nn.Linear(layer.in_features, layer.out_features)
        for ours, other in zip(layer.parameters(), theirs.parameters(), strict=True):
            bound = layer.in_features**-0.5
            assert ours.shape == other.shape and 0.9 * bound < ours.detach().abs().max() <= bound
            assert float(ours.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)


def test_batched_subnetworks_are_separate_networks():
    networks, x = subnetworks(), normal(3, 7, 2)
    together = networks(x)
    for k in range(3):
        torch.testing.assert_close(together[k], one_by_one(networks, k, x[k]))
    together[1].square().sum().backward()  # a loss of the second alone moves the second alone
    moved = [bool(networks.w1.grad[k].abs().sum()) for k in range(3)]
    assert moved == [False, True, False]


def test_each_point_is_halved_by_its_own_clusters_network():
    networks, x = subnetworks(), normal(5000, 2)
    labels = torch.from_numpy(np.random.default_rng(0).choice(3, 5000, p=[0.9, 0.07, 0.03]))
    halves = own_halves(networks, x, labels)
    for k in range(3):
        own = labels == k
        torch.testing.assert_close(halves[own], one_by_one(networks, k, x[own]).detach())
    means = half_means(x, labels, halves, 3)
    for k in range(3):
        for j in range(2):
            own = labels == k
            expected = np.average(x[own].numpy(), axis=0, weights=halves[own, j].numpy())
            np.testing.assert_allclose(means[k, j], expected, atol=1e-4)


def test_members_are_drawn_from_their_cluster_evenly():
    labels = torch.tensor([2, 0, 1, 2, 2, 1])
    drawn = draw_members(labels, 3, 3000, generator())
    for k in range(3):
        assert (labels[drawn[k]] == k).all()
        share = np.bincount(drawn[k], minlength=6)[labels.numpy() == k] / 3000
        np.testing.assert_allclose(share, 1 / len(share), atol=0.05)


def test_surgery_copies_units_and_their_momentum():
    network, networks, x = ClusteringNet(2, 3, 4, generator()), subnetworks(), normal(6, 2)
    optimizer = torch.optim.Adam([*network.parameters(), *networks.parameters()], lr=0.1)
    (network(x)[:, 1].sum() + networks(x.expand(3, 6, 2))[2, :, 0].sum()).backward()
    optimizer.step()
    before, moments = network(x), optimizer.state[network.output.weight]["exp_avg"].clone()
    old = {name: p.clone() for name, p in networks.unit_parameters().items()}
    index, fresh = torch.tensor([0, 2, 1, 2]), torch.tensor([False, True, False, True])
    reindex(network, optimizer, index)
    reindex(networks, optimizer, index, fresh)

    after = network(x).exp()
    torch.testing.assert_close(after[:, 1], after[:, 3])
    ratio = before.exp()[:, 2] / before.exp()[:, 0]
    torch.testing.assert_close(after[:, 1] / after[:, 0], ratio)
    state = optimizer.state[network.output.weight]
    torch.testing.assert_close(state["exp_avg"], moments[index])
    torch.testing.assert_close(networks.w1.detach(), old["w1"][index].detach())
    sub = optimizer.state[networks.w1]["exp_avg"]
    assert sub[1].abs().sum() == sub[3].abs().sum() == 0
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in [*network.parameters(), *networks.parameters()]
    }
    weight = networks.w1.detach().clone()
    networks.reset(fresh, generator())
    changed = [(networks.w1[k] != weight[k]).any().item() for k in range(4)]
    assert changed == fresh.tolist()
    (network(x).exp()[:, 3].sum() + networks(x.expand(4, 6, 2))[3, :, 0].sum()).backward()
    optimizer.step()  # the optimiser goes on with the new shapes


# --- the estimator ---


@pytest.fixture(scope="module")
def fitted():
    return DeepDPM(epochs=40, random_state=0).fit(X)


def test_finds_five_from_one_and_from_many(fitted):
    many = DeepDPM(20, epochs=30, random_state=1).fit(X)
    for model in (fitted, many):
        assert model.n_clusters_ == 5
        assert adjusted_rand_score(Y, model.labels_) > 0.97
        assert adjusted_rand_score(Y, model.mixture_labels_) > 0.97
        assert model.history_.n_clusters.iloc[-1] == 5
        assert np.isfinite(model.history_).all(axis=None)
    history, events = fitted.history_, fitted.events_
    assert history.splits.sum() == (events.kind == "split").sum() >= 3
    assert set(events.epoch % fitted.move_every) == {0}
    assert events.epoch.max() <= fitted.epochs - fitted.settle
    assert len(many.events_) and many.events_.before.iloc[0] == 20
    for model in (fitted, many):
        assert (model.events_.before[1:].values == model.events_.after[:-1].values).all()


def test_answers_are_the_networks(fitted):
    """The network sees whitened data: undo the map by its effect on the unit vectors."""
    z = fitted._coordinates.of(X)
    np.testing.assert_allclose(np.cov(z.T, ddof=0), np.eye(2), atol=1e-9)
    with torch.no_grad():
        r = fitted.network_(torch.tensor(z).float()).exp().numpy()
    np.testing.assert_allclose(fitted.predict_proba(X), r, atol=1e-5)
    np.testing.assert_array_equal(fitted.predict(X), fitted.labels_)
    assert fitted.predict_proba(X).shape == (len(X), len(fitted.weights_))


def test_assigned_by_the_mixture_itself():
    model = DeepDPM(assign_by="mixture", epochs=30, settle=4, random_state=0).fit(X)
    assert adjusted_rand_score(Y, model.labels_) > 0.97
    np.testing.assert_array_equal(model.labels_, model.mixture_labels_)
    parameters = zip(model.weights_, model.means_, model.covariances_, strict=True)
    joint = np.stack([w * multivariate_normal(m, c).pdf(X) for w, m, c in parameters], 1)
    np.testing.assert_allclose(
        model.predict_proba(X), joint / joint.sum(1, keepdims=True), atol=1e-8
    )


def test_mixture_labels_are_the_published_mixtures(fitted):
    parameters = zip(fitted.weights_, fitted.means_, fitted.covariances_, strict=True)
    log_joint = [math.log(w) + multivariate_normal(m, c).logpdf(X) for w, m, c in parameters]
    np.testing.assert_array_equal(np.argmax(log_joint, 0), fitted.mixture_labels_)


def test_a_seed_repeats_and_pickles():
    a, b = (DeepDPM(3, **SHORT).fit(X) for _ in range(2))
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    again = pickle.loads(pickle.dumps(a))
    np.testing.assert_array_equal(again.predict_proba(X), a.predict_proba(X))


def test_threads_do_not_change_results_nor_the_callers_state():
    models = [DeepDPM(3, **SHORT | {"random_state": seed}) for seed in (0, 1) for _ in range(3)]
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    run = Parallel(n_jobs=3, backend="threading")
    found = run(delayed(lambda m: m.fit(X).predict_proba(X))(model) for model in models)
    assert torch.rand(1) == expected
    for seed in (0, 1):
        alone = DeepDPM(3, **SHORT | {"random_state": seed}).fit(X).predict_proba(X)
        for together in found[3 * seed : 3 * seed + 3]:
            np.testing.assert_array_equal(together, alone)


def test_an_interrupted_fit_leaves_the_estimator_as_it_was():
    def stop(epoch, _):
        if epoch == 5:
            raise KeyboardInterrupt

    model = DeepDPM(3, **SHORT)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, callback=stop)
    with pytest.raises(NotFittedError):
        model.predict(X)
    expected = model.fit(X).predict_proba(X)
    before = vars(model).copy()
    with pytest.raises(KeyboardInterrupt):
        model.fit(np.c_[X * 1e3, X[:, 0] ** 2], callback=stop)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_callback_sees_every_epoch():
    seen = []
    model = DeepDPM(3, **SHORT).fit(X, callback=lambda epoch, s: seen.append(s))
    assert len(seen) == 8 == len(model.history_)
    for snapshot, k in zip(seen, model.history_.n_clusters, strict=True):
        assert len(snapshot.weights) == len(snapshot.means) == len(snapshot.covariances) == k
        assert snapshot.sub_means.shape == (k, 2, 2)
        assert snapshot.labels.max() < k
        assert (snapshot.sub_means.min((0, 1)) >= X.min(0)).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 2.0**-27,
        lambda x: x * [1e6, -1e-3],
        lambda x: x @ ortho_group.rvs(2, random_state=0),
        lambda x: np.c_[x, x, x],
        lambda x: x @ np.random.default_rng(0).normal(size=(2, 10)),
    ],
    ids=["small", "units", "rotation", "copies", "mixtures"],
)
def test_a_linear_map_or_a_redundant_feature_changes_nothing(change):
    a, b = (DeepDPM(4, **SHORT).fit(x) for x in (X, change(X)))
    np.testing.assert_array_equal(a.labels_, b.labels_)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(change(X)), atol=0.01)


@pytest.mark.parametrize("mix", [None, (4, 10)])
def test_neither_units_nor_collinear_features_hide_a_cluster(mix):
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=600)
    x = (rng.normal(size=(600, 4)) + 13 / math.sqrt(2) * np.eye(4)[y]) * [1.0, 1.0, 1.0, 1e3]
    x = np.c_[x, x, x] if mix is None else x @ rng.normal(size=mix)
    model = DeepDPM(epochs=24, settle=4, random_state=0).fit(x)
    assert model.n_clusters_ == 3 and adjusted_rand_score(y, model.labels_) > 0.99


@pytest.mark.parametrize(
    "x",
    [
        np.full((30, 3), 5.0),
        X[:1],
        np.repeat(X[[0, 310, 460]], 20, axis=0),
        np.column_stack([X[::5], np.full(150, 0.1)]),
        np.random.default_rng(0).normal(size=(12, 40)),
        X[:60] * 1e120,
    ],
    ids=["identical", "one point", "duplicates", "constant", "wide", "huge"],
)
@pytest.mark.parametrize("coarsening", [None, 660.0])
def test_degenerate_data(x, coarsening):
    model = DeepDPM(coarsening=coarsening, **SHORT).fit(x)
    for part in (model.weights_, model.means_, model.covariances_, model.predict_proba(x)):
        assert np.isfinite(part).all()
    assert len(np.unique(model.labels_)) == model.n_clusters_ == len(model.weights_)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"assign_by": "both"}, "'assign_by' parameter"),
        ({"freeze": -1}, "'freeze' parameter"),
        ({"settle": 0.5}, "'settle' parameter"),
        ({"direction": "both"}, "'direction' parameter"),
        ({"epochs": 0}, "'epochs' parameter"),
        ({"hidden": 0}, "'hidden' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"sub_batch_size": 0}, "'sub_batch_size' parameter"),
        ({"move_every": 0}, "'move_every' parameter"),
        ({"lr": -1.0}, "'lr' parameter"),
        ({"sub_lr": math.nan}, "'sub_lr' parameter"),
        ({"alpha": 0}, "'alpha' parameter"),
        ({"initial_clusters": 751}, "n_samples=750"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DeepDPM(**SHORT | parameters).fit(X)


def test_bad_data(fitted):
    holes = X.copy()
    holes[3, 1] = np.nan
    for call in (clone(fitted).fit, fitted.predict, fitted.predict_proba):
        with pytest.raises(ValueError, match="NaN"):
            call(holes)
