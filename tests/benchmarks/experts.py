"""Time of a training step of ten experts as one network beside a loop over ten networks.

    python tests/benchmarks/experts.py [--rounds 10] [--filters 4]

Ten stochastic autoencoders for images of 16 pixels, a batch of 100 that all of them see; forward
pass, evidence bound, backward pass and Adam on one thread. The two take turns, and each keeps the
least CPU time of all its rounds. Prints both and exits with 1 if the loop takes less than 1.5 times
the other: so it is with 4 filters. With 8, convolutions are a smaller part of both than BatchNorm
and Mish, which cost the same in one piece or in ten.
"""

import argparse
import sys
import time

import torch

from latentspace.dynamic_autoencoder import DynamicAutoencoder
from latentspace.experts import Experts, expert_errors
from latentspace.generative_autoencoders import KINDS, objective

TARGET, K, D, SHAPE = 1.5, 10, 12, (1, 16, 16)


def batched(x, filters):
    experts = Experts(SHAPE, [D] * K, filters).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(experts.parameters(), fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        expert_errors(experts, x, torch.randn(len(x), K, D)).mean(0).sum().backward()
        optimizer.step()

    return step


def loop(x, filters):
    networks = [
        DynamicAutoencoder(SHAPE, D, filters=filters).to(memory_format=torch.channels_last)
        for _ in range(K)
    ]
    optimizers = [torch.optim.Adam(network.parameters(), fused=True) for network in networks]

    def step():
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            objective(network, x, x, kind=KINDS["VAE"], l1=0.0)["loss"].backward()
            optimizer.step()

    return step


def seconds(step, count=4):
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--filters", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.rand(100, *SHAPE)
    steps = {"one network": batched(x, args.filters), "loop": loop(x, args.filters)}
    for step in steps.values():
        seconds(step, 2)
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(args.rounds):
        for name, step in steps.items():
            best[name] = min(best[name], seconds(step))
    ratio = best["loop"] / best["one network"]
    for name, time_ in best.items():
        print(f"{name}: {1e3 * time_:.1f} ms a step")
    print(f"the loop takes {ratio:.2f} times as long (wanted: {TARGET})")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
