"""Time of one EM step of the 2-D network beside a step of plain cross-entropy.

    python tests/benchmarks/mixture.py [--rounds 40]

The network is the thesis's, 2-32-32-10, the batch 128, the optimizer Adam; forward pass, loss,
backward pass and update are timed on one thread. The two take turns in short rounds of 25 steps,
and each keeps the least CPU time of all its rounds, so that other work on the machine favours
neither. Prints both and exits with 1 if the EM step takes more than 1.3 times the other.
"""

import argparse
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from latentspace.networks import mlp
from latentspace.neural_mixture import em_step
from latentspace.relevance import RelevanceNorm

TARGET, BATCH, STEPS = 1.3, 128, 25


def cross_entropy_step(model, batch, generator):
    x, y = batch
    return {"loss": F.cross_entropy(model(x), y)}


def contestant(step, normalized):
    """A function that trains for STEPS steps and returns the CPU seconds of one."""
    torch.manual_seed(0)
    model = mlp(2, 10)
    if normalized:
        model = nn.Sequential(model, RelevanceNorm(10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batch = torch.randn(BATCH, 2), torch.randint(10, (BATCH,))

    def seconds():
        start = time.process_time()
        for _ in range(STEPS):
            optimizer.zero_grad(set_to_none=True)
            step(model, batch, None)["loss"].backward()
            optimizer.step()
        return (time.process_time() - start) / STEPS

    seconds()  # warm-up
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    contestants = {
        "cross-entropy": contestant(cross_entropy_step, normalized=False),
        "mixture EM": contestant(em_step(), normalized=True),
    }
    least = dict.fromkeys(contestants, float("inf"))
    for _ in range(rounds):
        for name, seconds in contestants.items():
            least[name] = min(least[name], seconds())
    for name, value in least.items():
        print(f"{name:14} {value * 1e6:7.1f} us a step")
    ratio = least["mixture EM"] / least["cross-entropy"]
    print(
        f"ratio {ratio:.2f}, the target is {TARGET}: {'reached' if ratio <= TARGET else 'MISSED'}"
    )
    return ratio > TARGET


if __name__ == "__main__":
    sys.exit(main())
