"""UMAP and HDBSCAN at the thesis's settings, the noise vector, the cache, what is refused.

Oracles: scikit-learn's HDBSCAN, umap-learn called by hand. Errata of the thesis: S17, S18.
"""

import numpy as np
import pytest
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score

from latentspace import noise
from latentspace.noise import (
    DensityClusters,
    density_clusters,
    embed,
    least_cluster,
    n_neighbours,
    nearest_cluster,
    refused_to_nearest,
    refused_to_softest,
)

RNG = np.random.default_rng(0)  # of what all tests share; a test's own draws have their own
CENTRES = np.array([[0, 0], [6, 0], [0, 7], [9, 9]])
SIZES = (120, 60, 90, 40)
BLOBS = np.vstack([c + 0.6 * RNG.normal(size=(n, 2)) for c, n in zip(CENTRES, SIZES, strict=True)])
TRUTH = np.repeat(np.arange(4), SIZES)
STRAYS = RNG.uniform(-3, 12, (30, 2))
POINTS, ORDER = np.vstack([BLOBS, STRAYS]), RNG.permutation(len(BLOBS) + 30)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    return tmp_path


# --- settings -------------------------------------------------------------------------------------


def test_s17_neighbours_are_capped_not_raised():
    """The thesis's sets; as printed, with the maximum, none would have fewer than 100."""
    sizes = {"MNIST": 70_000, "CIFAR-10": 60_000, "USPS": 9_298, "COIL-20": 1_440}
    assert [n_neighbours(n) for n in sizes.values()] == [100, 100, 30, 4]
    assert [max(n // 300, 100) for n in sizes.values()] == [233, 200, 100, 100]
    assert n_neighbours(3) == n_neighbours(899) == 2 and n_neighbours(900) == 3
    with pytest.raises(ValueError, match="3 points"):
        n_neighbours(2)


def test_least_cluster_is_a_fiftieth():
    assert [least_cluster(n) for n in (9_298, 1_440, 60, 0)] == [185, 28, 2, 2]


# --- HDBSCAN --------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["manhattan", "euclidean"])
@pytest.mark.parametrize("selection", ["leaf", "eom"])
@pytest.mark.parametrize(("size", "samples"), [(15, None), (15, 5), (30, 3)])
def test_clusters_and_noise_are_those_of_scikit_learn(metric, selection, size, samples):
    points = POINTS[ORDER]
    found = density_clusters(
        points, min_cluster_size=size, min_samples=samples, selection=selection, metric=metric
    )
    # scikit-learn counts the point itself among its neighbours.
    other = HDBSCAN(
        min_cluster_size=size, min_samples=(samples or size) + 1, metric=metric,
        cluster_selection_method=selection, copy=True,
    ).fit(points)  # fmt: skip
    assert (found.noise == (other.labels_ < 0)).all()
    assert adjusted_rand_score(found.labels, other.labels_) == 1
    np.testing.assert_allclose(found.strengths, other.probabilities_, atol=1e-6)


def test_what_is_found():
    found = density_clusters(POINTS[ORDER], min_cluster_size=20, min_samples=10)
    assert found.n_clusters == 4 and found.memberships.shape == (340, 4)
    stray = np.r_[np.full(310, False), np.full(30, True)][ORDER]
    assert found.noise[stray].mean() > 0.5 > 0.1 > found.noise[~stray].mean()
    first = [int(np.flatnonzero(found.labels == k)[0]) for k in range(4)]
    assert first == sorted(first)
    assert (found.strengths[found.noise] == 0).all() and (found.strengths <= 1).all()
    assert (found.memberships >= 0).all() and (found.memberships.sum(1) <= 1 + 1e-9).all()
    inside = ~found.noise
    same = found.memberships.argmax(1)[inside] == found.labels[inside]
    assert same.mean() > 0.98


@pytest.mark.parametrize("selection", ["leaf", "eom"])
def test_births_by_brute_force(selection):
    """A cluster breaks off at the least mutual reachability from it to any other point."""
    found = density_clusters(POINTS, min_cluster_size=20, min_samples=5, selection=selection)
    distances = np.abs(POINTS[:, None] - POINTS).sum(2)
    core = np.sort(distances, 1)[:, 5]
    reach = np.maximum(distances, np.maximum(core[:, None], core))
    for k, birth in enumerate(found.births):
        mine = found.labels == k
        assert reach[mine][:, ~mine].min() == pytest.approx(birth)
    assert len(found.births) == found.n_clusters


def test_s18_leaf_chooses_clusters_and_leaves_the_tree_alone():
    """Two close pairs: leaf takes the four, excess of mass the two that persist."""
    centres = [[0, 0], [2.6, 0], [20, 0], [22.6, 0]]
    x = np.vstack([np.array(c) + 0.55 * RNG.normal(size=(100, 2)) for c in centres])
    pair = {"min_cluster_size": 20, "min_samples": 20}
    assert density_clusters(x, selection="leaf", **pair).n_clusters == 4
    assert density_clusters(x, selection="eom", **pair).n_clusters == 2


def test_permutation_and_units():
    """In another order a point at the pass between two clusters may go to the other side."""
    found = density_clusters(POINTS, min_cluster_size=20)
    turned = density_clusters(POINTS[ORDER], min_cluster_size=20)
    assert (found.noise[ORDER] == turned.noise).all()
    pairs = np.unique(np.c_[found.labels[ORDER], turned.labels], axis=0, return_counts=True)[1]
    assert len(ORDER) - np.sort(pairs)[-5:].sum() <= found.n_clusters - 1 == 3
    np.testing.assert_allclose(np.sort(found.births), np.sort(turned.births))
    larger = density_clusters(64 * POINTS, min_cluster_size=20)
    np.testing.assert_array_equal(larger.labels, found.labels)


def test_everything_may_be_refused():
    """A tree that never branches has no clusters; neither have too few points."""
    line = RNG.normal(size=(60, 2))
    for x, size in ((line, 40), (line[:5], 6), (np.zeros((30, 3)), 10)):
        found = density_clusters(x, min_cluster_size=size)
        assert found.n_clusters == 0 and found.noise.all()
        assert found.memberships.shape == (len(x), 0) and (found.strengths == 0).all()
        with pytest.raises(ValueError, match="no point"):
            refused_to_nearest(x, found)
        with pytest.raises(ValueError, match="no point"):
            refused_to_softest(found)


# --- refused points -------------------------------------------------------------------------------


def test_nearest_cluster_by_brute_force():
    found = density_clusters(POINTS[ORDER], min_cluster_size=20)
    given, x = refused_to_nearest(POINTS[ORDER], found), POINTS[ORDER]
    for i in range(len(x)):
        if found.labels[i] >= 0:
            assert given[i] == found.labels[i]
        else:
            distances = np.abs(x - x[i]).sum(1) + 1e9 * (found.labels < 0)
            assert given[i] == found.labels[distances.argmin()]
    assert (found.labels < 0).any()  # the labels that came in are as they were


def test_softest_takes_the_largest_share():
    shares = np.array([[0.2, 0.1], [0.1, 0.3], [0.9, 0.0], [0.0, 0.05]])
    found = DensityClusters(np.array([-1, -1, 1, -1]), np.zeros(4), shares, np.ones(2))
    assert refused_to_softest(found).tolist() == [0, 1, 1, 1]


def test_one_cluster_gets_all_refused():
    n = len(POINTS)
    labels = np.where(np.arange(n) < 100, 0, -1)
    found = DensityClusters(labels, np.zeros(n), np.ones((n, 1)), np.ones(1))
    assert (refused_to_nearest(POINTS, found) == 0).all()
    assert (refused_to_softest(found) == 0).all()


# --- UMAP -----------------------------------------------------------------------------------------

CODES = np.hstack([BLOBS, RNG.normal(size=(310, 3))])


def test_embedding_is_umaps_own_of_normalised_codes(home):
    import umap

    rows = CODES / np.linalg.norm(CODES, ord=1, axis=1, keepdims=True)
    by_hand = umap.UMAP(n_neighbors=2, n_components=5, min_dist=0.0, metric="manhattan",
                        random_state=3, n_jobs=1).fit_transform(rows)  # fmt: skip
    found = embed(CODES, seed=3)
    np.testing.assert_array_equal(found, by_hand)
    assert found.dtype == np.float32 and len(list((home / "embeddings").iterdir())) == 1


def test_cache_answers_only_the_same_question(home, monkeypatch):
    asked = []

    def counted(model, z):
        asked.append(model)
        return np.full((len(z), model.n_components), len(asked))

    monkeypatch.setattr("umap.UMAP.fit_transform", counted)
    first = {"codes": CODES[:50], "n_components": 2, "seed": 1}
    for _ in range(2):
        assert (embed(**first) == 1).all()
    others = (
        {"seed": 2}, {"neighbours": 3}, {"min_dist": 0.1}, {"metric": "cosine"},
        {"normalise": False}, {"n_components": 3}, {"codes": CODES[1:51]}, {"cache": False},
    )  # fmt: skip
    for count, other in enumerate(others, 2):
        assert (embed(**first | other) == count).all()
    assert len(list((home / "embeddings").iterdir())) == len(others)


def test_an_embedding_that_is_not_finite_is_neither_given_nor_kept(home, monkeypatch):
    broken = np.full((50, 2), np.nan)
    monkeypatch.setattr("umap.UMAP.fit_transform", lambda model, z: broken)
    with pytest.raises(ValueError, match="no finite embedding"):
        embed(CODES[:50], n_components=2)
    assert not (home / "embeddings").exists()


def test_a_damaged_file_is_computed_again(home):
    found = density_clusters(POINTS, min_cluster_size=20)
    (path,) = (home / "embeddings").iterdir()
    for content in (b"", path.read_bytes()[:100], b"no zip file"):
        path.write_bytes(content)
        again = density_clusters(POINTS, min_cluster_size=20)
        np.testing.assert_array_equal(again.labels, found.labels)
    assert len(path.read_bytes()) > 100


def test_clusters_are_kept_by_settings(home, monkeypatch):
    for settings in ({}, {"min_samples": 3}, {"selection": "eom"}, {"metric": "euclidean"}):
        density_clusters(POINTS, min_cluster_size=20, **settings)
    assert len(list((home / "embeddings").iterdir())) == 4
    monkeypatch.setattr(noise, "_hdbscan", lambda *_: pytest.fail("computed again"))
    assert density_clusters(POINTS, min_cluster_size=20, min_samples=3).n_clusters == 5


def test_a_home_that_cannot_be_written_warns(home):
    (home / "embeddings").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept"):
        assert density_clusters(POINTS, min_cluster_size=20).n_clusters == 4


def test_other_dtypes_and_orders_give_the_same():
    x = np.round(8 * POINTS)
    found = density_clusters(x, min_cluster_size=20).labels
    for other in (x.astype(np.int16), x.astype(">f8"), np.asfortranarray(x), x[::-1][::-1]):
        np.testing.assert_array_equal(density_clusters(other, min_cluster_size=20).labels, found)


def test_bad_input():
    hole = np.where(CODES > 0, CODES, np.nan)
    for wrong in (CODES[0], CODES[:0], CODES[:, :0], hole, np.inf * CODES):
        with pytest.raises(ValueError, match="finite"):
            embed(wrong)
        with pytest.raises(ValueError, match="finite"):
            density_clusters(wrong)
    with pytest.raises(ValueError, match="components"):
        embed(CODES[:5], 5)
    for settings in ({"min_cluster_size": 1}, {"min_samples": 0}, {"selection": "finest"}):
        with pytest.raises(ValueError, match="min_cluster_size"):
            density_clusters(POINTS, **settings)
    with pytest.raises(ValueError, match="labels"):
        nearest_cluster(POINTS, [0, 1])


def test_codes_of_constant_images_are_embedded():
    """All codes equal, or all zero: something finite, and no cluster made of nothing."""
    for codes in (np.zeros((20, 3)), np.ones((20, 3))):
        assert np.isfinite(embed(codes, 2)).all()
