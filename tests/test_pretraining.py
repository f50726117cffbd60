"""From images to clusters: the steps by hand, what is kept, what is counted."""

import numpy as np
import pytest
import torch

from latentspace import pretraining
from latentspace.generative_autoencoders import mirrored_views, train_autoencoder
from latentspace.latent_size import latent_size
from latentspace.noise import density_clusters, embed
from latentspace.pretraining import codes_of, pretrain, trained


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSPACE_DATA", str(tmp_path))
    return tmp_path


def patches(n=90):
    """Images (n, 1, 8, 8) with a bright patch in one of three places."""
    x = 0.1 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i in range(n):
        x[i, 0, :4, 4 * (i % 2) : 4 * (i % 2) + 4 * (i % 3 > 0)] = 0.9
    return x


FAST = {"filters": 2, "epochs": 2, "batch_size": 30, "device": "cpu"}


def test_the_steps_by_hand():
    x = patches()
    done = pretrain(x, wide_dim=9, wide_epochs=1, seed=3, **FAST)
    shared = {"filters": 2, "batch_size": 30, "lr": 1e-3, "seed": 3, "device": "cpu"}
    wide, _ = train_autoencoder(x, 9, epochs=1, **shared)
    d = latent_size(wide(x).detach().numpy(), 0.9)
    codes = train_autoencoder(x, d, epochs=2, **shared)[0](x).detach().numpy()
    np.testing.assert_allclose(done.codes, codes, atol=1e-5)
    assert done.wide_codes.shape == (90, 9)
    points = embed(done.codes, seed=3)  # from the cache, so if the settings are these
    np.testing.assert_array_equal(done.points, points)
    found = density_clusters(points, cache=False)
    np.testing.assert_array_equal(done.found.labels, found.labels)


def test_a_given_length_and_no_embedding():
    done = pretrain(patches(), latent_dim=4, umap=False, **FAST)
    assert done.wide_codes is None
    assert done.codes.shape == (90, 4)
    assert done.points is done.codes


def test_weights_are_kept_by_images_and_settings(home, monkeypatch):
    x = patches()
    first = trained(x, 3, seed=1, **FAST)
    trained(x, 3, "AE", seed=1, **FAST)
    trained(x, 3, seed=1, views=lambda images, generator: images, **FAST)
    assert len(list((home / "weights").iterdir())) == 2
    mirrored = trained(x, 3, seed=1, views=mirrored_views, **FAST)
    monkeypatch.setattr(pretraining, "train_autoencoder", None)  # whoever trains now fails
    np.testing.assert_array_equal(codes_of(trained(x, 3, seed=1, **FAST), x), codes_of(first, x))
    again = trained(x, 3, seed=1, views=mirrored_views, **FAST)
    np.testing.assert_array_equal(codes_of(again, x), codes_of(mirrored, x))
    assert (codes_of(mirrored, x) != codes_of(first, x)).any()
    for changed in ({"seed": 2}, {"seed": 1, "lr": 0.1}, {"seed": 1, "cache": False}):
        with pytest.raises(TypeError):
            trained(x, 3, **FAST, **changed)
    with pytest.raises(TypeError):
        trained(x.flip(0), 3, seed=1, **FAST)


def test_a_damaged_file_is_made_anew(home):
    x = patches()
    codes = codes_of(trained(x, 3, seed=1, **FAST), x)
    (path,) = (home / "weights").iterdir()
    path.write_bytes(b"no weights")
    np.testing.assert_array_equal(codes_of(trained(x, 3, seed=1, **FAST), x), codes)
    assert path.stat().st_size > 1_000


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_constant_images_have_no_codes_to_count(grey):
    with pytest.raises(ValueError, match="do not vary"):
        pretrain(torch.full((20, 1, 8, 8), grey), wide_dim=9, wide_epochs=1, **FAST)


@pytest.mark.parametrize("shape", [(1, 7, 11), (3, 12, 9)])
def test_sides_that_are_no_powers_of_two_and_colours(shape):
    x = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0))
    done = pretrain(x, latent_dim=3, umap=False, **FAST)
    assert done.codes.shape == (60, 3) and np.isfinite(done.codes).all()
    assert done.network.decode(torch.zeros(1, 3)).shape == (1, *shape)


def test_images_that_are_all_refused():
    """Images of one kind, and fewer images than a smallest cluster holds, make no cluster."""
    for n in (3, 60):
        done = pretrain(patches(n)[:1].expand(n, -1, -1, -1), latent_dim=3, umap=False, **FAST)
        assert done.found.n_clusters == 0 and done.found.noise.all()
