"""Cuts, splits and merges of clusters against scikit-learn and loops."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from latentspace.dirichlet import NIW, Statistics, default_prior, label_statistics, learn_prior
from latentspace.moves import (
    accept_merges,
    accept_splits,
    best_halves,
    cut_axes,
    frames,
    in_frames,
    merge,
    split,
    two_means,
)

sys.path.insert(0, str(Path(__file__).parent / "helpers"))
from five_blobs import X, Y

x = torch.tensor(X)
MERGED = torch.tensor(np.minimum(Y, 2))  # the third cluster holds three blobs


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def learned(labels):
    k = int(labels.max()) + 1
    base = default_prior(x, psi_scale=1.0)
    return learn_prior(base, base.psi, label_statistics(x, labels, k))


def mapped(prior, a, shift):
    """The prior of points x @ a.T + shift, where ``prior`` is that of x."""
    return NIW(a @ prior.mean + shift, prior.kappa, a @ prior.psi @ a.T, prior.nu)


# --- cuts ---


def test_frames_whiten_each_cluster():
    stats, prior = label_statistics(x, MERGED, 3), default_prior(x, psi_scale=1e-6)
    z = in_frames(x, MERGED, *frames(stats, prior))
    for k in range(3):
        own = z[k == MERGED].numpy()
        np.testing.assert_allclose(own.mean(0), 0, atol=1e-9)
        np.testing.assert_allclose(np.cov(own.T, ddof=0), np.eye(2), atol=0.1)
    empty = Statistics(*(torch.cat([part, torch.zeros_like(part[:1])]) for part in stats))
    assert torch.isfinite(frames(empty, prior)[1]).all()


def test_axes_are_the_longest_by_psi_and_of_extreme_tails():
    stats, prior = label_statistics(x, MERGED, 3), learned(MERGED)
    centres, maps = frames(stats, prior)
    z = in_frames(x, MERGED, centres, maps)
    axes = cut_axes(z, MERGED, maps, prior)
    assert axes.shape == (4, 3, 2)
    np.testing.assert_allclose(axes.norm(dim=-1), 1)
    for k in range(3):
        own = z[k == MERGED].numpy()
        fourth = np.mean([np.outer(row, row) * (row @ row) for row in own], 0)
        tails = [float(a @ torch.tensor(fourth) @ a) for a in axes[2:, k]]
        np.testing.assert_allclose(tails, np.linalg.eigvalsh(fourth), rtol=1e-9)
        # The generalised eigenvectors of scatter (with psi's few points) and psi, in the plane.
        whole = (stats.scatter[k] + prior.psi).numpy()
        longest = eigh(whole, prior.psi.numpy())[1].T[::-1]
        for ours, theirs in zip(axes[:2, k], longest, strict=True):
            direction = (maps[k].T @ ours).numpy()  # a plane's normal, in the space of the data
            theirs = np.linalg.solve(whole, prior.psi.numpy() @ theirs)
            cosine = direction @ theirs / np.linalg.norm(direction) / np.linalg.norm(theirs)
            assert abs(cosine) == pytest.approx(1, abs=1e-6)


def test_two_means_is_scikit_learns_from_the_same_start():
    stats, prior = label_statistics(x, MERGED, 3), learned(MERGED)
    centres, maps = frames(stats, prior)
    z = in_frames(x, MERGED, centres, maps)
    for axes in cut_axes(z, MERGED, maps, prior):
        halves = two_means(z, MERGED, axes, steps=100).numpy()
        for k in range(3):
            own, axis = z[k == MERGED].numpy(), axes[k].numpy()
            theirs = KMeans(2, init=np.stack([-axis, axis]), n_init=1, tol=0).fit_predict(own)
            mine = halves[MERGED.numpy() == k]
            assert adjusted_rand_score(mine, theirs) > 0.99
            assert (mine == 0).sum() >= (mine == 1).sum()


@pytest.mark.parametrize("layout", ["sheets", "like sizes", "unlike sizes", "in units"])
def test_the_right_cut_is_among_those_proposed(layout):
    """Two groups that 2-means along the longest axis of the data would cut across."""
    rng = np.random.default_rng(0)
    share = 0.1 if layout == "unlike sizes" else 0.5
    y = (rng.uniform(size=1000) < share).astype(int)
    points = np.c_[rng.normal(size=1000), rng.normal(size=1000) + 6 * y, rng.normal(size=1000)]
    points *= {"sheets": [30, 1, 1], "in units": [1e5, 1e-3, 1]}.get(layout, [5, 1, 5])
    points = torch.tensor(points)
    labels = torch.zeros(1000, dtype=torch.long)
    prior = default_prior(points)
    halves = best_halves(points, labels, label_statistics(points, labels, 1), prior, 10.0)
    assert adjusted_rand_score(y, halves) > 0.97


def test_cuts_follow_linear_maps():
    a = torch.tensor([[3.0, 1.0], [-200.0, 50.0]], dtype=torch.float64)
    shift = torch.tensor([10.0, -3.0])
    prior, y = learned(MERGED), x @ a.T + shift
    ours = best_halves(x, MERGED, label_statistics(x, MERGED, 3), prior, 10.0)
    moved = mapped(prior, a, shift)
    theirs = best_halves(y, MERGED, label_statistics(y, MERGED, 3), moved, 10.0)
    assert 0 < ours.sum() < len(ours)
    torch.testing.assert_close(ours, theirs)


# --- splits and merges ---


def test_splits_and_merges_are_decided_by_separation():
    labels = torch.tensor(Y)
    prior = learned(labels)
    # Blob 0 cut at random, and blobs 1 and 2 as one cluster.
    coin = torch.tensor(np.random.default_rng(1).integers(2, size=300))
    first = label_statistics(x, torch.cat([coin, labels[300:] * 0 + 2]), 3)
    both = label_statistics(x, labels, 5)
    a = Statistics(*(torch.cat([h[:1], t[1:2]]) for h, t in zip(first, both, strict=True)))
    b = Statistics(*(torch.cat([h[1:2], t[2:3]]) for h, t in zip(first, both, strict=True)))
    accepted, log_ratio = accept_splits(a, b, prior, 10.0, generator())
    assert accepted.tolist() == [False, True]
    assert log_ratio[0] < -5 and log_ratio[1] > 5
    assert accept_merges(both, prior, 10.0, generator()) == []
    pieces = torch.where(labels == 0, torch.cat([coin * 5, coin.new_zeros(450)]), labels)
    ((i, j, ratio),) = accept_merges(label_statistics(x, pieces, 6), prior, 10.0, generator())
    assert (i, j) == (0, 5) and ratio == pytest.approx(-float(log_ratio[0]))


def test_a_neighbour_is_another_cluster_and_a_cluster_merges_once():
    """Official code counts the cluster itself among its three nearest, which leaves two."""
    x = torch.tensor(np.random.default_rng(0).normal(size=(900, 1)))
    stats = label_statistics(x, torch.arange(900) % 9, 9)  # one Gaussian: every merge is good
    prior = default_prior(x, kappa=1.0, psi_scale=1.0)
    pairs = accept_merges(stats, prior, 1.0, generator(), neighbours=8)
    members = [k for i, j, _ in pairs for k in (i, j)]
    assert len(pairs) == 4 and len(set(members)) == 8
    assert [r for *_, r in pairs] == sorted((r for *_, r in pairs), reverse=True)
    gaps = (stats.mean - stats.mean.T).abs().fill_diagonal_(math.inf)
    nearest = gaps.argmin(1).tolist()
    one = accept_merges(stats, prior, 1.0, generator(), neighbours=1)
    assert one and all(i < j and (nearest[i] == j or nearest[j] == i) for i, j, _ in one)


@pytest.mark.parametrize(("psi", "pairs"), [((1, 1), {(0, 2), (1, 3)}), ((9, 1), {(0, 1), (2, 3)})])
def test_neighbours_are_measured_by_psi(psi, pairs):
    """Four clusters on a rectangle, 3 by 2: the short side may be long in the prior's units."""
    mean = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [3.0, 2.0]], dtype=torch.float64)
    eye = torch.eye(2).double()
    stats = Statistics(torch.full((4,), 40.0).double(), mean, 4000 * eye.expand(4, 2, 2))
    scalars = torch.tensor([1e-4, 4.0]).double()
    prior = NIW(mean.mean(0), scalars[0], torch.diag(torch.tensor(psi).double()), scalars[1])
    taken = accept_merges(stats, prior, 1e-6, generator(), neighbours=1)
    assert {(i, j) for i, j, _ in taken} == pairs


