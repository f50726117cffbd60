"""Throughput and peak memory of every network of the `paper.yaml` files, at its batch size.

    python tests/benchmarks/gpu.py [--device cuda] [--seconds 8] [--limit 480] [--batch N]

Each network takes whole training steps (forward, loss, backward, update; augmentation on the
device included) on random data that already lies on the device, for so many seconds after three
steps of warm-up, in single precision and, on CUDA, in mixed precision. Extractors take forward
passes. The records, with the device's name, go to book/results/gpu_throughput.json (on another
device than CUDA to a temporary folder) after every network; what does not fit into the limit is
named and left out. `--batch` replaces all batch sizes, to try this on a CPU. Needs torch, numpy,
pandas and scikit-learn, no data and no network; torchvision's networks only where it is installed.
"""

import argparse
import ast
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "lib"))

from latentspace import density, results  # noqa: E402
from latentspace.files import write_bytes  # noqa: E402
from latentspace.images import random_affine, random_shift  # noqa: E402
from latentspace.networks import Autoencoder, classifier, convnet, mlp  # noqa: E402
from latentspace.neural_mixture import em_step, two_fold_step  # noqa: E402
from latentspace.relevance import RelevanceNorm  # noqa: E402
from latentspace.swav import SwAV  # noqa: E402

WARM_UP = 3


class Task(NamedTuple):
    """A network at work: ``make(device, n, mixed)`` returns a function that takes one step."""

    document: str
    name: str
    batch: int
    make: Callable
    needs_torchvision: bool = False
    trains: bool = True


# --- the settings, from the chapters' parameter files ---------------------------------------------


def parameters(chapter: str) -> dict[str, object]:
    """The flat YAML of a parameter file, without a YAML library: scalars, [lists], - lists."""
    found: dict[str, object] = {}
    for line in (ROOT / "notebooks" / "params" / f"{chapter}.paper.yaml").read_text().splitlines():
        text = line.split(" #")[0].rstrip()
        if not text or text.startswith("#"):
            continue
        if text.lstrip().startswith("- "):
            found[key] = [*(found[key] or []), value(text.lstrip()[2:])]  # noqa: F821
        else:
            key, _, rest = text.partition(":")
            found[key] = value(rest.strip())
    return found


def value(text: str) -> object:
    if text.startswith("["):
        return [value(part.strip()) for part in text[1:-1].split(",")]
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text or None


# --- the steps ------------------------------------------------------------------------------------


def training(model, loss, optimizer, device, mixed):
    """A function that makes one update; ``loss()`` is computed under autocast if ``mixed``."""

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            value = loss()
        value.float().backward()
        optimizer.step()

    return step


def classify(name, channels, size, lr, device, n, mixed):
    model = classifier(name, channels, 10).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(n, channels, size, size, device=device)
    y = torch.arange(n, device=device) % 10

    def loss():
        return F.cross_entropy(model(random_shift(x, generator)), y)

    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9)
    return training(model, loss, optimizer, device, mixed)


def reshape(hidden, device, n, mixed):
    model = Autoencoder(512, 10, hidden).to(device).train()
    target = density.TargetMixture.on_axes(10, 10, 6.0, device)
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(n, 512, device=device)
    y = torch.arange(n, device=device) % 10

    def loss():
        latent, reconstructed = model(x)
        latent = latent.float()
        terms = (
            density.js_loss(latent, target.sample(n, generator), density.scott_bandwidth(n, 10)),
            density.centre_loss(latent, y, target.centres, 4.0),
            density.reconstruction_loss(x, reconstructed.float()),
        )
        return 0.7 * terms[0] + 0.1 * terms[1] + 0.2 * terms[2]

    return training(model, loss, torch.optim.Adam(model.parameters()), device, mixed)


def mixture(device, n, mixed):
    model = nn.Sequential(mlp(2, 10), RelevanceNorm(10)).to(device).train()
    x, step = torch.randn(n, 2, device=device), em_step()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return training(model, lambda: step(model, (x,), None)["loss"], optimizer, device, mixed)


def two_fold(plan, side, k, rate, ratio, device, n, mixed):
    model = nn.Sequential(convnet(plan, (side, side), k), RelevanceNorm(k)).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(n, 1 if side == 28 else 3, side, side, device=device)
    augment = partial(random_affine, degrees=10, scale=(0.8, 1.2), shift=0.1)
    step = two_fold_step(torch.optim.Adam(model.parameters(), rate), augment)
    optimizer = torch.optim.Adam(model.parameters(), ratio * rate)
    loss = lambda: step(model, (x,), generator)["loss"]  # noqa: E731
    return training(model, loss, optimizer, device, mixed)


def swav(options, size, device, n, mixed):
    model = SwAV(**options, device=device)
    x = torch.rand(n, 3, size, size)
    network = model._build(x).to(device).train()
    generator = torch.Generator(device).manual_seed(0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, nesterov=True)
    x = x.to(device)
    loss = lambda: model._step(network, (x,), generator)["loss"]  # noqa: E731
    return training(network, loss, optimizer, device, mixed)


def features(name, device, n, mixed):
    from torchvision.models import get_model

    model = get_model(name, weights=None)
    model.fc = nn.Identity()
    model, x = model.to(device).eval(), torch.rand(n, 3, 224, 224, device=device)

    def step():
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            model(x)

    return step


