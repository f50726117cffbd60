"""The estimator SwAV on small generated images."""

import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from latentspace import data, train_swav
from latentspace.images import image_tensor
from latentspace.metrics import nmi
from latentspace.swav import Network, SwAV, usage, views
from latentspace.training import checkpoints

HELPERS = Path(__file__).parent / "helpers"
IMAGES = data.load("colour-shapes", "test")
X = IMAGES.x[:96]
SMALL = {"n_prototypes": 8, "dim": 6, "global_size": 12, "local_size": 6, "epochs": 2,
         "batch_size": 32, "random_state": 0, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return SwAV(**SMALL, n_local=2, queue_length=40, freeze_steps=2).fit(X)


def test_what_it_returns(model):
    z, scores = model.transform(X), model.decision_function(X)
    assert z.shape == (96, 64) == (96, model.n_features_out_)
    assert scores.shape == (96, 8) and abs(scores).max() <= 1 + 1e-5
    np.testing.assert_array_equal(model.labels_, scores.argmax(1))
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    assert list(model.history_) == ["epoch", "loss", "usage"] and len(model.history_) == 2
    norms = model.network_.prototypes.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(8))
    assert model.network_.queue.full and int(model.network_.steps) == 6


def test_same_seed_same_numbers_bit_for_bit(model):
    np.random.seed(5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    again = clone(model).fit(X)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(again.transform(X), model.transform(X))
    other = clone(model).set_params(random_state=1).fit(X)
    assert not np.array_equal(other.transform(X), model.transform(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).labels_, model.labels_)


def test_bytes_and_floats_are_the_same_images(model):
    np.testing.assert_allclose(model.transform(X / 255.0), model.transform(X), atol=1e-5)
    fitted = clone(model).fit((X / 255.0).astype(np.float32))
    np.testing.assert_allclose(fitted.transform(X), model.transform(X), atol=1e-3)


def test_grey_images():
    grey = data.load("digits", "all").x[:40]
    model = SwAV(**SMALL).fit(grey)
    assert model.transform(grey[..., None]).shape == (40, 64)
    with pytest.raises(ValueError, match="3 channels.*fitted on 1"):
        model.transform(X)


def test_it_learns_shapes():
    """Clusters agree with the classes far better than those of the untrained network."""
    options = SMALL | {"n_prototypes": 24, "epochs": 12, "batch_size": 100, "dim": 16}
    images, y = IMAGES.x[:600], IMAGES.y[:600]
    trained = SwAV(**options, lr=0.2).fit(images)
    start = SwAV(**options | {"epochs": 1}, lr=1e-9).fit(images)
    assert trained.history_.loss.iloc[-1] < trained.history_.loss.iloc[0] - 0.3
    assert nmi(y, trained.labels_) > nmi(y, start.labels_) + 0.1


def test_frozen_prototypes_stay():
    torch.manual_seed(0)
    model = SwAV(**SMALL, freeze_steps=6)  # all of the run
    seen = []
    model.fit(X, callback=lambda epoch, net: seen.append(net.prototypes.weight.detach().clone()))
    torch.testing.assert_close(seen[0], seen[1])
    free = []
    clone(model).set_params(freeze_steps=3).fit(
        X, callback=lambda epoch, net: free.append(net.prototypes.weight.detach().clone())
    )
    torch.testing.assert_close(free[0], seen[0])
    assert (free[1] - free[0]).abs().max() > 1e-3


def test_queue_takes_part_in_the_codes():
    """With a queue of one kind of image at one prototype, new images are pushed away from it."""
    torch.manual_seed(0)
    net = Network(torch.nn.Identity(), 3, 3, 2, queue_length=6)
    with torch.no_grad():
        net.prototypes.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    tie = torch.nn.functional.normalize(torch.tensor([[1.0, 1, 1]]), dim=1)
    assert torch.allclose(net.codes(tie.expand(2, 1, 3), 0.5, 3), torch.tensor(0.5))
    net.queue.push(torch.tensor([1.0, 0, 0]).expand(2, 6, 3))
    codes = net.codes(tie.expand(2, 1, 3), 0.5, 3)
    assert codes.shape == (2, 1, 2)
    assert (codes[..., 1] > 0.7).all()
    assert torch.equal(net.queue.rows[0, 0], tie[0])


def test_views_come_view_by_view():
    """Pixels of each crop are of its own image: image i is grey of brightness i."""
    images = torch.arange(1, 6)[:, None, None, None].expand(5, 3, 10, 10) / 10
    generator = torch.Generator().manual_seed(0)
    large, small = views(images, generator, 8, 4, 3, (0.5, 1), (0.1, 0.2))
    assert large.shape == (10, 3, 8, 8) and small.shape == (15, 3, 4, 4)
    brightness = small.mean((1, 2, 3)).view(3, 5)
    for view in brightness:
        assert ((view / images[:, 0, 0, 0] - 1).abs() <= 0.41).all()
    assert views(images, generator, 8, 4, 0, (0.5, 1), (0.1, 0.2))[1] is None


def test_usage():
    assert usage(torch.tensor([[3.0, 1], [2, 0], [5, 4]])) == 0
    assert usage(torch.eye(4)) == pytest.approx(1)
    share = np.array([0.75, 0.25])
    mixed = usage(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]]))
    assert mixed == pytest.approx(-(share * np.log(share)).sum() / np.log(2), rel=1e-6)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        X[0, 0], X[..., :2], X[:0], X.astype(int), X.astype(float), 0.1 - X / 255.0,
        np.where(X > 250, np.nan, X / 255.0),
    ],
    ids=["2-d", "two channels", "none", "integers", "0..255 floats", "negative", "NaN"],
)  # fmt: skip
def test_bad_images(bad):
    with pytest.raises(ValueError, match="X must"):
        SwAV(**SMALL).fit(bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": 0}, {"epsilon": float("nan")}, {"temperature": -1}, {"n_prototypes": 1},
        {"dim": 0}, {"epochs": 0}, {"batch_size": 0}, {"n_local": -1}, {"lr": float("inf")},
        {"global_area": (0.5, 2)}, {"queue_length": -1}, {"backbone": "resnet9"},
        {"epochs": 1.5}, {"backbone": 3}, {"sinkhorn_iterations": 0}, {"weight_decay": -1.0},
    ],
    ids=str,
)  # fmt: skip
def test_bad_parameters(bad):
    with pytest.raises(ValueError):
        SwAV(**SMALL | bad).fit(X)


