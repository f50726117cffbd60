"""Features from files: equal to those from memory, bounded in memory, resumed after a stop."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from latentspace import extract_files as module
from latentspace.extract_files import extract_files, image_files, main
from latentspace.extractors import Extractor, extract

rng = np.random.default_rng(0)


class Body(nn.Module):
    """Four features, sums of pixels with fixed weights; counts images, stops when told to."""

    def __init__(self, stop_after=None):
        super().__init__()
        weights = np.random.default_rng(1).normal(size=(4, 3, 6, 6)).astype(np.float32)
        self.weights = nn.Parameter(torch.from_numpy(weights))
        self.seen, self.stop_after = 0, stop_after

    def forward(self, x):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        return torch.einsum("nchw,kchw->nk", x, self.weights)


def model(stop_after=None):
    return Extractor("small", Body(stop_after), 4, 6, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])


@pytest.fixture
def folder(tmp_path):
    """Eleven images in two classes, of several sizes and modes."""
    for i in range(11):
        place = tmp_path / "images" / f"class{i % 2}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6 + i % 3, 6 + i % 2, 3), np.uint8)
        image = Image.fromarray(pixels)
        image = image.convert({4: "L", 7: "RGBA"}.get(i, "RGB"))
        image.save(place / f"{i:02}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def pixels(file):
    with Image.open(file) as image:
        return np.array(image.convert("RGB"))


def test_rows_are_those_from_memory(folder, tmp_path):
    files = image_files(folder)
    order = [*range(0, 11, 2), *range(1, 11, 2)]  # by class
    assert [file.name for file in files] == [f"{i:02}.png" for i in order]
    features = extract_files(model(), files, tmp_path / "f.npy", 4, "cpu", progress=False)
    expected = [
        extract(model(), pixels(file)[None], device="cpu", cache=False, progress=False)[0]
        for file in files
    ]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
    assert features.dtype == np.float32
    assert not features.flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npy", "images"]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_stopped_run_goes_on(folder, tmp_path, workers):
    files, out = image_files(folder), tmp_path / "f.npy"
    whole = extract_files(model(), files, tmp_path / "whole.npy", 4, "cpu", progress=False)
    with pytest.raises(KeyboardInterrupt):
        extract_files(model(stop_after=8), files, out, 4, "cpu", workers, progress=False)
    assert not out.exists()
    assert json.loads((tmp_path / "f.npy.json").read_text())["done"] == 8
    again = model()
    features = extract_files(again, files, out, 2, "cpu", workers, progress=False)
    assert again.body.seen == 3
    np.testing.assert_allclose(features, whole, rtol=1e-6, atol=1e-6)


def test_no_more_than_two_batches_are_in_memory(folder, tmp_path, monkeypatch):
    files, lock = image_files(folder), threading.Lock()
    read, most, consumed = [0], [0], [0]
    original = module._read

    def counting(file):
        with lock:
            read[0] += 1
            most[0] = max(most[0], read[0] - consumed[0])
        return original(file)

    class Consumer(Body):
        def forward(self, x):
            with lock:
                consumed[0] += len(x)
            return super().forward(x)

    monkeypatch.setattr(module, "_read", counting)
    small = Extractor("small", Consumer(), 4, 6, [0.5] * 3, [0.5] * 3)
    extract_files(small, files, tmp_path / "f.npy", 2, "cpu", 4, progress=False)
    assert read[0] == 11
    assert 2 <= most[0] <= 4


def test_what_is_refused(folder, tmp_path):
    files, out = image_files(folder), tmp_path / "f.npy"
    (folder / "class1" / "12.png").write_text("broken")
    with pytest.raises(ValueError, match=r"12\.png cannot be read"):
        extract_files(model(), image_files(folder), out, 3, "cpu", progress=False)
    with pytest.raises(ValueError, match="other files"):  # 12 files then, 11 now
        extract_files(model(), files, out, 3, "cpu", progress=False)
    other = model()
    other.body.weights.data += 1
    with pytest.raises(ValueError, match="another model"):
        extract_files(other, image_files(folder), out, 3, "cpu", progress=False)
    (tmp_path / "f.npy.json").unlink()
    extract_files(model(), files, out, 3, "cpu", progress=False)
    for bad in ((files, out), ([], tmp_path / "g.npy"), (files, tmp_path / "g.txt")):
        with pytest.raises(ValueError, match="need files"):
            extract_files(model(), *bad, device="cpu")
    with pytest.raises(ValueError, match="1 or more"):
        extract_files(model(), files, tmp_path / "g.npy", 0, "cpu")
    with pytest.raises(ValueError, match="no image"):
        image_files(tmp_path / "none")


def test_features_that_are_not_finite(folder, tmp_path):
    bad = model()
    bad.body.weights.data[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity"):
        extract_files(bad, image_files(folder), tmp_path / "f.npy", 3, "cpu", progress=False)
    assert not (tmp_path / "f.npy").exists()


def test_command_line(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "extractor", lambda name: model())
    out = tmp_path / "f.npy"
    main(["small", str(folder), str(out), "--device", "cpu", "--batch-size", "5"])
    assert capsys.readouterr().out == f"{out}: 11 x 4\n"
    with pytest.raises(SystemExit) as stop:
        main(["small", str(folder), str(out), "--device", "cpu"])
    assert stop.value.code == 1
    assert "a new .npy file" in capsys.readouterr().err
