"""One training loop for every chapter: seeded, resumable, and the same on one or many processes."""

from latentspace.training.loader import batches
from latentspace.training.loop import fit, predict, seed_everything
from latentspace.training.tensors import pick_device

__all__ = ["batches", "fit", "pick_device", "predict", "seed_everything"]
