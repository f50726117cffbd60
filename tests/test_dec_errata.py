"""StatDEC's equations and tables as printed, against what must hold: errata D5 to D12, D14.

D1 to D4 are in test_dec.py, D6 and D8 also in test_statdec.py, D13 is in test_autoencoders.py.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs

from latentspace import data
from latentspace.dec import (
    ClusterStatistics,
    clustering_gradients,
    soft_assignment,
    target_distribution,
)
from latentspace.metrics import clustering_accuracy
from latentspace.statdec import DEC, StatDEC

KINDS = ["long-tailed 10", "long-tailed 100", "step 10", "step 100"]
CIFAR_10 = {  # Table I, accuracy on imbalanced CIFAR-10
    "StatDEC": [0.4831, 0.4106, 0.4872, 0.4511], "IDEC": [0.2533, 0.1703, 0.2604, 0.2136],
    "DEC": [0.2061, 0.1288, 0.2136, 0.1645], "VAE": [0.2173, 0.1362, 0.2071, 0.1753],
    "DAC": [0.2965, 0.2874, 0.2717, 0.2241], "DCCM": [0.2807, 0.2663, 0.243, 0.2091],
    "SCAN": [0.4052, 0.3431, 0.3478, 0.5057], "IIC": [0.3269, 0.3028, 0.2856, 0.3577],
    "LDAM": [0.6313, 0.6235, 0.7014, 0.6521], "Focal": [0.4089, 0.2959, 0.6062, 0.6521],
}  # fmt: skip
CIFAR_100 = {
    "StatDEC": [0.2365, 0.1843, 0.3716, 0.3502], "IIC": [0.2512, 0.1172, 0.2771, 0.2943],
    "LDAM": [0.4211, 0.4241, 0.4656, 0.6056],
}  # fmt: skip


class TestD5:
    """Gradients and steps of the decoder and the encoder, (9) to (13)."""

    def test_13_loses_its_sign(self):
        x = torch.tensor([0.9, -0.4, 1.3], dtype=torch.float64)
        theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        g = torch.sin(theta * x)  # any reconstruction that depends on one weight
        loss = (x - g).square().sum() / 6
        (true,) = torch.autograd.grad(loss, theta, retain_graph=True)
        parts = torch.stack([torch.autograd.grad(v, theta, retain_graph=True)[0] for v in g])
        printed = ((x - g) * parts).sum() / 3
        assert float(true) == pytest.approx(-float(printed))
        assert abs(float(true)) > 0.01

    def test_11_is_not_the_gradient_of_the_decoder(self):
        """It prints the clustering gradient, of another shape; the true one is that of (x - g)²."""
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(8, 2, generator=generator, dtype=torch.float64)
        x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
        weight = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        (true,) = torch.autograd.grad((x - z @ weight.T).square().sum(), weight)
        torch.testing.assert_close(true, -2 * (x - z @ weight.T).T.detach() @ z)
        centres = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        p = target_distribution(soft_assignment(z, centres))
        assert clustering_gradients(z, centres, p)[0].shape != true.shape

    def test_9_sums_a_sum(self):
        """(8) is a sum over i already; summed over i once more it grows with n squared."""
        generator = torch.Generator().manual_seed(1)
        centres = torch.randn(3, 2, generator=generator, dtype=torch.float64)
        z = torch.randn(20, 2, generator=generator, dtype=torch.float64)
        steps = []
        for points in (z, torch.cat([z, z])):  # the same cloud, each point twice
            p = target_distribution(soft_assignment(points, centres))
            of_centres = clustering_gradients(points, centres, p)[1]
            steps.append((of_centres, len(points) * of_centres))
        torch.testing.assert_close(steps[1][0] / 40, steps[0][0] / 20)  # a mean does not change
        torch.testing.assert_close(steps[1][1] / 40, 2 * steps[0][1] / 20)  # the printed step does


class TestD6:
    """The target is renewed "only if" few labels change, and training ends by the KL loss."""

    def test_few_changes_end_the_training(self):
        x, _ = make_blobs(60, centers=[[0, 0], [6, 0]], random_state=0)
        small = {"n_clusters": 2, "latent_dim": 2, "hidden": (8, 8), "pretrain_epochs": 5,
                 "epochs": 6, "n_init": 2, "random_state": 0, "device": "cpu"}  # fmt: skip
        history = DEC(tol=0.05, **small).fit(x).history_
        assert (history["changed"][:-1] >= 0.05).all()
        assert len(history) == 6 or history["changed"].iloc[-1] < 0.05

    def test_a_small_loss_says_nothing_of_the_clusters(self):
        """Random groups on their own far centres: the divergence is nearly 0."""
        label = np.random.default_rng(0).integers(3, size=90)
        centres = 1e4 * torch.eye(3, dtype=torch.float64)
        q = soft_assignment(centres[torch.tensor(label)], centres)
        p = target_distribution(q)
        assert float((torch.special.xlogy(p, p / q)).sum(1).mean()) < 1e-6


class TestD7:
    """The ratio is defined as minority over majority, and used as majority over minority."""

    def test_counts_of_imbalanced_cifar(self):
        y = np.repeat(np.arange(10), 5_000)
        counts = [len(data.long_tailed(y, 10)), len(data.long_tailed(y, 100)),
                  len(data.step_imbalance(y, 10)), len(data.step_imbalance(y, 100))]  # fmt: skip
        assert counts == [20_431, 12_406, 27_500, 25_250]
        y = np.repeat(np.arange(100), 500)
        assert [len(data.long_tailed(y, ratio)) for ratio in (10, 100)] == [19_573, 10_847]

    def test_as_defined_it_is_below_one(self):
        with pytest.raises(ValueError, match="ratio"):
            data.long_tailed(np.repeat([0, 1], 50), 1 / 10)


def test_d8_centres_live_with_the_codes_and_K_stays():
    x, _ = make_blobs(60, n_features=7, centers=3, random_state=0)
    model = StatDEC(n_clusters=5, latent_dim=2, hidden=(8, 8), pretrain_epochs=3, epochs=3, tol=0.0,
                    random_state=0, device="cpu").fit(x)  # fmt: skip
    assert model.cluster_centers_.shape == (5, 2)
    q = model.predict_proba(x)  # a similarity: largest where the distance is least
    distance = np.linalg.norm(model.transform(x)[:, None] - model.cluster_centers_, axis=2)
    np.testing.assert_array_equal(q.argmax(1), distance.argmin(1))


class TestD9:
    """What the text says of the tables, and what they hold."""

    def test_statdec_is_not_best_on_long_tailed_cifar_100(self):
        assert CIFAR_100["IIC"][0] > CIFAR_100["StatDEC"][0]

    def test_a_more_severe_step_helps_several_rows(self):
        helped = [name for name, row in CIFAR_10.items() if row[3] > row[2]]
        assert helped == ["SCAN", "IIC", "Focal"]
        assert CIFAR_100["LDAM"][3] > CIFAR_100["LDAM"][2]

    def test_two_methods_share_a_number(self):
        assert CIFAR_10["LDAM"][3] == CIFAR_10["Focal"][3]

    def test_scan_is_best_on_step_only_at_100(self):
        rows = {m: row for m, row in CIFAR_10.items() if m not in ("LDAM", "Focal")}
        assert max(rows, key=lambda m: rows[m][2]) == "StatDEC"
        assert max(rows, key=lambda m: rows[m][3]) == "SCAN"

    def test_balanced_is_harder_than_imbalanced(self):
        assert CIFAR_100["StatDEC"][2] > 0.3501  # its balanced accuracy in Table II


def test_d10_pooling_needs_running_statistics():
    """A batch without a cluster leaves that cluster's statistics; one image has no variance."""
    pooling = ClusterStatistics(2, 1)
    pooling(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    assert float(pooling.mean[1]) == 0 and float(pooling.variance[1]) == 1
    before = float(pooling.variance[1])
    pooling(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]))
    assert float(pooling.variance[1]) == before and float(pooling.mean[1]) > 0


