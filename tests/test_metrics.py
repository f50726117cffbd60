"""Each score against an oracle that shares no code with it, on unequal sizes and shapes."""

import math
from itertools import permutations, product

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.special import gamma

from latentspace import metrics

# Unequal classes, unequal clusters, labels with gaps.
Y_TRUE = np.array([0] * 9 + [3] * 5 + [7] * 2 + [9])
Y_PRED = np.array([4] * 7 + [1] * 2 + [1] * 4 + [6] + [6, 4] + [6])


def labellings(groups, size):
    return st.lists(st.integers(0, groups - 1), min_size=size, max_size=size).map(np.array)


def accuracy_by_permutations(y_true, y_pred):
    """Try every one-to-one matching; the shorter side is padded with labels nobody has."""
    classes, clusters = list(set(y_true.tolist())), list(set(y_pred.tolist()))
    classes += [None] * (len(clusters) - len(classes))
    return max(
        np.mean([names[clusters.index(p)] == t for t, p in zip(y_true, y_pred, strict=True)])
        for names in permutations(classes, len(clusters))
    )


def pair_counts(y_true, y_pred):
    """Pairs by (same class, same cluster), counted one by one."""
    n, counts = len(y_true), {key: 0 for key in product([True, False], repeat=2)}
    for i in range(n):
        for j in range(i):
            counts[bool(y_true[i] == y_true[j]), bool(y_pred[i] == y_pred[j])] += 1
    return counts[True, True], counts[False, True], counts[True, False], counts[False, False]


def ari_by_pairs(y_true, y_pred):
    tp, fp, fn, tn = pair_counts(y_true, y_pred)
    expected = (tp + fp) * (tp + fn) / (tp + fp + fn + tn)
    largest = ((tp + fp) + (tp + fn)) / 2
    return 1.0 if largest == expected else (tp - expected) / (largest - expected)


def nmi_by_probabilities(y_true, y_pred):
    def entropy(*labels):
        _, counts = np.unique(np.stack(labels), axis=1, return_counts=True)
        return -sum(c / len(y_true) * math.log(c / len(y_true)) for c in counts)

    parts = entropy(y_true) + entropy(y_pred)
    return 1.0 if parts == 0 else 2 * (parts - entropy(y_true, y_pred)) / parts


def test_contingency_orders_labels():
    counts = metrics.contingency([5, 5, 2, 2, 2], [0, -1, 0, 0, 8])
    assert counts.tolist() == [[0, 2, 1], [1, 1, 0]]
    assert counts.dtype == np.int64


@given(labellings(4, 9), labellings(5, 9))
def test_scores_match_brute_force(y_true, y_pred):
    accuracy = metrics.clustering_accuracy(y_true, y_pred)
    assert accuracy == pytest.approx(accuracy_by_permutations(y_true, y_pred))
    assert metrics.ari(y_true, y_pred) == pytest.approx(ari_by_pairs(y_true, y_pred))
    assert metrics.nmi(y_true, y_pred) == pytest.approx(
        nmi_by_probabilities(y_true, y_pred), abs=1e-9
    )


def test_unequal_numbers_of_groups():
    assert metrics.clustering_accuracy(Y_TRUE, Y_PRED) == accuracy_by_permutations(Y_TRUE, Y_PRED)
    assert metrics.clustering_accuracy([0] * 6 + [1] * 3, [0, 0, 0, 1, 1, 2, 3, 3, 4]) == 5 / 9
    assert metrics.clustering_accuracy([0, 0, 0, 1, 1, 2], [7] * 6) == 1 / 2


@given(labellings(3, 8), st.permutations(range(3)), st.permutations(range(4)))
def test_names_do_not_matter(y_true, rename_true, rename_pred):
    y_pred = np.arange(8) % 4
    renamed = np.array(rename_true)[y_true], np.array(rename_pred)[y_pred]
    for score in (metrics.clustering_accuracy, metrics.nmi, metrics.ari):
        assert score(y_true, y_pred) == pytest.approx(score(*renamed))
        assert score(y_true, y_true) == 1


def test_one_group_is_defined():
    one, two = np.zeros(4, int), np.array([0, 0, 0, 1])
    assert metrics.nmi(one, one) == metrics.ari(one, one) == 1
    assert metrics.nmi(two, one) == metrics.ari(two, one) == 0
    assert metrics.clustering_accuracy(two, one) == 0.75


