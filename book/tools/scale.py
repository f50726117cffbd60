"""Count what the runs at the documents' scale cost, and keep it for the site: scale.py.

For each network of `paper_tasks`, on the CPU with a few random samples: the floating-point
operations of a training step (torch's counter: products and convolutions), the calls of operators
in it, and the bytes that it keeps for the way back. book/results/scale.json gets them; the page
turns them into GPU hours with the throughput of `make gpu`.
"""

import json
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from latentspace import linear
from latentspace.files import write_bytes
from paper_tasks import ROOT, Task, tasks

OUT = ROOT / "book" / "results" / "scale.json"
FEW, MORE = 4, 8  # samples; fewer than four have no density, and the views' codes need some


class Calls(TorchDispatchMode):
    """Counts the operators that are called, which a GPU launches one after the other."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.count += 1
        return function(*arguments, **(keywords or {}))


def kept_bytes(step: Callable[[], object]) -> int:
    """Bytes that a step keeps for the way back, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())


def count(task: Task) -> dict[str, object]:
    """What one sample, and one step, of the task cost."""
    device = torch.device("cpu")
    torch.manual_seed(0)
    few, more = (task.make(device, n, False) for n in (FEW, MORE))
    more()  # the optimizer makes its state in the first step
    with Calls() as calls:
        more()
    with FlopCounterMode(display=False) as flops:
        more()
    small, large = kept_bytes(few), kept_bytes(more)
    growth = max(0, large - small) / (MORE - FEW)
    return {
        "chapter": task.chapter, "name": task.name, "batch": task.batch,
        "samples": round(task.samples), "command": task.command, "trains": task.trains,
        "mflop": round(flops.get_total_flops() / MORE / 1e6, 3), "calls": calls.count,
        "kilobytes": round(growth / 1e3, 1),
        "fixed_megabytes": round((small - FEW * growth) / 1e6, 2),
    }  # fmt: skip


def main() -> None:
    linear.HERE = False  # the counter does not know oneDNN's products
    rows = [count(task) for task in tasks()]
    for row in rows:
        print(f"{row['chapter']:2} {row['name'][:60]:60} {row['mflop']:12.2f} {row['calls']:6}")
    write_bytes(OUT, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
    print(OUT)


if __name__ == "__main__":
    main()