def test_d11_decs_target_depends_on_the_sizes():
    """Half way between two centres the target is for the cluster with fewer points."""
    centres = torch.tensor([[0.0], [4.0]], dtype=torch.float64)
    z = torch.tensor([[0.0]] * 90 + [[4.0]] * 9 + [[2.0]], dtype=torch.float64)
    q = soft_assignment(z, centres)
    assert float(q[-1, 0]) == pytest.approx(0.5)
    assert float(target_distribution(q)[-1, 1]) > 0.8
    alike = target_distribution(q, torch.ones(2, dtype=torch.float64))
    assert float(alike[-1, 1]) == pytest.approx(0.5)


def test_d12_one_cluster_beats_most_of_a_column():
    """On long-tailed images at ratio 100 one cluster for everything has .403."""
    y = np.repeat(np.arange(10), [int(5_000 * 100 ** (-i / 9) + 1e-6) for i in range(10)])
    floor = clustering_accuracy(y, np.zeros_like(y))
    assert floor == pytest.approx(0.403, abs=5e-4)
    column = {m: row[1] for m, row in CIFAR_10.items() if m not in ("LDAM", "Focal")}
    assert [m for m, value in column.items() if value > floor] == ["StatDEC"]


def test_d14_pooling_is_not_there_when_new_points_are_clustered():
    x, _ = make_blobs([40, 20], n_features=4, random_state=0)
    model = StatDEC(n_clusters=2, latent_dim=2, hidden=(8, 8), pretrain_epochs=3, epochs=2,
                    random_state=0, device="cpu").fit(x)  # fmt: skip
    before = model.predict_proba(x)
    for parameter in model.network_.pooled.parameters():
        torch.nn.init.normal_(parameter)
    np.testing.assert_array_equal(model.predict_proba(x), before)