def test_one_image():
    with pytest.raises(ValueError, match="2 images or more"):
        SwAV(**SMALL).fit(X[:1])


def test_more_prototypes_than_images_in_a_batch_is_warned_of():
    with pytest.warns(UserWarning, match="32 features share 40 prototypes"):
        SwAV(**SMALL | {"n_prototypes": 40, "epochs": 1}).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SwAV(**SMALL | {"n_prototypes": 40, "epochs": 1, "queue_length": 8}).fit(X)


def test_identical_and_constant_images():
    same = np.repeat(X[:1], 40, 0)
    assert len(set(SwAV(**SMALL).fit(same).labels_)) == 1
    assert np.isfinite(SwAV(**SMALL).fit(np.zeros_like(same)).transform(same)).all()


def test_images_of_unequal_sides():
    assert SwAV(**SMALL).fit(X[:, :20]).transform(X[:5, :17]).shape == (5, 64)


def test_not_fitted():
    with pytest.raises(Exception, match="not fitted"):
        SwAV().transform(X)


def test_image_tensor_keeps_the_pixels():
    x = image_tensor(X[:2])
    assert x.shape == (2, 3, 32, 32)
    assert x[1, 2, 5, 9] == pytest.approx(X[1, 5, 9, 2] / 255)


# --- the command line -----------------------------------------------------------------------------

COMMAND = ["digits", "--split", "all", "--n-prototypes", "6", "--epochs", "3", "--backbone", "cnn",
           "--batch-size", "300", "--global-size", "8"]  # fmt: skip


def test_a_killed_command_continues(tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="accelerate (the extra `scale`) is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "deep" / "killed"
    train_swav.main([*COMMAND, str(whole)])

    save, seen = checkpoints.save, []

    def save_and_die(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save", save_and_die)
        train_swav.main([*COMMAND, str(killed)])
    monkeypatch.setattr(checkpoints, "save", lambda *a: seen.append(len(a[3])) or save(*a))
    train_swav.main([*COMMAND, str(killed)])
    assert seen == [2, 3]
    a, b = (torch.load(folder / "network.pt", weights_only=True) for folder in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a) and len(a) > 10
    texts = [(folder / "history.csv").read_text() for folder in (whole, killed)]
    assert texts[0] == texts[1] and texts[0].startswith("epoch,loss,usage\n1,")


def test_a_file_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("data were loaded"))
    (tmp_path / "file").write_text("mine")
    for bad in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SystemExit) as stop:
            train_swav.main(["digits", str(bad)])
        assert stop.value.code == 2
        assert f"{bad} is not a folder to write to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


# --- several processes ----------------------------------------------------------------------------


@pytest.mark.slow
def test_codes_of_two_processes_are_those_of_their_common_batch(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate (the extra `scale`) is not installed")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    lib = Path(__file__).parents[1] / "lib"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(lib)}
    small = ["--n-prototypes", "6", "--epochs", "1", "--batch-size", "100", "--global-size", "8"]
    done = subprocess.run(
        [sys.executable, *command, HELPERS / "codes_in_processes.py", tmp_path, *small],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    z, weight, together = (torch.load(tmp_path / "codes0.pt")[key] for key in ("z", "w", "codes"))
    other = torch.load(tmp_path / "codes1.pt")
    assert not torch.equal(z, other["z"])
    from latentspace.prototypes import sinkhorn

    common = torch.cat([z, other["z"]], 1)
    for view in range(2):
        expected = sinkhorn(common[view] @ weight.T, 0.05)
        torch.testing.assert_close(torch.cat([together, other["codes"]], 1)[view], expected)
        alone = sinkhorn(z[view] @ weight.T, 0.05)
        assert (alone - together[view]).abs().max() > 0.01
    assert (tmp_path / "run" / "network.pt").is_file()
    assert (tmp_path / "run" / "history.csv").read_text().startswith("epoch,loss,usage\n1,")
