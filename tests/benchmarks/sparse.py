"""Time of top-1 routing at inference beside a single path, on one thread.

    python tests/benchmarks/sparse.py [--rounds 8] [--batch 128]

The layers are BaseCNN's; each stage exists in 2, 4 or 8 versions of which an image uses one. The
contestants take turns, and each keeps the least CPU time of all its rounds, so that other work on
the machine favours none. The goal is 1.2 times a single path, whose arithmetic it is; exits with 1
if it is missed. Soft routers, which compute all paths, are shown beside it.
"""

import argparse
import sys
import time

import torch

from latentspace.multipath import BASE_CC, multipath
from latentspace.sparse import sparse_network

TARGET = 1.2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape, x = (3, 32, 32), torch.randn(options.batch, 3, 32, 32)
    models = {f"top-1 of {k}": sparse_network(BASE_CC, shape, 10, k) for k in (1, 2, 4, 8)}
    models |= {f"soft, {k} paths": multipath(BASE_CC, shape, 10, paths=k) for k in (2, 4)}
    least = dict.fromkeys(models, float("inf"))
    with torch.no_grad():
        for _ in range(options.rounds + 1):  # the first warms up, and is never the least
            for name, model in models.items():
                start = time.process_time()
                model.eval()(x)
                least[name] = min(least[name], time.process_time() - start)
    single = least["top-1 of 1"]
    for name, value in least.items():
        per_image = value / options.batch * 1e3
        print(f"{name:14} {per_image:6.2f} ms an image, {value / single:.2f} times a single path")
    ratio = max(least[f"top-1 of {k}"] for k in (2, 4, 8)) / single
    print(f"top-1 {ratio:.2f}, the goal is {TARGET}: {'held' if ratio <= TARGET else 'MISSED'}")
    return ratio > TARGET


if __name__ == "__main__":
    sys.exit(main())
