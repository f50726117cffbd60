"""Time of BaseCNN-2-CC beside BaseCNN, forward and backward, path by path and grouped.

    python tests/benchmarks/routing.py [--rounds 8] [--batch 32]

Both networks see the same batch on one thread. The contestants take turns, and each keeps the least
CPU time of all its rounds, so that other work on the machine favours none. The goal is 2.2 times
BaseCNN for BaseCNN-2-CC in its faster form, twice the arithmetic and a tenth for routing; exits
with 1 if it is missed. BaseCNN-2, the two paths without routers, shows what routing adds. For
BaseCNN-2-CP, whose predictions add arithmetic, there is no goal.
"""

import argparse
import sys
import time

import torch

from latentspace.multipath import network
from latentspace.parallel import ParallelConvolutions

TARGET = 2.2


def contestant(name: str, grouped: bool, x: torch.Tensor):
    """A function that goes forward and backward once and returns the CPU seconds."""
    torch.manual_seed(0)
    model = network(name)
    for module in model.modules():
        if isinstance(module, ParallelConvolutions):
            module.grouped = grouped

    def seconds():
        start = time.process_time()
        model(x).square().sum().backward()
        return time.process_time() - start

    seconds()  # warm-up
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(options.batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    contestants = {
        (name, grouped): contestant(name, grouped, x)
        for name in ("BaseCNN", "BaseCNN-2", "BaseCNN-2-CC", "BaseCNN-2-CP")
        for grouped in ((False,) if name == "BaseCNN" else (False, True))
    }
    least = dict.fromkeys(contestants, float("inf"))
    for _ in range(options.rounds):
        for key, seconds in contestants.items():
            least[key] = min(least[key], seconds())
    base = least["BaseCNN", False]
    for (name, grouped), value in least.items():
        form = "" if name == "BaseCNN" else "grouped" if grouped else "path by path"
        per_image = value / options.batch * 1e3
        print(f"{name:13} {form:13} {per_image:6.2f} ms an image, {value / base:.2f} times BaseCNN")
    ratio = min(least["BaseCNN-2-CC", grouped] for grouped in (False, True)) / base
    verdict = "held" if ratio <= TARGET else "MISSED"
    print(f"CC in its faster form {ratio:.2f}, the goal is {TARGET}: {verdict}")
    return ratio > TARGET


if __name__ == "__main__":
    sys.exit(main())
