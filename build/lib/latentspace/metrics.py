"""Agreement of a clustering with known classes, its shape, and the quality of images.

Labels are integers that name groups and nothing more: every score is unchanged when either
labelling is renamed. Scores return Python floats; image scores return one value an image.

Noise. DBSCAN and HDBSCAN call a point that joins no cluster ``-1``. What that is worth is a
choice, so the scores that compare labels take it as ``noise``:

``"cluster"``
    all noise points form one more cluster (scikit-learn's reading, the default). Matching may
    then give that cluster a class of its own.
``"drop"``
    points predicted as noise are left out. Always report the labelled fraction beside it.
``"singletons"``
    every noise point is a cluster of its own: noise groups nothing and is right about nothing.
    ACC is then the labelled fraction times the accuracy of the labelled points, plus at most one
    point for each class that has no cluster.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment

__all__ = [
    "NOISE", "ari", "clustering_accuracy", "contingency", "frechet_distance", "matched_scores",
    "nmi", "psnr", "silhouette", "ssim",
]  # fmt: skip

NOISE = -1


def _as_labels(y: ArrayLike, name: str) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"{name} must be a non-empty 1-D array of labels, got shape {y.shape}")
    if y.dtype.kind == "f":
        if not np.isfinite(y).all():
            raise ValueError(f"{name} contains NaN or infinity")
        if (y != np.round(y)).any():
            raise ValueError(f"{name} must hold integers that name groups, got fractions")
    elif y.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integers, got dtype {y.dtype}")
    return y.astype(np.int64)


def _resolve_noise(labels: np.ndarray, noise: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels, kept): `labels` with noise resolved, `kept` the mask of points that count."""
    is_noise = labels == NOISE
    if noise == "cluster":
        return labels, np.ones(labels.shape, bool)
    if noise == "drop":
        if is_noise.all():
            raise ValueError("every point is noise: with noise='drop' nothing is left to score")
        return labels, ~is_noise
    if noise == "singletons":
        labels = labels.copy()
        labels[is_noise] = labels.max() + 1 + np.arange(is_noise.sum())
        return labels, np.ones(labels.shape, bool)
    raise ValueError(f"noise must be 'cluster', 'drop' or 'singletons', got {noise!r}")


def _label_pair(
    y_true: ArrayLike, y_pred: ArrayLike, noise: str = "cluster"
) -> tuple[np.ndarray, np.ndarray]:
    y_true, y_pred = _as_labels(y_true, "y_true"), _as_labels(y_pred, "y_pred")
    if y_true.shape != y_pred.shape:
        raise ValueError(
            f"y_true and y_pred must be equally long, got {len(y_true)} and {len(y_pred)}"
        )
    y_pred, kept = _resolve_noise(y_pred, noise)
    return y_true[kept], y_pred[kept]


def contingency(y_true: ArrayLike, y_pred: ArrayLike) -> np.ndarray:
    """Count the points of each class in each cluster.

    Parameters
    ----------
    y_true, y_pred : (n,) integers
        Labels of any values; both are taken in sorted order.

    Returns
    -------
    (n_classes, n_clusters) int64
        Entry (i, j) counts the points of the i-th class in the j-th cluster.

    Raises
    ------
    ValueError
        For labels that are empty, unequally long, NaN or not integers.
    """
    y_true, y_pred = _label_pair(y_true, y_pred)
    classes, rows = np.unique(y_true, return_inverse=True)
    clusters, columns = np.unique(y_pred, return_inverse=True)
    counts = np.zeros((len(classes), len(clusters)), dtype=np.int64)
    np.add.at(counts, (rows, columns), 1)
    return counts


def clustering_accuracy(
    y_true: ArrayLike, y_pred: ArrayLike, *, noise: str = "cluster"
) -> float:
    """Accuracy (ACC) under the best one-to-one matching of clusters with classes.

    Where there are more clusters than classes the surplus clusters match nothing and count as
    wrong, and the other way round.

    Parameters
    ----------
    y_true, y_pred : (n,) integers
    noise : {"cluster", "drop", "singletons"}
        What the predicted label -1 stands for; see the module's text.

    Returns
    -------
    float in [1 / max(n_classes, n_clusters), 1]

    Raises
    ------
    ValueError
        As `contingency`, or when ``noise="drop"`` leaves nothing.

    Notes
    -----
    Santos thesis eq. 2.23; the matching is Kuhn's Hungarian method from scipy.
    """
    counts = contingency(*_label_pair(y_true, y_pred, noise))
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return float(counts[rows, columns].sum() / counts.sum())


