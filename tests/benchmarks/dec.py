"""CPU time of an epoch of pretraining and of DEC, ours beside ClustPy's; needs `clustpy`.

    python tests/benchmarks/dec.py [--rounds 3] [--epochs 2] [--scores]

Both train the network 784-500-500-2000-10 on MNIST's 10,000 test images in batches of 256 with
Adam, on one thread. They take turns, and each keeps the least CPU time an epoch of all its rounds.
An epoch of ours includes a new target for all images; ClustPy makes one from each batch. With
``--scores`` both are also fitted at a small budget, 20 epochs of pretraining and 10 of DEC, and
their accuracies printed. Exits with 1 if DEC is less than 1.5 times as fast, or pretraining slower.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
TARGET, HIDDEN = 1.5, (500, 500, 2000)


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
    network = pretrain(torch.from_numpy(x), 10, HIDDEN, epochs=epochs, device="cpu")
    pretraining = (time.process_time() - start) / epochs
    marks = []
    model = DEC(autoencoder=network, epochs=epochs + 1, tol=0.0, n_init=1, random_state=0,
                device="cpu")  # fmt: skip
    model.fit(x, callback=lambda *_: marks.append(time.process_time()))
    return pretraining, (marks[-1] - marks[0]) / epochs


def theirs(x, epochs):
    """The same by ClustPy, from its own functions for the two parts."""
    import torch
    from clustpy.deep import get_dataloader
    from clustpy.deep.dec import _DEC_Module
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    torch.manual_seed(0)
    network = FeedforwardAutoencoder([x.shape[1], *HIDDEN, 10])
    loader = get_dataloader(x, 256, shuffle=True)
    start = time.process_time()
    network.fit(epochs, {"lr": 1e-3}, dataloader=loader)
    pretraining = (time.process_time() - start) / epochs
    module = _DEC_Module(network.encode(torch.from_numpy(x[:10])).detach().numpy(), 1.0)
    optimizer = torch.optim.Adam([*network.parameters(), *module.parameters()], 1e-3)
    start = time.process_time()
    module.fit(network, loader, epochs, torch.device("cpu"), optimizer, None, 1.0, 0.0)
    return pretraining, (time.process_time() - start) / epochs


def accuracies(x, y, seed):
    """ACC of both at a small budget."""
    from clustpy.deep import DEC as Theirs

    from latentspace.metrics import clustering_accuracy
    from latentspace.statdec import DEC

    model = DEC(pretrain_epochs=20, epochs=10, tol=0.0, random_state=seed, device="cpu").fit(x)
    peer = Theirs(10, pretrain_epochs=20, clustering_epochs=10, embedding_size=10,
                  pretrain_optimizer_params={"lr": 1e-3}, random_state=seed).fit(x)
    return clustering_accuracy(y, model.labels_), clustering_accuracy(y, peer.dec_labels_)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--scores", action="store_true")
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
        for seed in range(3):
            print("seed {}: ACC {:.3f}, ClustPy {:.3f}".format(seed, *accuracies(x, y, seed)))
    return not reached


if __name__ == "__main__":
    sys.exit(main())
