"""Errata of the experts thesis that its own tables show: S19 to S23 and S25."""

import numpy as np
import pytest

# Silhouettes of Tables 4.1 to 4.5 (USPS, MNIST, FMNIST, COIL20, CIFAR10) and the sums of Table 4.6.
SILHOUETTES = {
    "AE": ([0.117, 0.069, 0.066, 0.073, -0.048], 0.028),
    "VAE": ([0.061, 0.023, 0.0009, 0.090, -0.053], 0.092),
    "Det WAE": ([0.040, 0.348, 0.009, 0.018, -0.006], 0.409),
    "Rand WAE": ([-0.031, 0.012, 0.014, 0.030, -0.005], 0.020),
    "beta-VAE": ([0.006, -0.025, 0.060, 0.258, -0.170], 0.129),
}
# Table 4.9 and 4.10: original, VAE, default UMAP, L1.
STEPS = {
    "USPS": (0.112, 0.161, 0.745, 0.768), "MNIST": (0.047, 0.072, 0.776, 0.748),
    "FMNIST": (0.049, 0.039, 0.248, 0.308), "CIFAR10": (-0.056, -0.044, -0.058, -0.056),
    "COIL20": (0.164, 0.200, 0.652, 0.598),
}  # fmt: skip


def test_s19_the_sizes_of_coil():
    """1,440 images of 72 each are twenty objects; Table 4.8 has 4,096 features."""
    assert 1440 / 72 == 20
    assert 64 * 64 == 4096 > 64 * 54


def test_s20_sums_of_silhouettes():
    sums = {name: (sum(each), printed) for name, (each, printed) in SILHOUETTES.items()}
    wrong = [name for name, (ours, printed) in sums.items() if abs(ours - printed) > 1e-3]
    assert wrong == ["AE", "VAE"]
    assert sum(SILHOUETTES["AE"][0]) == pytest.approx(0.277)
    assert sum(SILHOUETTES["VAE"][0]) == pytest.approx(0.1219)
    by_set = np.array([each for each, _ in SILHOUETTES.values()])
    assert list(SILHOUETTES)[by_set[:, 4].argmax()] == "Rand WAE"  # AE's -.048 is marked


def test_s21_the_row_without_augmentation_is_not_that_of_the_tables_before():
    without = [-0.061, 0.023, 0.014, 0.0009, -0.053]  # Table 4.7
    before = SILHOUETTES["VAE"][0]
    assert [k for k in range(5) if without[k] == before[k]] == [1, 4]
    assert without[0] == -before[0]
    assert without[2] == SILHOUETTES["Rand WAE"][0][2]
    assert without[3] == before[2]


def test_s22_some_steps_lower_the_silhouette():
    assert [name for name, row in STEPS.items() if row[1] < row[0]] == ["FMNIST"]
    assert [name for name, row in STEPS.items() if row[2] < row[1]] == ["CIFAR10"]


def test_s23_l1_is_not_better():
    assert [name for name, row in STEPS.items() if row[3] < row[2]] == ["MNIST", "COIL20"]
    default, l1 = np.array(list(STEPS.values()))[:, 2:].mean(0)
    assert default == pytest.approx(0.4726)
    assert l1 == pytest.approx(0.4732)


def test_s25_the_same_clusters_have_other_entropies():
    """USPS digits 0 and 1: equal numbers of points in both rows, entropies far apart."""
    gmm = {0: (1549, 3.795), 1: (1284, 1.911)}
    hdbscan = {0: (1549, 3.173), 1: (1284, 3.147)}
    for digit in (0, 1):
        assert gmm[digit][0] == hdbscan[digit][0]
        assert abs(gmm[digit][1] - hdbscan[digit][1]) > 0.6


def test_s25_labels_of_the_filtered_set_on_the_unfiltered_one():
    """A mean over clusters keeps its spread; with the slip it collapses to the set's mean."""
    rng = np.random.default_rng(0)
    labels = rng.integers(5, size=3_000)
    value = labels + 0.1 * rng.normal(size=3_000)
    noise = rng.random(3_000) < 0.03
    shorter = labels[~noise]
    right = [value[~noise][shorter == c].mean() for c in range(5)]
    slipped = [value[: len(shorter)][shorter == c].mean() for c in range(5)]
    assert np.std(right) > 1.4
    assert np.std(slipped) < 0.15
    assert np.mean(slipped) == pytest.approx(value.mean(), abs=0.1)
