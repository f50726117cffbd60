"""Clusters by density, and the images that belong to none: UMAP, HDBSCAN and its noise vector.

The thesis embeds an autoencoder's codes by UMAP and clusters the embedding by HDBSCAN, which gives
some points no cluster (3.3.2, 3.3.3, 4.4.2, 4.4.3). The two are the libraries umap-learn and
hdbscan; here are the thesis's settings, seeds, a cache, and three ways to give the refused points a
cluster after all.
"""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from latentspace.data import data_home
from latentspace.files import fingerprint, replacing

__all__ = [
    "DensityClusters", "density_clusters", "embed", "least_cluster", "n_neighbours",
    "nearest_cluster", "refused_to_nearest", "refused_to_softest",
]  # fmt: skip


class DensityClusters(NamedTuple):
    """What HDBSCAN says of n points."""

    labels: np.ndarray  # (n,) from 0 to K - 1; -1 where a point is refused
    strengths: np.ndarray  # (n,) in [0, 1]: how far inside its cluster; 0 where refused
    memberships: np.ndarray  # (n, K): share of each cluster, also for refused points
    births: np.ndarray  # (K,): mutual reachability distance at which it broke off from the rest

    @property
    def n_clusters(self) -> int:
        """K; 0 where all points are refused."""
        return self.memberships.shape[1]

    @property
    def noise(self) -> np.ndarray:
        """The noise vector: whether each point is refused, boolean (n,)."""
        return self.labels < 0


# --- the thesis's settings ------------------------------------------------------------------------