class TestNoise:
    """Six points labelled, five of them right; four are noise, all of class 2."""

    y_true = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
    y_pred = np.array([5, 5, 5, 6, 6, 5, -1, -1, -1, -1])

    def test_cluster_lets_noise_win_a_class(self):
        assert metrics.clustering_accuracy(self.y_true, self.y_pred) == 9 / 10
        renamed = np.where(self.y_pred < 0, 99, self.y_pred)
        for score in (metrics.clustering_accuracy, metrics.nmi, metrics.ari):
            assert score(self.y_true, self.y_pred) == score(self.y_true, renamed)

    def test_drop_scores_labelled_points_alone(self):
        for score in (metrics.clustering_accuracy, metrics.nmi, metrics.ari):
            dropped = score(self.y_true, self.y_pred, noise="drop")
            assert dropped == score(self.y_true[:6], self.y_pred[:6])
        assert metrics.clustering_accuracy(self.y_true, self.y_pred, noise="drop") == 5 / 6

    def test_singletons_earn_at_most_one_point_a_free_class(self):
        full = metrics.clustering_accuracy(self.y_true, self.y_pred, noise="singletons")
        assert full == 6 / 10  # 5 labelled points right, 1 for class 2, which has no cluster
        own = np.array([5, 5, 5, 6, 6, 5, 10, 11, 12, 13])
        for score in (metrics.nmi, metrics.ari):
            assert score(self.y_true, self.y_pred, noise="singletons") == score(self.y_true, own)

    def test_all_noise_and_bad_policy(self):
        with pytest.raises(ValueError, match="every point is noise"):
            metrics.nmi([0, 1], [-1, -1], noise="drop")
        with pytest.raises(ValueError, match="noise must be"):
            metrics.ari([0, 1], [0, 1], noise="ignore")


@pytest.mark.parametrize(
    ("y_true", "y_pred", "message"),
    [
        ([], [], "non-empty"),
        ([0, 1], [0], "equally long"),
        ([[0, 1]], [[0, 1]], "1-D"),
        ([0.0, np.nan], [0, 1], "NaN"),
        ([0, 1], [0.5, 1], "fractions"),
        (["a", "b"], [0, 1], "integers"),
    ],
)
def test_bad_labels(y_true, y_pred, message):
    scores = (metrics.contingency, metrics.clustering_accuracy, metrics.nmi, metrics.ari)
    for score in scores:
        with pytest.raises(ValueError, match=message):
            score(y_true, y_pred)


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(m, s, (n, 3)) for m, s, n in [(0, 1, 30), (3, 2, 12), (9, 1, 5)]]
    )
    return x, np.repeat([0, 1, 2], [30, 12, 5])


def silhouette_by_loops(x, labels):
    values = []
    for i in range(len(x)):
        distance = [math.dist(x[i], x[j]) for j in range(len(x))]
        means = {}
        for k in set(labels.tolist()):
            members = [distance[j] for j in range(len(x)) if labels[j] == k and j != i]
            means[k] = sum(members) / len(members) if members else None
        a = means.pop(int(labels[i]))
        b = min(means.values())
        values.append(0 if a is None else (b - a) / max(a, b))
    return sum(values) / len(values)


def test_silhouette_by_loops(blobs):
    x, labels = blobs
    assert metrics.silhouette(x, labels) == pytest.approx(silhouette_by_loops(x, labels))
    labels = labels.copy()
    labels[0] = 8  # a cluster of one counts 0
    assert metrics.silhouette(x, labels) == pytest.approx(silhouette_by_loops(x, labels))


