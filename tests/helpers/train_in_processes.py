"""The same three runs in one process or, under torchrun, in several.

torchrun --standalone --nproc_per_node 2 train_in_processes.py FOLDER
"""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from latentspace.training import batches, fit


class TwoHeads(nn.Module):
    """The second head is used only by rows whose first entry exceeds 1.5, the third never."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 8)
        self.heads = nn.ModuleList(nn.Linear(8, 1) for _ in range(3))

    def predict(self, x):
        z = self.body(x).tanh()
        y, far = self.heads[0](z), x[:, 0] > 1.5
        if far.any():
            y = y.index_add(0, far.nonzero()[:, 0], self.heads[1](z[far]))
        return y


def step(model, batch, generator):
    x, y = batch
    error = model.predict(x) - y  # a method, not forward
    return {"loss": error.square().mean(), "mae": error.abs().mean()}


def train(kind, processes, accelerator=None, checkpoint=None, epochs=4):
    """Train with ``batch_size`` such that one and several processes share the global batch."""
    n = 64 if kind == "dataloader" else 70  # 70 = 4 batches of 16 and a rest of 6
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    y = x.square().sum(1, keepdim=True)
    # Each process builds other weights: those of the main process count.
    torch.manual_seed(0 if accelerator is None else accelerator.process_index)
    model = TwoHeads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    size = 16 // processes
    if kind == "dataloader":
        loader = DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)
    else:
        loader = batches(x, y, batch_size=size)
    history = fit(
        model,
        loader,
        step,
        optimizer=optimizer,
        epochs=epochs,
        seed=3,
        device=None if accelerator else "cpu",
        validate=lambda model: {"norm": model.body.weight.norm()},
        checkpoint=checkpoint,
        progress=False,
        accelerator=accelerator,
    )
    return model.state_dict(), history.to_dict("list")


if __name__ == "__main__":
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    folder, world = Path(sys.argv[1]), accelerator.num_processes
    runs = {kind: train(kind, world, accelerator) for kind in ("batches", "dataloader")}
    train("batches", world, accelerator, folder / "checkpoint.pt", epochs=2)
    accelerator.wait_for_everyone()
    runs["resumed"] = train("batches", world, accelerator, folder / "checkpoint.pt")
    torch.save((world, runs), folder / f"rank{accelerator.process_index}.pt")
    accelerator.end_training()
