"""Features of more images than memory holds, from files to a file.

    python -m latentspace.extract_files resnet50 ~/imagenet/train features.npy

Two batches of images are in memory at a time. A run that was stopped, also by a loss of power,
goes on where it was: the rows so far are in ``features.npy.part``, and ``features.npy.json`` says
how many they are.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from latentspace.extractors import Extractor, extractor, identity
from latentspace.files import write_bytes
from latentspace.training import pick_device
from latentspace.training.progress import Line

__all__ = ["extract_files", "image_files"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}


def image_files(folder: str | Path) -> list[Path]:
    """All image files below a folder, sorted; ValueError if there is none."""
    folder = Path(folder)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise ValueError(f"there is no image in {folder}")
    return found


def extract_files(
    model: str | Extractor,
    files: Sequence[str | Path],
    out: str | Path,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    workers: int = 4,
    progress: bool = True,
) -> np.ndarray:
    """Write the features of image files, one row a file, into the array file ``out``.

    Parameters
    ----------
    model : str or Extractor
        A name for `extractors.extractor`, or what it returns.
    files : paths of images
        Of any sizes and modes; each is made RGB, resized and cropped by the extractor.
    out : path of a ``.npy`` file
        If it is there already, a ValueError: a finished file is never written over.
    batch_size : int
    device : str or torch.device, optional
        The best there is by default.
    workers : int
        Threads that read and resize.
    progress : bool
        Show a progress bar.

    Returns
    -------
    float32 array (n, width), mapped from the file and read-only

    Raises
    ------
    ValueError
        No file, one that is no image (the message names it; what was computed stays), features
        that are not finite, or an unfinished file of another model or of other images.
    """
    out, paths = Path(out), [Path(file) for file in files]
    if out.exists() or not paths or out.suffix != ".npy":
        raise ValueError(f"need files, and a new .npy file to write to; got {len(paths)} and {out}")
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be 1 or more, got {batch_size}, {workers}")
    model = extractor(model) if isinstance(model, str) else model
    device = pick_device(device)
    shape = (len(paths), model.width)
    run = {"model": identity(model), "files": _digest(paths), "width": model.width}
    part, state = out.with_name(f"{out.name}.part"), out.with_name(f"{out.name}.json")
    done = _resume(state, run)
    rows = np.lib.format.open_memmap(part, "r+" if done else "w+", np.float32, shape)
    model.to(device).eval()
    with Line(range(done, len(paths)), done, 1, progress) as line, torch.inference_mode():
        line.set_description_str(f"{model.name}: {len(paths):,} files")
        for start, images in _batches(model, paths, done, batch_size, workers):
            features = model(images.to(device)).float().cpu()
            if not features.isfinite().all():
                raise ValueError(f"{model.name} gives NaN or infinity from {paths[start]} on")
            done = start + len(images)
            rows[start:done] = features.numpy()
            rows.flush()
            write_bytes(state, json.dumps(run | {"done": done}).encode())
            line.update(len(images))
    os.replace(part, out)
    state.unlink()
    return np.load(out, mmap_mode="r")


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:12]


def _resume(state: Path, run: Mapping[str, object]) -> int:
    """How many rows are there already; ValueError if they belong to another run."""
    if not state.exists():
        return 0
    found = json.loads(state.read_text())
    done = found.pop("done")
    if found != run:
        raise ValueError(
            f"{state} belongs to another model or other files: delete it to start anew"
        )
    return done


def _batches(
    model: Extractor, files: Sequence[Path], start: int, size: int, workers: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Batches of fitted images from ``start`` on, the next one being read meanwhile."""

    def load(file: Path) -> torch.Tensor:
        return model.fit(_read(file))[0]

    with ThreadPoolExecutor(workers) as pool:
        ahead = pool.map(load, files[start : start + size])
        while start < len(files):
            images = torch.stack(list(ahead))
            ahead = pool.map(load, files[start + size : start + 2 * size])
            yield start, images
            start += size


def _read(file: Path) -> torch.Tensor:
    """One image (1, 3, H, W) in [0, 1]; ValueError with its name if it is none."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def main(arguments: Sequence[str] | None = None) -> None:
    """Extract a folder's features by these command-line arguments; exit status 1 if it cannot."""
    parser = argparse.ArgumentParser(
        prog="python -m latentspace.extract_files",
        description="Features of all images below a folder, one row a file in sorted order.",
    )
    parser.add_argument("model", help="resnet50, or another name that latentspace.extractors knows")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, help="the .npy file to write")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4, help="threads that read images")
    parser.add_argument("--device")
    given = parser.parse_args(arguments)
    try:
        features = extract_files(
            given.model, image_files(given.folder), given.out, given.batch_size, given.device,
            given.workers,
        )  # fmt: skip
    except (ValueError, FileNotFoundError, ImportError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{given.out}: {features.shape[0]:,} x {features.shape[1]:,}")


if __name__ == "__main__":
    main()