def test_a_round_of_splits():
    halves = best_halves(x, MERGED, label_statistics(x, MERGED, 3), learned(MERGED), 10.0)
    moves = split(x, MERGED, halves, 3, learned(MERGED), 10.0, generator())
    assert moves.kind == "split" and len(moves.log_ratios) == 1
    assert moves.parents.tolist() == [0, 1, 2, 2]
    assert moves.fresh.tolist() == [False, False, True, True]
    expected = torch.where((MERGED == 2) & (halves == 1), 3, MERGED)
    torch.testing.assert_close(moves.labels, expected)


def test_a_round_of_merges():
    """Two thirds and one third of blob 1, as clusters 5 and 1: the larger part's unit is kept."""
    labels = torch.tensor(Y)
    pieces = labels.clone()
    pieces[300:450] = torch.tensor([5, 5, 1] * 50)
    moves = merge(pieces, label_statistics(x, pieces, 6), learned(labels), 10.0, generator())
    assert moves.kind == "merge" and len(moves.log_ratios) == 1
    torch.testing.assert_close(moves.labels, labels)
    assert moves.parents.tolist() == [0, 5, 2, 3, 4]
    assert moves.fresh.tolist() == [False, True, False, False, False]
    none = merge(labels, label_statistics(x, labels, 5), learned(labels), 10.0, generator())
    torch.testing.assert_close(none.labels, labels)
    assert none.parents.tolist() == [0, 1, 2, 3, 4] and not none.fresh.any()