def n_neighbours(n: int) -> int:
    """UMAP's neighbours for ``n`` points: a 300th of them, at most 100 (eq. 3.6, corrected: S17).

    The thesis prints the maximum of the two, which is never below 100; its text says the
    minimum. At least 2, which UMAP needs; ValueError for less than 3 points.
    """
    if n < 3:
        raise ValueError(f"needs 3 points or more, got {n}")
    return max(2, min(n // 300, 100))


def least_cluster(n: int) -> int:
    """HDBSCAN's smallest cluster for ``n`` points: a 50th of them (thesis 4.4.3), at least 2."""
    return max(2, n // 50)


def embed(
    codes: ArrayLike,
    n_components: int | None = None,
    *,
    neighbours: int | None = None,
    min_dist: float = 0.0,
    metric: str = "manhattan",
    normalise: bool = True,
    seed: int = 0,
    cache: bool = True,
) -> np.ndarray:
    """Embed codes by UMAP.

    Parameters
    ----------
    codes : array (n, d), finite, n >= 4
    n_components : int, optional
        As many as the codes have by default (thesis 4.4.2); at most n - 2.
    neighbours : int, optional
        `n_neighbours` by default.
    min_dist : float
        Least distance of neighbours in the embedding. The thesis gives none.
    metric : str
        Of the codes.
    normalise : bool
        Divide each code by the sum of its absolute values first (4.4.2); a code of zeros stays.
    seed : int
        Makes the result repeatable; UMAP then uses one thread.
    cache : bool
        Keep it in the data home as ``embeddings/<key>.npz``, and read it from there. The key is a
        hash of the codes, of all settings and of umap-learn's version.

    Returns
    -------
    float32 array (n, n_components)

    Raises
    ------
    ValueError
        Codes of another shape, not finite or too few.
    """
    z = _points(codes, "codes", least=4)
    if normalise:
        size = np.abs(z).sum(1, keepdims=True)
        z = np.divide(z, size, out=np.zeros_like(z), where=size > 0)
    wanted = z.shape[1] if n_components is None else n_components
    if not 1 <= wanted <= len(z) - 2:
        raise ValueError(f"{wanted} components need {wanted + 2} points or more, got {len(z)}")
    settings = {
        "n_components": int(wanted), "n_neighbors": neighbours or n_neighbours(len(z)),
        "min_dist": float(min_dist), "metric": metric, "random_state": int(seed),
    }  # fmt: skip
    import umap  # compiles for seconds

    key = _key(z, settings | {"umap": umap.__version__})
    kept = _read(key, ("embedding",), len(z)) if cache else None
    if kept is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of one thread, and of its eigenvalue solver
            found = umap.UMAP(**settings, n_jobs=1).fit_transform(z)
        if not np.isfinite(found).all():
            raise ValueError("UMAP gives no finite embedding of these codes")
        kept = {"embedding": found.astype(np.float32)}
        if cache:
            _write(key, kept)
    return kept["embedding"]


def density_clusters(
    points: ArrayLike,
    *,
    min_cluster_size: int | None = None,
    min_samples: int | None = None,
    selection: str = "leaf",
    metric: str = "manhattan",
    cache: bool = True,
) -> DensityClusters:
    """Cluster points by HDBSCAN; some it refuses.

    Parameters
    ----------
    points : array (n, d), finite, n >= 2
    min_cluster_size : int, optional
        `least_cluster` by default.
    min_samples : int, optional
        Neighbours that decide how dense it is around a point; ``min_cluster_size`` by default, as
        in hdbscan.
    selection : {"leaf", "eom"}
        Which clusters of the tree are taken: the finest, or those that persist longest (excess of
        mass). The thesis calls "leaf" a way to make the spanning tree (S18).
    metric : str
        One of scikit-learn's KDTree.
    cache : bool
        As in `embed`.

    Returns
    -------
    DensityClusters
        Labels count from 0 in the order of the clusters' first points. Where HDBSCAN refuses
        everything, as it does where the tree never branches, there are no clusters. The order of
        the points matters only to those at a pass, which are equally near to two clusters.

    Raises
    ------
    ValueError
        Points of another shape or not finite, or settings out of range.
    """
    x = _points(points, "points", least=2)
    size = least_cluster(len(x)) if min_cluster_size is None else min_cluster_size
    samples = size if min_samples is None else min_samples
    if size < 2 or samples < 1 or selection not in ("leaf", "eom"):
        raise ValueError(
            "need min_cluster_size >= 2, min_samples >= 1 and 'leaf' or 'eom', "
            f"got {size}, {samples} and {selection!r}"
        )
    if size > len(x):  # hdbscan fails there
        return DensityClusters(*_nothing(len(x)))
    settings = {
        "min_cluster_size": int(size), "min_samples": int(min(samples, len(x) - 1)),
        "cluster_selection_method": selection, "metric": metric,
        "algorithm": "prims_kdtree",  # hdbscan's default gives some points another side of a tree
    }  # fmt: skip
    key, names = _key(x, settings), DensityClusters._fields
    kept = _read(key, names, len(x)) if cache else None
    if kept is None:
        kept = dict(zip(names, _hdbscan(x, settings), strict=True))
        if cache:
            _write(key, kept)
    return DensityClusters(**kept)


def _hdbscan(x: np.ndarray, settings: dict[str, Any]) -> tuple[np.ndarray, ...]:
    import hdbscan

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hdbscan.HDBSCAN(**settings, core_dist_n_jobs=1, prediction_data=True).fit(x)
        found, first = np.unique(model.labels_[model.labels_ >= 0], return_index=True)
        if not len(found):
            return _nothing(len(x))
        memberships = np.reshape(hdbscan.all_points_membership_vectors(model), (len(x), -1))
    # np.unique saw the points that have a cluster, in their order.
    order = found[np.argsort(first)]
    rank = np.full(len(found) + 1, -1)  # the last place is that of label -1
    rank[order] = np.arange(len(found))
    labels, merges = rank[model.labels_], model.single_linkage_tree_.to_numpy()
    births = [_birth(merges, np.flatnonzero(labels == k)) for k in range(len(found))]
    memberships = np.nan_to_num(memberships[:, order])
    return labels, model.probabilities_, memberships, np.array(births)


def _birth(merges: np.ndarray, members: np.ndarray) -> float:
    """The distance of the first merge of a cluster, which is a node of the tree, with others."""
    n = len(merges) + 1
    above = np.full(2 * n - 1, -1)
    above[merges[:, :2].astype(int)] = np.arange(n, 2 * n - 1)[:, None]
    node, size = members[0], 1
    while size < len(members):
        node = above[node]
        size = int(merges[node - n, 3])
    return float(merges[above[node] - n, 2])


def _nothing(n: int) -> tuple[np.ndarray, ...]:
    return np.full(n, -1), np.zeros(n), np.zeros((n, 0)), np.zeros(0)


# --- what to do with the refused ------------------------------------------------------------------


def nearest_cluster(points: ArrayLike, labels: ArrayLike, metric: str = "manhattan") -> np.ndarray:
    """The cluster of the nearest point that has one, for all ``points`` (n, d): (n,).

    A point with a label >= 0 keeps it. ValueError if no point has a cluster.
    """
    from sklearn.neighbors import KNeighborsClassifier

    x, y = _points(points, "points", least=1), np.array(labels)
    if y.shape != (len(x),):
        raise ValueError(f"labels must be ({len(x)},), got {y.shape}")
    has = y >= 0
    if not has.any():
        raise ValueError("no point has a cluster")
    if not has.all():
        nearest = KNeighborsClassifier(1, metric=metric).fit(x[has], y[has])
        y[~has] = nearest.predict(x[~has])
    return y


def refused_to_nearest(points: ArrayLike, found: DensityClusters) -> np.ndarray:
    """Labels (n,) in which each refused point has the cluster of its nearest labelled point."""
    return nearest_cluster(points, found.labels)


def refused_to_softest(found: DensityClusters) -> np.ndarray:
    """Labels (n,) in which each refused point has the cluster of its largest membership.

    ValueError if there are no clusters.
    """
    if not found.n_clusters:
        raise ValueError("no point has a cluster")
    return np.where(found.noise, found.memberships.argmax(1), found.labels)


# --- input and cache ------------------------------------------------------------------------------


def _points(points: ArrayLike, name: str, least: int) -> np.ndarray:
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or len(x) < least or x.shape[1] < 1 or not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite and (n >= {least}, d >= 1), got {x.shape}")
    return np.ascontiguousarray(x)


def _key(x: np.ndarray, settings: Mapping[str, Any]) -> str:
    text = " ".join(f"{name}={settings[name]!r}" for name in sorted(settings))
    return f"{fingerprint(x)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _read(key: str, names: tuple[str, ...], n: int) -> dict[str, np.ndarray] | None:
    """The kept arrays, or None if there are none or their file is damaged."""
    try:
        with np.load(data_home() / "embeddings" / f"{key}.npz", allow_pickle=False) as file:
            kept = {name: file[name] for name in names}
    except Exception:  # a zip file can be broken in many ways, and all mean: compute it again
        return None
    return kept if len(kept[names[0]]) == n else None


def _write(key: str, arrays: Mapping[str, Any]) -> None:
    folder = data_home() / "embeddings"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{key}.npz") as file:
            np.savez(file, **arrays)
    except OSError as error:
        warnings.warn(f"not kept in {folder}: {error}", stacklevel=3)