def tasks() -> list[Task]:
    """One for each network of the paper-scale runs."""
    kde, em, clustering, swapped, unknown = map(parameters, (
        "02_deepkde", "05_neural_mixtures", "06_clustering_images", "11_swapped_predictions",
        "12_unknown_k",
    ))  # fmt: skip
    lr = kde["primary_lr"]
    found = [
        Task("DeepKDE", f"{kde['digits_backbone']}, classifier, 28 to 224 pixels", 128,
             partial(classify, kde["digits_backbone"], 1, 28, lr), True),
        Task("DeepKDE", f"{kde['colours_backbone']}, classifier, 32 to 224 pixels", 128,
             partial(classify, kde["colours_backbone"], 3, 32, lr), True),
        Task("DeepKDE", "vit_b_16, classifier, 32 to 224 pixels", 128,
             partial(classify, "vit_b_16", 3, 32, lr), True),
        Task("DeepKDE", "autoencoder 512-" + "-".join(map(str, kde["hidden"])) + "-10",
             kde["reshape_batch"], partial(reshape, kde["hidden"])),
        Task("Neural mixtures", "cnn, classifier, 28 pixels", em["batch"],
             partial(classify, "cnn", 1, 28, 5e-3)),
        Task("Neural mixtures", "2-32-32-10, EM", em["batch"], mixture),
    ]  # fmt: skip
    for name, side, plan in zip(*(clustering[key] for key in ("sets", "sides", "plans")),
                                strict=True):  # fmt: skip
        k = 20 if name == "cifar100" else 10
        make = partial(two_fold, plan, side, k, clustering["rate"], clustering["ratio"])
        label = f"{plan}, two-fold EM, {name}, {side} pixels"
        found.append(Task("Neural mixtures", label, clustering["batch"], make))
    names = ("n_prototypes", "backbone", "n_local", "global_size", "local_size")
    options = {name: swapped[name] for name in names}
    label = f"{swapped['backbone']}, 2 + {swapped['n_local']} views of 32 and 16 pixels"
    found.append(Task("SwAV", label, swapped["batch_size"], partial(swav, options, 32)))
    label = f"{unknown['photos_by']}, features, 224 pixels"
    make = partial(features, unknown["photos_by"])
    return [*found, Task("DeepDPM", label, 16, make, True, False)]


# --- measuring ------------------------------------------------------------------------------------


def measure(task: Task, device: torch.device, n: int, mixed: bool, seconds: float):
    """(samples a second, peak memory in MB or None, seconds measured)."""
    cuda = device.type == "cuda"
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    step = task.make(device, n, mixed)
    for _ in range(WARM_UP):
        step()
    wait()
    start, steps, size = time.perf_counter(), 0, 1
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(size):  # a small step must not wait for the device each time
            step()
        wait()
        steps += size
        size = min(2 * size, 64)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else None
    return steps * n / elapsed, peak, elapsed


def records_of(task: Task, n: int, mixed: bool, device_name: str, speed, peak, elapsed):
    precision = "bfloat16 autocast" if mixed else "float32"
    work = "training" if task.trains else "forward passes"
    common = {
        "document": task.document, "item": "GPU throughput", "row": task.name,
        "setting": f"{work}, batch {n}, {precision}", "device": device_name, "seconds": elapsed,
    }  # fmt: skip
    yield results.record(metric="samples/s", ours=speed, **common)
    if peak is not None:
        memory = {"metric": "peak memory (MB)", "ours": peak, "higher_is_better": False}
        yield results.record(**memory, **common)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=8, help="for each measurement")
    parser.add_argument("--limit", type=float, default=480, help="seconds for everything")
    parser.add_argument("--batch", type=int, help="in place of every batch size")
    parser.add_argument("--out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    folder = ROOT / "book" / "results" if device.type == "cuda" else Path(tempfile.mkdtemp())
    out = arguments.out or folder / "gpu_throughput.json"
    torchvision = importlib.util.find_spec("torchvision") is not None
    started, records, failures = time.monotonic(), [], 0
    print(f"{device_name(device)}, torch {torch.__version__}, writing {out}")
    for task in tasks():
        if task.needs_torchvision and not torchvision:
            print(f"  left out, no torchvision: {task.name}", flush=True)
            continue
        for mixed in (False, True) if device.type == "cuda" else (False,):
            if time.monotonic() - started + arguments.seconds > arguments.limit:
                print(f"  left out, no time: {task.name}", flush=True)
                continue
            n = arguments.batch or task.batch
            try:
                found = measure(task, device, n, mixed, arguments.seconds)
            except RuntimeError as error:  # out of memory, on a smaller card
                failures += 1
                print(f"  FAILED {task.name}: {error}", flush=True)
                continue
            records += records_of(task, n, mixed, device_name(device), *found)
            text = json.dumps({"records": records}, indent=1, ensure_ascii=False) + "\n"
            write_bytes(out, text.encode())
            peak = "" if found[1] is None else f"{found[1]:9.0f} MB"
            kind = "bf16" if mixed else "fp32"
            print(f"  {task.name:70.70} {n:6} {kind} {found[0]:12,.0f} samples/s{peak}", flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
