"""Throughput and peak memory of every network of the `paper.yaml` files, at its batch size.

    python tests/benchmarks/gpu.py [--device cuda] [--seconds 6] [--limit 480] [--batch N]

Each network takes whole training steps (forward, loss, backward, update; augmentation on the
device included) on random data that already lies on the device, for so many seconds after three
steps of warm-up, in single precision and, on CUDA, in mixed precision. Extractors take forward
passes. The records, with the device's name, go to book/results/gpu_throughput.json (on another
device than CUDA to a temporary folder) after every network; what does not fit into the limit is
named and left out. `--batch` replaces all batch sizes, to try this on a CPU. Needs torch, numpy,
pandas and scikit-learn, no data and no network; torchvision's networks only where it is installed.
"""

import argparse
import importlib.util
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))

from latentspace import results  # noqa: E402
from latentspace.files import write_bytes  # noqa: E402
from paper_tasks import Task, tasks  # noqa: E402

WARM_UP = 3


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
        "document": f"chapter {task.chapter}", "item": "GPU throughput", "row": task.name,
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
    parser.add_argument("--seconds", type=float, default=6, help="for each measurement")
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