def matched_scores(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of each class (n_classes,), under the matching of ACC.

    The share of a class that lies in its matched cluster, and of that cluster that belongs to the
    class, in the order of the sorted labels; 0 for a class without a cluster. Weighted by the sizes
    of the classes, the recalls sum to `clustering_accuracy`: a large class can hide all small ones.
    """
    counts = contingency(y_true, y_pred)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    recall, precision = np.zeros((2, len(counts)))
    recall[rows] = counts[rows, columns] / counts[rows].sum(1)
    precision[rows] = counts[rows, columns] / counts[:, columns].sum(0)
    return recall, precision


def nmi(y_true: ArrayLike, y_pred: ArrayLike, *, noise: str = "cluster") -> float:
    """Mutual information over the mean of the two entropies.

    1 for two labellings that are the same up to names (also when both have one group only),
    0 when either has one group and the other more. Not corrected for chance: it grows with the
    number of clusters (Chapter 1). Raises as `clustering_accuracy`.

    Returns
    -------
    float in [0, 1]

    Notes
    -----
    Santos thesis eq. 2.24, by scikit-learn's `normalized_mutual_info_score`.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_label_pair(y_true, y_pred, noise)))


def ari(y_true: ArrayLike, y_pred: ArrayLike, *, noise: str = "cluster") -> float:
    """Rand index corrected for chance (Hubert and Arabie).

    1 for the same partition, 0 on average for a random one of the same sizes. Raises as
    `clustering_accuracy`.

    Returns
    -------
    float in [-1/2, 1]

    Notes
    -----
    Not Santos thesis eq. 2.25, which prints the uncorrected Rand index (errata S11); by
    scikit-learn's `adjusted_rand_score`.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_label_pair(y_true, y_pred, noise)))


def silhouette(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    metric: str = "euclidean",
    noise: str = "cluster",
    sample_size: int | None = None,
    seed: int = 0,
) -> float:
    """Mean over the points of (b - a) / max(a, b).

    `a` is a point's mean distance to its own cluster (itself left out), `b` the least mean
    distance to another cluster. A point alone in its cluster counts 0.

    Parameters
    ----------
    x : (n, ...) floats
        Flattened to (n, d).
    labels : (n,) integers
        Two to n - 1 groups.
    metric : str
        Any metric of scikit-learn's `pairwise_distances`.
    noise : {"cluster", "drop", "singletons"}
    sample_size : int, optional
        Score a random sample of this many points, as the cost is quadratic in their number.
    seed : int
        Of that sample.

    Returns
    -------
    float in [-1, 1]

    Raises
    ------
    ValueError
        For NaN, unequal lengths, fewer than two groups or only groups of one.

    Notes
    -----
    Santos thesis eq. 2.26 gives one point's coefficient; by scikit-learn's `silhouette_score`.
    """
    from sklearn.metrics import silhouette_score

    points, group = np.asarray(x), _as_labels(labels, "labels")
    if len(points) != len(group):
        raise ValueError(f"x and labels must be equally long, got {len(points)} and {len(group)}")
    points = _finite(points.reshape(len(points), -1), "x")
    group, kept = _resolve_noise(group, noise)
    points, group = points[kept], group[kept]
    if sample_size is not None and sample_size < len(points):
        chosen = np.random.default_rng(seed).choice(len(points), sample_size, replace=False)
        points, group = points[chosen], group[chosen]
    groups = len(np.unique(group))
    if not 2 <= groups < len(group):
        raise ValueError(
            f"the silhouette needs 2 to n - 1 groups, got {groups} among {len(group)} points"
        )
    return float(silhouette_score(points, group, metric=metric))


def _finite(x: ArrayLike, name: str) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.size == 0:
        raise ValueError(f"{name} is empty")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} contains NaN or infinity")
    return x


def _image_pair(
    x: ArrayLike, y: ArrayLike, data_range: float
) -> tuple[np.ndarray, np.ndarray]:
    x, y = _finite(x, "x"), _finite(y, "y")
    if x.shape != y.shape or x.ndim not in (3, 4):
        raise ValueError(
            "x and y must be image batches of one shape (n, h, w) or (n, h, w, channels), "
            f"got {x.shape} and {y.shape}"
        )
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")
    return x, y


def psnr(x: ArrayLike, y: ArrayLike, *, data_range: float = 1.0) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, in dB.

    Parameters
    ----------
    x, y : (n, h, w) or (n, h, w, channels)
        Images and their reconstructions.
    data_range : float
        The largest possible difference of two pixels: 1 for [0, 1], 255 for bytes.

    Returns
    -------
    (n,) float64
        Infinite for an exact reconstruction.

    Raises
    ------
    ValueError
        For NaN, unequal shapes or a `data_range` that is not positive.

    Notes
    -----
    Santos thesis eqs. 2.31-2.32.
    """
    x, y = _image_pair(x, y, data_range)
    error = ((x - y) ** 2).reshape(len(x), -1).mean(axis=1)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(data_range**2 / error)


def ssim(x: ArrayLike, y: ArrayLike, *, data_range: float = 1.0) -> np.ndarray:
    """Structural similarity of each image.

    Gaussian windows of 11 x 11 pixels (sigma 1.5), averaged over all windows that lie inside the
    image and over channels, with Wang's constants .01 and .03 (scikit-image's reading; torchmetrics
    also averages windows over a mirrored border).

    Parameters
    ----------
    x, y : (n, h, w) or (n, h, w, channels)
        At least 11 pixels high and wide.
    data_range : float
        The largest possible difference of two pixels: 1 for [0, 1], 255 for bytes.

    Returns
    -------
    (n,) float64 in [-1, 1]

    Raises
    ------
    ValueError
        For NaN, unequal shapes, images below 11 pixels or a `data_range` that is not positive.

    Notes
    -----
    Santos thesis eqs. 2.33-2.36: with c3 = c2 / 2 contrast and structure share a numerator, and
    the product of three factors becomes one of two.
    """
    x, y = _image_pair(x, y, data_range)
    margin = 5
    if min(x.shape[1:3]) < 2 * margin + 1:
        raise ValueError(f"SSIM needs images of 11 x 11 pixels or more, got {x.shape[1:3]}")
    sigma = (0, 1.5, 1.5) + (0,) * (x.ndim - 3)

    def blur(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, sigma, truncate=3.5)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    cov = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * cov + c2) / (var_x + var_y + c2)
    inside = (luminance * structure)[:, margin:-margin, margin:-margin]
    return inside.reshape(len(x), -1).mean(axis=1)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the normal laws fitted to two feature sets.

    With Inception features this is the FID. 0 means equal means and covariances, not equal sets.

    Parameters
    ----------
    x, y : (n, d), (m, d) floats
        More samples than features each: below that the covariance is singular and the distance
        is mostly sampling bias.

    Returns
    -------
    float, at least 0

    Raises
    ------
    ValueError
        For NaN, unequal widths, or no more samples than features.

    Notes
    -----
    Santos thesis eq. 2.37 with the *matrix* square root (errata S14). Its trace is the sum of
    singular values of the product of the two symmetric square roots, so no root of a product is
    taken, which rounding would turn complex.
    """
    x, y = _finite(x, "x"), _finite(y, "y")
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must be (n, d) and (m, d), got {x.shape} and {y.shape}")
    if min(len(x), len(y)) <= x.shape[1]:
        raise ValueError(
            f"{x.shape[1]} features need more than {x.shape[1]} samples a set, got {len(x)} and "
            f"{len(y)}: take more samples or fewer features"
        )
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    cross = np.linalg.svd(_sqrt_psd(cov_x) @ _sqrt_psd(cov_y), compute_uv=False).sum()
    gap = x.mean(axis=0) - y.mean(axis=0)
    return max(0.0, float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * cross))


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
