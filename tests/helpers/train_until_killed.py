"""A run that uses every source of randomness there is; test_training kills and restarts it.

python train_until_killed.py CHECKPOINT PAUSE
"""

import random
import sys
import time

import numpy as np
import torch
from torch import nn

from latentspace.training import batches, fit


def run(checkpoint=None, pause=0.0, epochs=12):
    """Return (weights, history) of a small network trained with noise from everywhere."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 6)).astype("float32")
    y = (x @ rng.normal(size=(6, 1)) + 0.3).astype("float32")
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)

    def step(model, batch, generator):
        time.sleep(pause)
        x, y = batch
        noise = torch.randn(x.shape, generator=generator) + random.random() + np.random.rand()
        return {"loss": (model(x + 0.1 * noise) - y).square().mean(), "noise": noise.mean()}

    history = fit(
        model,
        batches(x, y, batch_size=16),
        step,
        optimizer=optimizer,
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], gamma=0.5),
        seed=5,
        device="cpu",
        checkpoint=checkpoint,
        progress=False,
    )
    return model.state_dict(), history.to_dict("list")


if __name__ == "__main__":
    checkpoint, pause = sys.argv[1:]
    run(checkpoint, float(pause))
