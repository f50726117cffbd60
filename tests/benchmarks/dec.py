"""CPU time of an epoch of pretraining and of DEC, ours beside ClustPy's; needs `clustpy`.

    python tests/benchmarks/dec.py [--rounds 3] [--epochs 2] [--scores]

Both train the network 784-500-500-2000-10 with ReLU on MNIST's 10,000 test images in batches of 256
with Adam at the same rate, on one thread. They take turns, and each keeps the least CPU time an
epoch of all its rounds. An epoch of ours includes a new target for all images; ClustPy makes one
from each batch. With ``--scores`` one network is pretrained for 20 epochs, and from it and from
k-means with 20 starts both train DEC for 10, ours with either renewal of the target; their
accuracies are printed. Exits with 1 if DEC is less than 1.5 times as fast, or
pretraining slower.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
TARGET, HIDDEN, RATE = 1.5, (500, 500, 2000), 1e-3


def images():
    """MNIST's test images as rows, divided by their root mean square, and their labels."""
    import numpy as np

    from latentspace import data

    sample = data.load("mnist", "test")
    x = sample.x.reshape(len(sample.x), -1).astype(np.float32) / 255
    return x / np.sqrt(np.square(x, dtype=float).mean()).astype(np.float32), sample.y


def ours(x, epochs):
    """CPU seconds of one epoch: (pretraining, DEC)."""
    import torch

    from latentspace.autoencoders import pretrain
    from latentspace.statdec import DEC

    start = time.process_time()
    network = pretrain(torch.from_numpy(x), 10, HIDDEN, lr=RATE, epochs=epochs, device="cpu")
    pretraining = (time.process_time() - start) / epochs
    marks = []
    model = DEC(autoencoder=network, epochs=epochs + 1, lr=RATE, tol=0.0, n_init=1, random_state=0,
                device="cpu")  # fmt: skip
    model.fit(x, callback=lambda *_: marks.append(time.process_time()))
    return pretraining, (marks[-1] - marks[0]) / epochs


def their_network(x, seed):
    """ClustPy's autoencoder with ReLU, untrained."""
    import torch
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    torch.manual_seed(seed)
    return FeedforwardAutoencoder([x.shape[1], *HIDDEN, 10], activation_fn=torch.nn.ReLU)


def theirs(x, epochs):
    """The same by ClustPy, from its own functions for the two parts."""
    import torch
    from clustpy.deep import get_dataloader
    from clustpy.deep.dec import _DEC_Module

    network = their_network(x, 0)
    loader = get_dataloader(x, 256, shuffle=True)
    start = time.process_time()
    network.fit(epochs, {"lr": RATE}, dataloader=loader)
    pretraining = (time.process_time() - start) / epochs
    module = _DEC_Module(network.encode(torch.from_numpy(x[:10])).detach().numpy(), 1.0)
    optimizer = torch.optim.Adam([*network.parameters(), *module.parameters()], RATE)
    start = time.process_time()
    module.fit(network, loader, epochs, torch.device("cpu"), optimizer, None, 1.0, 0.0)
    return pretraining, (time.process_time() - start) / epochs


def accuracies(x, y, seed):
    """{(who, rate of DEC): ACC} at a small budget, all from one pretrained network, ours."""
    import torch
    from clustpy.deep import DEC as Theirs

    from latentspace.autoencoders import pretrain
    from latentspace.metrics import clustering_accuracy
    from latentspace.statdec import DEC

    network = pretrain(torch.from_numpy(x), 10, HIDDEN, lr=RATE, epochs=20, seed=seed, device="cpu")
    peers = their_network(x, seed)
    peers.encoder.block.load_state_dict(network.encoder.state_dict())
    peers.fitted = True  # so that it is not pretrained again
    found = {}
    for rate in (RATE, RATE / 10):  # our default and ClustPy's
        for renewal in ("epoch", "batch"):
            model = DEC(autoencoder=network, epochs=10, lr=rate, renewal=renewal, tol=0.0,
                        random_state=seed, device="cpu").fit(x)  # fmt: skip
            found[f"ours, each {renewal}", rate] = clustering_accuracy(y, model.labels_)
        peer = Theirs(10, neural_network=peers, clustering_epochs=10, random_state=seed,
                      clustering_optimizer_params={"lr": rate},
                      initial_clustering_params={"n_init": 20}, device="cpu").fit(x)  # fmt: skip
        found["ClustPy", rate] = clustering_accuracy(y, peer.dec_labels_)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    (x, y), least = images(), {}
    for _ in range(arguments.rounds):
        for name, run in (("ours", ours), ("ClustPy", theirs)):
            seconds = run(x, arguments.epochs)
            least[name] = list(map(min, seconds, least.get(name, seconds)))
    for name, (pretraining, dec) in least.items():
        print(f"{name:8} pretraining {pretraining:6.2f} s, DEC {dec:6.2f} s an epoch")
    ratios = [b / a for a, b in zip(least["ours"], least["ClustPy"], strict=True)]
    reached = ratios[1] >= TARGET and ratios[0] >= 1
    print(
        f"ClustPy takes {ratios[0]:.2f} times as long to pretrain, {ratios[1]:.2f} for DEC; "
        f"the target is 1 and {TARGET}: {'reached' if reached else 'MISSED'}"
    )
    if arguments.scores:
        found = [accuracies(x, y, seed) for seed in range(arguments.seeds)]
        for who, rate in found[0]:
            each = [scores[who, rate] for scores in found]
            print(f"{who:16} rate {rate:g}: ACC", *(f"{value:.3f}" for value in each))
    return not reached


if __name__ == "__main__":
    sys.exit(main())