def test_silhouette_noise_sample_and_shape(blobs):
    x, labels = blobs
    noisy = np.where(np.arange(len(x)) % 7 == 0, -1, labels)
    kept = noisy >= 0
    assert metrics.silhouette(x, noisy, noise="drop") == metrics.silhouette(x[kept], labels[kept])
    assert metrics.silhouette(x, noisy) == metrics.silhouette(x, np.where(kept, labels, 9))
    whole = metrics.silhouette(x, labels, sample_size=10**6)
    assert whole == metrics.silhouette(x[:, :, None], labels)
    part = metrics.silhouette(x, labels, sample_size=40, seed=1)
    assert part == metrics.silhouette(x, labels, sample_size=40, seed=1) != whole


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros((3, 2)), [1, 1, 1], "2 to n - 1 groups"),
        (np.zeros((3, 2)), [0, 1, 2], "2 to n - 1 groups"),
        (np.zeros((3, 2)), [0, 1], "equally long"),
        (np.full((3, 2), np.nan), [0, 0, 1], "NaN"),
        (np.zeros((0, 2)), [], "non-empty"),
        (np.zeros((3, 0)), [0, 0, 1], "x is empty"),
    ],
)
def test_silhouette_bad_input(x, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics.silhouette(x, labels)


@pytest.fixture(params=[(4, 16, 20), (2, 16, 20, 3)])
def images(request):
    rng = np.random.default_rng(1)
    x = rng.random(request.param)
    noise = np.linspace(0.02, 0.3, len(x)).reshape(-1, *[1] * (x.ndim - 1))
    return x, (x + noise * rng.normal(size=x.shape)).clip(0, 1)


def test_image_scores_against_scikit_image_and_torchmetrics(images):
    skimage = pytest.importorskip("skimage.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    x, y = images
    options = {"data_range": 1.0, "gaussian_weights": True, "use_sample_covariance": False}
    channel_axis = -1 if x.ndim == 4 else None
    by_skimage = [
        skimage.structural_similarity(a, b, sigma=1.5, channel_axis=channel_axis, **options)
        for a, b in zip(x, y, strict=True)
    ]
    assert metrics.ssim(x, y) == pytest.approx(by_skimage)
    assert metrics.psnr(x, y) == pytest.approx(
        [skimage.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)]
    )
    first = (x[..., None], y[..., None]) if x.ndim == 3 else (x, y)
    a, b = (torch.tensor(z).movedim(-1, 1) for z in first)
    for i in range(len(x)):
        pair = a[i : i + 1], b[i : i + 1]
        _, windows = torchmetrics.structural_similarity_index_measure(
            *pair, data_range=1.0, return_full_image=True
        )  # its mean counts windows over a mirrored border too; ours only those inside
        inside = windows[..., 5:-5, 5:-5].mean().item()
        assert metrics.ssim(x, y)[i] == pytest.approx(inside, abs=1e-5)
        value = torchmetrics.peak_signal_noise_ratio(*pair, data_range=1.0)
        assert metrics.psnr(x, y)[i] == pytest.approx(value.item(), abs=1e-4)


def test_image_scores_scale_with_the_range(images):
    x, y = images
    assert metrics.psnr(255 * x, 255 * y, data_range=255) == pytest.approx(metrics.psnr(x, y))
    assert metrics.ssim(255 * x, 255 * y, data_range=255) == pytest.approx(metrics.ssim(x, y))
    assert (metrics.psnr(x, x) == np.inf).all()
    assert metrics.ssim(x, x) == pytest.approx(1)


def test_image_scores_bad_input():
    x = np.zeros((2, 16, 16))
    for score in (metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match="one shape"):
            score(x, x[:, :8])
        with pytest.raises(ValueError, match="NaN"):
            score(x, np.full_like(x, np.nan))
        with pytest.raises(ValueError, match="data_range"):
            score(x, x, data_range=0)
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(x[:, :8], x[:, :8])


@pytest.fixture
def features():
    """Two sets of unequal size, unlike covariances and scales over four decades."""
    rng = np.random.default_rng(2)
    scales = np.array([1e-2, 0.3, 1.0, 5.0, 1e2])
    x = rng.normal(size=(300, 5)) * scales
    return x, 0.1 + rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)) * scales[::-1]


def frechet_by_sqrtm(x, y):
    cov_x, cov_y = np.cov(x.T), np.cov(y.T)
    gap = x.mean(0) - y.mean(0)
    return gap @ gap + np.trace(cov_x + cov_y - 2 * np.real(sqrtm(cov_x @ cov_y)))


def test_frechet_distance_against_sqrtm(features):
    assert metrics.frechet_distance(*features) == pytest.approx(frechet_by_sqrtm(*features))
    assert metrics.frechet_distance(*features[::-1]) == pytest.approx(frechet_by_sqrtm(*features))


def test_frechet_distance_against_torchmetrics(features):
    fid = pytest.importorskip("torchmetrics.image.fid")
    moments = [torch.tensor(m) for z in features for m in (z.mean(axis=0), np.cov(z, rowvar=False))]
    assert metrics.frechet_distance(*features) == pytest.approx(
        fid._compute_fid(*moments).item(), rel=1e-6
    )


def test_frechet_distance_closed_forms():
    x = np.random.default_rng(3).normal(size=(50, 1))
    assert metrics.frechet_distance(x, 3 * x + 2) == pytest.approx(
        (2 * x.mean() + 2) ** 2 + (2 * x.std(ddof=1)) ** 2
    )
    flat = np.concatenate([x, x], axis=1)  # a singular covariance
    assert metrics.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-12)
    assert metrics.frechet_distance(flat, flat + 1) == pytest.approx(2)


