"""Transformations of images against scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from latentspace.images import (
    affine_matrices,
    colour_jitter,
    random_affine,
    random_crop,
    random_light,
    random_shift,
    sobel,
    warp,
)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moved(x, angle=0.0, scale=1.0, shift=(0.0, 0.0)):
    one = torch.ones(len(x), dtype=torch.float64)
    shifts = torch.tensor(shift, dtype=torch.float64) * one[:, None]
    return warp(x, affine_matrices(angle * one, scale * one, shifts))


def test_whole_pixel_shift_goes_right_and_down():
    x = images(2, 3, 10, 10)
    found = moved(x, shift=(0.2, 0.1))  # of 10 pixels: 2 to the right, 1 down
    wanted = torch.zeros_like(x)
    wanted[..., 1:, 2:] = x[..., :-1, :-2]
    torch.testing.assert_close(found, wanted)


def test_quarter_turn_is_anticlockwise():
    x = images(1, 2, 7, 7)
    torch.testing.assert_close(moved(x, math.pi / 2), torch.rot90(x, 1, (2, 3)))


@pytest.mark.parametrize(
    ("angle", "scale", "shift"),
    [(0.3, 1.0, (0.0, 0.0)), (-0.5, 0.8, (0.1, -0.2)), (0.2, 1.3, (0.0, 0.1))],
)
def test_affine_against_scipy(angle, scale, shift):
    """In scipy's rows and columns: old = R (new - centre - shift) / scale + centre."""
    x, side = images(1, 1, 11, 11), 11
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    # Anticlockwise on a picture whose rows run down: the old place is turned clockwise.
    matrix = np.array([[c, s], [-s, c]])
    centre = np.array([(side - 1) / 2] * 2)
    offset = centre - matrix @ (centre + side * np.array(shift[::-1]))
    wanted = ndimage.affine_transform(
        x[0, 0].numpy(), matrix, offset, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(moved(x, angle, scale, shift)[0, 0].numpy(), wanted, atol=1e-9)


def test_random_affine_draws_within_its_range():
    """A picture of its own coordinates shows where each place came from."""
    n, side = 400, 32
    centre = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / side
    x = torch.stack(torch.meshgrid(centre, centre, indexing="ij")[::-1])[None].repeat(n, 1, 1, 1)
    options = {"degrees": 20.0, "scale": (0.8, 1.5), "shift": 0.1}
    found = random_affine(x, seeded(), border="border", **options)
    middle = found[:, :, side // 2 - 2 : side // 2 + 2, side // 2 - 2 : side // 2 + 2]
    right = (middle[..., 1:] - middle[..., :-1]).mean((2, 3)) * side  # (n, 2): one step right
    angle = torch.atan2(right[:, 1], right[:, 0])
    scale = 1 / right.norm(dim=1)
    assert 0.9 * 20 < angle.abs().max().rad2deg() <= 20 + 1e-6
    assert 0.8 - 1e-6 <= scale.min() < 0.82
    assert 1.45 < scale.max() <= 1.5 + 1e-6
    assert abs((scale.log() < math.log(0.8 * 1.5) / 2).double().mean() - 0.5) < 0.1
    back = torch.stack([torch.cos(angle), torch.sin(angle), -torch.sin(angle), torch.cos(angle)], 1)
    shift = -scale[:, None] * torch.einsum("nij,ni->nj", back.view(n, 2, 2).mT, middle.mean((2, 3)))
    assert 0.09 < shift.abs().max() <= 0.1 + 1e-6
    assert abs(np.corrcoef(angle, scale)[0, 1]) < 0.15


def test_random_affine_repeats_and_can_do_nothing():
    x = images(5, 2, 6, 6)
    torch.testing.assert_close(random_affine(x, seeded()), x)
    options = {"degrees": 10.0, "scale": (0.9, 1.1), "shift": 0.1}
    assert torch.equal(
        random_affine(x, seeded(3), **options), random_affine(x, seeded(3), **options)
    )
    first = random_affine(x[:1].repeat(5, 1, 1, 1), seeded(3), **options)
    assert len({image.sum().item() for image in first}) == 5  # each image its own draw


def test_random_light_by_hand():
    x = 0.3 + 0.4 * images(300, 1, 4, 5)
    found = random_light(x, seeded(), brightness=0.1, contrast=0.25)
    mean, new = x.mean((1, 2, 3)), found.mean((1, 2, 3))
    factor = (found.flatten(1).std(1) / x.flatten(1).std(1)).log() / math.log(4 / 3)
    assert 0.97 < (new - mean).abs().max() / 0.1 <= 1 + 1e-9
    assert -1 - 1e-9 <= factor.min() < -0.97
    assert 0.97 < factor.max() <= 1 + 1e-9
    torch.testing.assert_close(
        (found - new.view(-1, 1, 1, 1)) / (4 / 3) ** factor.view(-1, 1, 1, 1),
        x - mean.view(-1, 1, 1, 1),
    )
    bright = random_light(images(50, 3, 4, 4), seeded(), brightness=2.0)
    assert bright.min() >= 0
    assert bright.max() <= 1


@pytest.mark.parametrize("change", [random_affine, random_light])
@pytest.mark.parametrize("bad", [torch.rand(3, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.uint8)])
def test_bad_images(change, bad):
    with pytest.raises(ValueError, match="floating point"):
        change(bad, seeded())


def test_bad_ranges():
    x = images(2, 1, 4, 4)
    for wrong in ({"degrees": -1.0}, {"shift": -0.1}, {"scale": (1.2, 1.0)}, {"scale": (0.0, 1.0)}):
        with pytest.raises(ValueError, match="rising"):
            random_affine(x, seeded(), **wrong)
    for wrong in ({"brightness": -1.0}, {"contrast": 1.0}, {"contrast": -0.1}):
        with pytest.raises(ValueError, match="brightness"):
            random_light(x, seeded(), **wrong)


# --- crops and colours ---


def ramps(n, height, width):
    """Images whose two channels are the coordinates, so that a crop tells where it is from."""
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.stack([x / width, y / height])
    return torch.tensor(image, dtype=torch.float32).expand(n, -1, -1, -1)


def test_crop_lies_inside_with_the_area_asked_for():
    crops = random_crop(ramps(400, 64, 64), 16, (0.1, 0.4), seeded()).numpy()
    middle = crops[:, :, 3:13, 3:13]  # away from the border, where the ramps are reflected
    across, down = (
        middle[:, 0, 0, -1] - middle[:, 0, 0, 0],
        middle[:, 1, -1, 0] - middle[:, 1, 0, 0],
    )
    across, down = across * 16 / 9, down * 16 / 9
    area = abs(across) * down
    assert area.min() > 0.099 and area.max() < 0.401
    assert area.min() < 0.12 and area.max() > 0.38
    ratio = abs(across) / down
    assert ratio.min() > 0.745 and ratio.max() < 1.34
    assert 150 < (across < 0).sum() < 250  # mirrored
    x, y = middle.mean((2, 3)).T
    assert (x - abs(across) / 2 > -1e-6).all() and (x + abs(across) / 2 < 1 + 1e-6).all()
    assert (y - down / 2 > -1e-6).all() and (y + down / 2 < 1 + 1e-6).all()
    assert x.std() > 0.1 and y.std() > 0.1


def test_whole_area_unflipped_is_the_image():
    whole = torch.rand(1, 3, 8, 8, generator=seeded())
    seeds = (random_crop(whole, 8, (1, 1), seeded(s), flip=False) for s in range(50))
    # The ratio of the sides still varies; clipped to the image, one side stays whole.
    assert min((crop - whole).abs().mean().item() for crop in seeds) < 0.02


@pytest.mark.parametrize("area", [(0, 0.5), (0.5, 0.2), (0.5, 1.2)])
def test_crop_bad_area(area):
    with pytest.raises(ValueError, match="area"):
        random_crop(torch.rand(1, 3, 8, 8), 4, area, seeded())


def test_colour_jitter_is_of_each_image_and_stays_in_range():
    x = torch.rand(300, 3, 4, 5, generator=seeded())
    changed = colour_jitter(x, seeded(), grey=0.3)
    assert changed.min() >= 0 and changed.max() <= 1
    grey = ((changed - changed[:, :1]).abs() < 1e-6).flatten(1).all(1)
    assert 60 < grey.sum() < 120
    torch.testing.assert_close(colour_jitter(x, seeded(), 0, 0), x)
    factors = changed.mean((1, 2, 3)) / x.mean((1, 2, 3))
    assert factors.min() > 0.5 and factors.max() < 1.5 and factors.std() > 0.1
    one_channel = colour_jitter(x[:, :1], seeded())
    assert one_channel.shape == (300, 1, 4, 5)


def test_random_shift_moves_each_image_as_a_whole():
    images = torch.rand(40, 2, 6, 9) + 0.1
    moved = random_shift(images, torch.Generator().manual_seed(3), by=2)
    seen = set()
    for before, after in zip(images, moved, strict=True):
        padded = torch.zeros(2, 10, 13)
        padded[:, 2:8, 2:11] = before
        fits = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(padded[:, i : i + 6, j : j + 9], after)
        ]
        assert len(fits) == 1
        seen.add(fits[0])
    assert len(seen) > 12  # of 25 shifts


def test_random_shift_flips_about_half():
    images = torch.rand(200, 1, 4, 5)
    moved = random_shift(images, torch.Generator().manual_seed(0), by=0, flip=True)
    same = (moved == images).flatten(1).all(1)
    mirrored = (moved == images.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("channels", [1, 3])
def test_sobel(channels):
    images = np.random.default_rng(0).random((2, channels, 6, 9))
    weights = [1.0] if channels == 1 else [0.299, 0.587, 0.114]
    grey = np.tensordot(weights, images, (0, 1))
    right = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    expected = [[ndimage.correlate(g, k, mode="nearest") for k in (right, right.T)] for g in grey]
    np.testing.assert_allclose(sobel(torch.tensor(images)), expected, atol=1e-12)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 4, 5, 5), torch.zeros(2, 5, 5), torch.zeros(2, 1, 5, 5, dtype=torch.uint8)],
)
def test_sobel_refuses_other_images(images):
    with pytest.raises(ValueError, match="float images"):
        sobel(images)
