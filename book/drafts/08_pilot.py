"""Pilot of chapter 08: does HDBSCAN find the ten digits of USPS, whatever the seed?

    python book/drafts/08_pilot.py OUT '{"epochs": 16, "lr": 1e-3, "restore": true}' 0 1 2

trains an autoencoder of `latentspace.generative_autoencoders.train_autoencoder` with these settings
for each seed, embeds its codes, clusters them by four settings of HDBSCAN and by a Gaussian mixture
that is told ten, and appends a line of JSON for each to OUT/pilot.jsonl, with the table of clusters
by digits and the births of the clusters. Codes and embeddings stay in OUT. Nothing is chosen here.
About 3 s an epoch on one thread (8 filters), and a minute for UMAP.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from latentspace import data
from latentspace.generative_autoencoders import train_autoencoder
from latentspace.images import image_tensor
from latentspace.latent_size import latent_size
from latentspace.metrics import clustering_accuracy
from latentspace.noise import density_clusters, embed, refused_to_nearest, refused_to_softest

HDBSCAN = {
    "leaf": {}, "leaf, 10 neighbours": {"min_samples": 10},
    "eom": {"selection": "eom"}, "eom, 10 neighbours": {"selection": "eom", "min_samples": 10},
}  # fmt: skip


def by_digit(labels: np.ndarray, y: np.ndarray) -> list[list[int]]:
    return [np.bincount(y[labels == k], minlength=10).tolist() for k in range(labels.max() + 1)]


def run(out: Path, settings: dict, seed: int) -> None:
    stored = data.gather("usps", ["train", "test"])
    images, y, started = image_tensor(stored.x), stored.y, time.process_time()

    def say(what: str, **values: object) -> None:
        row = {"settings": settings, "seed": seed, "what": what,
               "seconds": round(time.process_time() - started, 1)} | values  # fmt: skip
        print({name: value for name, value in row.items() if name != "table"}, flush=True)
        with open(out / "pilot.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    asked = {"latent_dim": 18, "filters": 8, "epochs": 25} | settings
    network, history = train_autoencoder(images, seed=seed, **asked)
    with torch.no_grad():
        codes = torch.cat([network(part) for part in images.split(1_000)]).numpy()
    say("trained", error=float(history["error"].iloc[-1]), components=latent_size(codes))
    points = embed(codes, seed=seed)
    np.savez(out / f"{time.time_ns()}-{seed}.npz", codes=codes, points=points)
    for name, choice in HDBSCAN.items():
        found = density_clusters(points, **choice)
        values = {"K": found.n_clusters, "refused": float(found.noise.mean())}
        if found.n_clusters:
            rest = ~found.noise
            values |= {
                "rest": clustering_accuracy(y[rest], found.labels[rest]),
                "nearest": clustering_accuracy(y, refused_to_nearest(points, found)),
                "softest": clustering_accuracy(y, refused_to_softest(found)),
                "births": found.births.round(3).tolist(), "table": by_digit(found.labels, y),
            }  # fmt: skip
        say(name, **values)
    told = GaussianMixture(10, n_init=10, random_state=seed).fit(points).predict(points)
    say("mixture told ten", all=clustering_accuracy(y, told), table=by_digit(told, y))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for each in sys.argv[3:]:
        run(folder, json.loads(sys.argv[2]), int(each))
