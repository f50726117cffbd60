"""The mean of a path's images on the task of `contexts`: how to take it away, and what it silences.

Both contexts of a task together may centre each other; the images of one alone do not.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentspace.contexts import GatedDense, Task

__all__ = ["centred", "context_means", "silent"]


def context_means(task: Task) -> Tensor:
    """The mean image of each context and seed, (2, s, d)."""
    weights = F.one_hot(task.context, 2).to(task.x.dtype)
    return torch.einsum("nsc,nsd->csd", weights / weights.sum(0), task.x)


def centred(task: Task, means: Tensor) -> Task:
    """The task with its context's mean image, from `context_means`, taken from each image."""
    return task._replace(x=task.x - means[task.context, torch.arange(means.shape[1])])


@torch.no_grad()
def silent(network: GatedDense, task: Task, share: float = 0.005) -> np.ndarray:
    """Units of the first layer, of all paths, that hardly any image wakes: a count a seed, (s,).

    A unit is silent if it is above 0 for less than ``share`` of the images that its path gets,
    those whose gate towards it is not 0.
    """
    x = task.x[:, :, None]
    g = network.gates[0](x, task.context)[:, :, 0]  # (n, s, k): the first router has one input
    units = network.layers[0]((g[..., None] * x).flatten(1, 2)).unflatten(1, g.shape[1:])
    comes = g > 0
    awake = ((units > 0) & comes[..., None]).sum(0) / comes.sum(0)[..., None]
    return (awake < share).sum((1, 2)).numpy()
