"""One training loop for every chapter: seeded, resumable, and the same on one or many processes."""

from latentspace.training.loop import batches, fit, pick_device, predict, seed_everything

__all__ = ["batches", "fit", "pick_device", "predict", "seed_everything"]
