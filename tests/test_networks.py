"""The small image classifiers, against counts and loops."""

import pytest
import torch

from latentspace.networks import NAMES, classifier


@pytest.mark.parametrize(
    ("name", "channels", "size", "width"),
    [
        ("cnn", 1, 28, 64),
        ("cnn", 3, 32, 64),
        ("resnet8", 3, 32, 64),
        ("resnet8s", 3, 32, 64),
        ("resnet18", 1, 28, 512),
    ],
)
def test_shapes(name, channels, size, width):
    model = classifier(name, channels, 7).eval()
    x = torch.rand(2, channels, size, size + 4)
    assert model.features(x).shape == (2, width)
    assert torch.equal(model(x), model.head(model.features(x)))


def test_parameter_counts():
    """By hand: 9 in out weights a convolution, 2 out for its normalisation, Linear with bias."""

    def count(name, channels):
        return sum(p.numel() for p in classifier(name, channels, 10).parameters())

    conv = lambda i, o: 9 * i * o + 2 * o  # noqa: E731
    linear = lambda i, o: i * o + o  # noqa: E731
    assert count("cnn", 1) == conv(1, 16) + conv(16, 32) + linear(1568, 64) + linear(64, 10)
    blocks = [(16, 16), (16, 32), (32, 64)]
    expected = conv(3, 16) + sum(conv(i, o) + conv(o, o) for i, o in blocks) + linear(64, 10)
    assert count("resnet8", 3) == count("resnet8s", 3) == expected
    assert count("resnet18", 3) == 11_181_642  # torchvision's 11,689,512 with 10 classes for 1000


def test_shortcut_subsamples_and_pads():
    block = classifier("resnet8", 3, 2).body[4].eval()
    torch.nn.init.zeros_(block.branch[3].weight)
    x = torch.rand(2, 16, 9, 6)
    out = block(x)
    assert torch.equal(out[:, :16], x[:, :, ::2, ::2])
    assert not out[:, 16:].any()


def test_bad_names():
    with pytest.raises(ValueError, match="resnet8"):
        classifier("resnet9", 3, 10)
    with pytest.raises(ValueError, match="no pretrained"):
        classifier("cnn", 1, 10, pretrained=True)
    assert len(NAMES) == 5
