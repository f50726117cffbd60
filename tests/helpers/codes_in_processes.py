"""Codes in each of several processes, then SwAV's command line: torchrun THIS FOLDER OPTIONS..."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from latentspace.swav import Network
from latentspace.train_swav import main

accelerator = Accelerator(cpu=True)
folder, rank = Path(sys.argv[1]), accelerator.process_index
torch.manual_seed(0)
network = Network(nn.Identity(), 4, 4, 3)
generator = torch.Generator().manual_seed(rank)
z = nn.functional.normalize(torch.randn(2, 7, 4, generator=generator) + 1, dim=-1)
codes = network.codes(z, 0.05, 3)
torch.save(
    {"z": z, "w": network.prototypes.weight.data, "codes": codes}, folder / f"codes{rank}.pt"
)
main(["colour-shapes", str(folder / "run"), "--split", "test", *sys.argv[2:]])
