"""CPU time of the mixture and of DeepDPM against the number of points and of clusters.

    python tests/benchmarks/dirichlet.py [--rounds 2]

Data are Gaussians in 10 dimensions, well apart. A round of EM, the moves and an epoch of DeepDPM's
networks are timed on one thread, each by its least CPU time of all rounds. Prints the tables and
exits with 1 if a cost grows faster than linearly in N, or in K (a factor of 1.3 is allowed for).
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

D, K, N = 10, 10, 20_000
SIZES, CLUSTERS = (10_000, 20_000, 40_000, 80_000), (5, 10, 20, 40)
SLACK = 1.3


def points(n, k):
    """``n`` points of ``k`` Gaussians with centres at random, and their labels, in double."""
    import torch

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(k, (n,), generator=generator)
    centres = 20 * torch.randn(k, D, generator=generator)
    x = centres[labels] + torch.randn(n, D, generator=generator)
    return x.double(), labels


def measure(n, k, rounds):
    """{piece: least CPU seconds} at ``n`` points and ``k`` clusters."""
    import torch

    from latentspace.deepdpm import DeepDPM
    from latentspace.dirichlet import e_step, label_statistics, sufficient_statistics
    from latentspace.dpm_networks import own_halves
    from latentspace.moves import best_halves, in_frames, merge, split

    x, labels = points(n, k)
    model = DeepDPM(random_state=0)
    fit = model._begin(x.numpy())  # of one cluster; the others are known
    fit.labels = labels
    model._m_step(fit, label_statistics(fit.x, labels, k))
    fit = model._prepared(fit)
    stats = label_statistics(fit.x, labels, k)
    halves = best_halves(fit.x, labels, stats, fit.prior, 10.0)
    r, _ = e_step(fit.x, *fit.mixture)
    nets = fit.subnetworks
    z = in_frames(fit.x.float(), labels, nets.centre, nets.whiten)
    generator = torch.Generator().manual_seed(0)
    pieces = {
        "E-step": lambda: e_step(fit.x, *fit.mixture),
        "M-step": lambda: model._m_step(fit, sufficient_statistics(fit.x, r)),
        "halves": lambda: best_halves(fit.x, labels, stats, fit.prior, 10.0),
        "splits": lambda: split(fit.x, labels, halves, k, fit.prior, 10.0, generator),
        "merges": lambda: merge(labels, stats, fit.prior, 10.0, generator),
        "training": lambda: model._train(fit),
        "frames": lambda: in_frames(fit.x.float(), labels, nets.centre, nets.whiten),
        "subnets": lambda: own_halves(nets, z, labels),
    }
    least = {}
    for name, piece in pieces.items():
        piece()
        seconds = []
        for _ in range(rounds):
            start = time.process_time()
            piece()
            seconds.append(time.process_time() - start)
        least[name] = min(seconds)
    return least


def table(title, values, results):
    """Print a row a piece; return the growth of each from the first to the last column."""
    print(f"\n{title}: CPU ms")
    print(f"  {'':10}" + "".join(f"{value:>10,}" for value in values) + f"{'growth':>10}")
    growth = {}
    for name in [*results[0], "all"]:
        row = [r[name] if name in r else sum(r.values()) for r in results]
        growth[name] = row[-1] / row[0]
        print(f"  {name:10}" + "".join(f"{1e3 * v:10.1f}" for v in row) + f"{growth[name]:10.1f}")
    return growth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each piece")
    rounds = parser.parse_args().rounds
    import torch

    torch.set_num_threads(1)
    by_n = table(f"K = {K}, by N", SIZES, [measure(n, K, rounds) for n in SIZES])
    by_k = table(f"N = {N:,}, by K", CLUSTERS, [measure(N, k, rounds) for k in CLUSTERS])
    failures = [
        f"{name} grows {growth['all']:.1f} times over {values[-1] // values[0]} times the {name}"
        for name, growth, values in (("points", by_n, SIZES), ("clusters", by_k, CLUSTERS))
        if growth["all"] > SLACK * values[-1] / values[0]
    ]
    print("\n" + ("\n".join(["MISSED", *failures]) if failures else "All targets are reached."))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