def test_frechet_distance_bad_input():
    x = np.random.default_rng(4).normal(size=(9, 4))
    with pytest.raises(ValueError, match="4 features need more than 4 samples"):
        metrics.frechet_distance(x, x[:4])
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        metrics.frechet_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        metrics.frechet_distance(x, np.full_like(x, np.nan))


class TestErrata:
    """The formula as printed in the experts thesis fails; the corrected one passes."""

    def test_s1_volume_of_the_cube(self):
        d, r = 10, 3.0
        sphere = 2 * r**d * np.pi ** (d / 2) / (d * gamma(d / 2))
        points = np.random.default_rng(0).uniform(-r, r, (10**6, d))
        inside = (np.linalg.norm(points, axis=1) < r).mean()
        assert sphere / (2 * r) ** d == pytest.approx(inside, rel=0.1)
        assert sphere / (2 * r**d) > 1 > 100 * inside  # printed: a ball larger than its cube

    def test_s2_pca_holds_singular_values(self):
        x = np.random.default_rng(1).normal(size=(3, 40)) * [[3.0], [2.0], [1.0]]
        eigenvalues, w = np.linalg.eigh(x @ x.T)
        v = np.linalg.svd(x)[2][:3][::-1].T
        v *= np.sign(np.sum((w.T @ x).T * v, axis=0))  # eigenvectors have no sign of their own
        assert np.allclose(w @ np.diag(np.sqrt(eigenvalues)) @ v.T, x)
        assert not np.allclose(w @ np.diag(eigenvalues) @ v.T, x)

    def test_s11_rand_index_is_not_adjusted(self):
        tp, fp, fn, tn = pair_counts(Y_TRUE, Y_PRED)
        printed = (tp + tn) / (tp + fp + fn + tn)
        corrected = 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
        assert metrics.ari(Y_TRUE, Y_PRED) == pytest.approx(corrected)
        assert abs(metrics.ari(Y_TRUE, Y_PRED) - printed) > 0.1

    def test_s11_least_ari_is_minus_a_half(self):
        pairs = product(product(range(3), repeat=5), repeat=2)
        assert min(ari_by_pairs(np.array(a), np.array(b)) for a, b in pairs) >= -0.5
        assert metrics.ari([0, 0, 1, 1], [0, 1, 0, 1]) == -0.5

    def test_s12_perplexity(self):
        p = np.array([0.9, 0.1])
        entropy = -(p * np.log2(p)).sum()
        by_likelihood = np.prod(p**-p)  # inverse geometric mean of the probabilities seen
        assert 2**entropy == pytest.approx(by_likelihood)
        assert 2**-entropy == pytest.approx(0.722, abs=1e-3)
        uniform = 2.0
        assert 2**entropy < uniform  # the better prediction has the lower perplexity

    def test_s13_calinski_harabasz(self, blobs):
        x, labels = blobs
        n, k = len(x), 3
        centres = np.stack([x[labels == q].mean(axis=0) for q in range(k)])
        sizes = np.bincount(labels)
        within = ((x - centres[labels]) ** 2).sum()
        between = (sizes * ((centres - x.mean(axis=0)) ** 2).sum(axis=1)).sum()
        doubled = (sizes**2 * ((centres - x.mean(axis=0)) ** 2).sum(axis=1)).sum()
        oracle = sklearn.metrics.calinski_harabasz_score(x, labels)
        assert between / within * (n - k) / (k - 1) == pytest.approx(oracle)
        assert doubled / within * (n - k) / (k - 1) > 5 * oracle

    def test_s14_frechet_needs_the_matrix_root(self):
        rng = np.random.default_rng(7)
        x = rng.normal(size=(500, 2)) @ [[1.0, 2.0], [0.0, 0.5]]
        y = rng.normal(size=(300, 2)) @ [[0.5, -1.0], [0.0, 2.0]]
        cov_x, cov_y = np.cov(x.T), np.cov(y.T)
        gap = x.mean(axis=0) - y.mean(axis=0)
        product_of_entries = np.sqrt(np.abs(cov_x * cov_y))  # the root read entry by entry
        printed = gap @ gap + np.trace(cov_x + cov_y - 2 * product_of_entries)
        assert metrics.frechet_distance(x, y) == pytest.approx(frechet_by_sqrtm(x, y))
        assert abs(printed / metrics.frechet_distance(x, y) - 1) > 0.1

    def test_s14_zero_means_equal_moments_only(self):
        x = np.random.default_rng(5).uniform(size=(200, 2))
        y = np.random.default_rng(6).normal(size=(200, 2))

        def whiten(z):
            return (z - z.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T))).T

        assert metrics.frechet_distance(whiten(x), whiten(y)) == pytest.approx(0, abs=1e-9)

    def test_s24_full_accuracy_is_the_product(self):
        """As long as noise is wrong; no rounding of Table 4.11 reaches its FMNIST and CIFAR10."""
        y = np.repeat([0, 1, 2], [50, 30, 20])
        y_pred = np.where(np.arange(100) % 3 == 0, -1, np.where(np.arange(100) % 7, y, 0))
        product = (y_pred >= 0).mean() * metrics.clustering_accuracy(y, y_pred, noise="drop")
        full = metrics.clustering_accuracy(y, y_pred, noise="singletons")
        assert full == pytest.approx(product)
        for fraction, accuracy, printed in [(0.48, 0.673, 0.381), (0.18, 0.436, 0.175)]:
            assert printed - 5e-4 > (fraction + 5e-3) * (accuracy + 5e-4)

    def test_s29_printed_ari_is_impossible(self):
        """ACC .592 with ten equal classes forces an ARI above the printed .0503."""

        def least(accuracy, c=10):
            b = (1 - accuracy + 1 / c) ** 2 + (accuracy - 1 / c) / c
            return (c * accuracy - 1) ** 2 / (c**2 * (c - 1)) / (1 / (2 * c) + b / 2 - b / c)

        assert least(0.592 - 0.0005) > 0.155 > 0.0503 + 5e-5
        assert least(1) == pytest.approx(1)
        rng = np.random.default_rng(8)
        y = np.arange(2000) % 10
        for _ in range(200):
            k, share = rng.integers(1, 15), rng.random()
            weights = rng.dirichlet(np.full(k, rng.choice([0.1, 1.0, 10.0])))
            noise = rng.choice(k, len(y), p=weights)
            y_pred = np.where(rng.random(len(y)) < share, y % k, noise)
            bound = least(metrics.clustering_accuracy(y, y_pred))
            assert metrics.ari(y, y_pred) > bound - 0.01

    def test_l1_mutual_information(self):
        """The slides print H(Y) plus H(Y|X), which is largest for a useless cluster."""
        counts = metrics.contingency(Y_TRUE, Y_PRED)
        p = counts / counts.sum()
        rows, columns = p.sum(axis=1), p.sum(axis=0)
        defined = sum(
            p[i, j] * math.log(p[i, j] / (rows[i] * columns[j])) for i, j in np.argwhere(p)
        )
        h_y = -(rows * np.log(rows)).sum()
        conditional = -sum(p[i, j] * math.log(p[i, j] / columns[j]) for i, j in np.argwhere(p))
        assert h_y - conditional == pytest.approx(defined)
        assert h_y + conditional > h_y > defined


