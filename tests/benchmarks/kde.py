"""Time and peak memory of the density loss beside plain autograd and KeOps.

    pip install -e '.[bench]' && python tests/benchmarks/kde.py [--rounds 3]

Each measurement is the mean log kernel density of n points at n other points, its value and its
gradients in both sets, in single precision on one thread. The contestants run in processes of
their own, so that each memory figure is its own; they take turns, and each keeps the least CPU
time of all its calls, so that other work on the machine favours none. Prints the tables and exits
with 1 if a target is missed: at n = 5,000 five times faster than plain autograd and twice as fast
as KeOps at d = 2, twice as fast as both at d = 10 (the fastest of the plain variants counts, on
the worse of two data sets), and memory that grows linearly to n = 50,000.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

DATA = ("normal", "mixture")
PLAIN = ("autograd, differences", "autograd, torch.cdist", "autograd, expanded square")
KEOPS, OURS = "KeOps", "latentspace"
TARGETS = {2: {PLAIN: 5, (KEOPS,): 2}, 10: {PLAIN: 2, (KEOPS,): 2}}  # by dimension
N = 5000
SIZES = (N, 10_000, 20_000, 50_000)
WARM_UP = 300  # rows


# --- inside a measuring process ---


def points(data, n, d):
    """Two samples of N(0, I), or of the two Gaussians at distance 6 from the origin."""
    import torch

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator)
    if data == "mixture":
        centres = 6 * torch.eye(2, d)
        x, y = (z + centres[torch.randint(2, (n,), generator=generator)] for z in (x, y))
    return x, y


def differences(x, y):
    return (x[:, None] - y[None]).square().sum(-1)


def cdist(x, y):
    import torch

    return torch.cdist(x, y).square()


def expanded(x, y):
    return x.square().sum(1)[:, None] - 2 * x @ y.T + y.square().sum(1)


def mean_log_density_of(method):
    """The method as a function of (x, y, h)."""
    if method == OURS:
        from latentspace.density import mean_log_density

        return mean_log_density
    if method == KEOPS:
        from pykeops.torch import LazyTensor

        def mean_log_sum(x, y, h):
            squares = ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
            return (-squares / (2 * h * h)).logsumexp(dim=1).mean()
    else:
        square = dict(zip(PLAIN, (differences, cdist, expanded), strict=True))[method]

        def mean_log_sum(x, y, h):
            return (-square(x, y) / (2 * h * h)).logsumexp(1).mean()

    def mean_log_density(x, y, h):
        d = x.shape[1]
        return mean_log_sum(x, y, h) - math.log(len(y) * (h * math.sqrt(2 * math.pi)) ** d)

    return mean_log_density


def peak_memory():
    """Largest resident size of this process so far, in MB."""
    if sys.platform == "linux":  # getrusage would count what the parent process held
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(s.split()[1]) for s in lines if s.startswith("VmHWM")) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def work(method, data, n, d):
    """Answer each line of stdin by one timed call, until stdin ends."""
    import torch

    torch.set_num_threads(1)
    function = mean_log_density_of(method)
    h = n ** (-1 / (d + 4))

    def call(x, y):
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = function(x, y, h)
        value.backward()
        return value.item(), x.grad.norm().item(), y.grad.norm().item()

    x, y = points(data, n, d)
    call(x[:WARM_UP], y[:WARM_UP])
    before = peak_memory()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        numbers = call(x, y)
        seconds = time.process_time() - start
        row = {"seconds": seconds, "memory": peak_memory() - before, "numbers": numbers}
        print(json.dumps(row), flush=True)


# --- the measuring one ---


class Contestant:
    """A process that measures one method on one problem."""

    def __init__(self, *problem):
        root = Path(__file__).resolve().parents[2]
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--work", *map(str, problem)],
            env=os.environ | threads | {"PYTHONPATH": str(root / "lib")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rows = []
        while (line := self.process.stdout.readline()) != "ready\n":  # KeOps talks on compiling
            if not line:
                sys.exit(f"{problem} failed before its first measurement")

    def measure(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.rows.append(json.loads(self.process.stdout.readline()))

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        return {
            "seconds": min(row["seconds"] for row in self.rows),
            "memory": max(row["memory"] for row in self.rows),
            "numbers": self.rows[0]["numbers"],
        }


def compare(data, d, rounds):
    """{method: measurement} at n = N, the methods taking turns."""
    methods = [*PLAIN, KEOPS, OURS]
    contestants = [Contestant(method, data, N, d) for method in methods]
    for _ in range(rounds):
        for contestant in contestants:
            contestant.measure()
    return {m: c.close() for m, c in zip(methods, contestants, strict=True)}


def report(data, d, results):
    """Print one comparison; return the failures."""
    print(f"\nn = {N:,}, d = {d}, {data}: value and both gradients")
    print(f"  {'':28}{'CPU s':>8}{'ours is':>12}{'peak MB':>10}")
    ours = results[OURS]
    for method, result in results.items():
        ratio = "" if method == OURS else f"{result['seconds'] / ours['seconds']:8.1f} x"
        print(f"  {method:28}{result['seconds']:8.3f}{ratio:>12}{result['memory']:10.0f}")
    failures = [
        f"d = {d}, {data}: {method} disagrees, {result['numbers']} and {ours['numbers']}"
        for method, result in results.items()
        for a, b in zip(result["numbers"], ours["numbers"], strict=True)
        if not math.isclose(a, b, rel_tol=1e-3)
    ]
    for methods, target in TARGETS[d].items():
        fastest = min(methods, key=lambda method: results[method]["seconds"])
        ratio = results[fastest]["seconds"] / ours["seconds"]
        if ratio < target:
            failures.append(f"d = {d}, {data}: {ratio:.1f} x {fastest}, the target is {target} x")
    return failures


def growth():
    """Print what larger samples cost ours; return the failures."""
    print(f"\n{OURS} alone, d = 2, mixture")
    heads = ("CPU s", "ns a pair", "peak MB", "KB a point", "matrix GB")
    print(f"  {'n':>8}" + "".join(f"{head:>12}" for head in heads))
    memory = {}
    for n in SIZES:
        contestant = Contestant(OURS, "mixture", n, 2)
        contestant.measure()
        result = contestant.close()
        memory[n] = result["memory"]
        pair, matrix = result["seconds"] / n**2 * 1e9, 4 * n**2 / 1e9
        row = (result["seconds"], pair, memory[n], memory[n] / n * 1024, matrix)
        print(f"  {n:8,}" + "".join(f"{value:12.2f}" for value in row))
    least, most = SIZES[0], SIZES[-1]
    # Ten times the points: at most ten times the memory, and 5 MB for the allocator's blocks.
    if memory[most] > most / least * memory[least] + 5 or memory[most] > 4 * most**2 / 2**20 / 50:
        return [f"memory grows faster than n: {memory}"]
    return []


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="calls of each contestant")
    parser.add_argument("--work", nargs=4, metavar=("METHOD", "DATA", "N", "D"))
    arguments = parser.parse_args()
    if arguments.work:
        method, data, n, d = arguments.work
        return work(method, data, int(n), int(d))
    failures = [
        failure
        for d in TARGETS
        for data in DATA
        for failure in report(data, d, compare(data, d, arguments.rounds))
    ]
    failures += growth()
    print("\n" + ("\n".join(["MISSED", *failures]) if failures else "All targets are reached."))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