scores = st.floats(0, 1, allow_nan=False, width=32)


def most(mean, n, least=0.0):
    """The largest deviation (n - 1) of n scores in [least, 1] with that mean."""
    return math.sqrt((1 - mean) * (mean - least) * n / (n - 1))


@given(st.lists(scores, min_size=2, max_size=12))
def test_L10_how_far_scores_can_deviate(values):
    mean, least = float(np.mean(values)), min(values)
    assert np.std(values, ddof=1) <= most(mean, len(values), least) + 1e-6


def test_L10_the_printed_deviations():
    """1.02 of five scores is out of reach; .2 of ten needs one below .59, and .15 one below .71."""
    assert np.std([1, 1, 1, 0, 0], ddof=1) == pytest.approx(most(0.6, 5))  # the bound is attained
    assert most(0.5, 5) < 1.02 and most(0.86, 5) == pytest.approx(0.388, abs=1e-3)
    assert most(0.885, 10, least=0.59) < 0.195 < most(0.885, 10, least=0.58)
    assert most(0.885, 10, least=0.71) < 0.15 < most(0.885, 10, least=0.70)


def test_matched_scores_by_hand_and_against_the_accuracy():
    y = np.repeat([0, 1, 2], [6, 3, 1])
    labels = np.array([5, 5, 5, 5, 8, 8, 8, 8, 8, 8])
    recall, precision = metrics.matched_scores(y, labels)
    np.testing.assert_allclose(recall, [4 / 6, 1, 0])
    np.testing.assert_allclose(precision, [1, 3 / 6, 0])
    rng = np.random.default_rng(0)
    y, labels = rng.integers(4, size=200), rng.integers(6, size=200)
    recall, _ = metrics.matched_scores(y, labels)
    assert recall @ np.bincount(y) / 200 == pytest.approx(metrics.clustering_accuracy(y, labels))
