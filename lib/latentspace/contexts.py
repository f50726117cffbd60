"""A task whose right routing is known, and networks to compare on it, many seeds at once.

Each image comes from one of two hidden contexts. A context changes the image (`inverted`,
`permuted`, `rotated`) and the label that goes with a shape, so that a router ought to send each
context its own way. `GatedDense` is a multi-path network of dense layers whose gates can be
exchanged: learned, constant, or *ideal*, which are told the context.

Tensors are (n, s, ...): image, seed. Networks of s seeds are trained side by side, since paths
that do not meet in a router do not meet at all. So ten trainings cost little more than one.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentspace.gates import watched
from latentspace.images import affine_matrices, warp
from latentspace.parallel import ParallelDense
from latentspace.routing import GateNetwork

__all__ = [
    "ConstantGates", "GatedDense", "IdealGates", "LearnedGates", "Striped", "Task", "accuracy",
    "draw_task", "inverted", "mean_loss", "permuted", "rotated", "separation", "striped", "thinned",
    "told", "train_at_best_rate", "train_together",
]  # fmt: skip

Change = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

# --- the task -------------------------------------------------------------------------------------


class Task(NamedTuple):
    """Pixels ``x`` (n, s, d) from -2 to 2, labels ``y`` (n, s) and contexts (n, s), 0 or 1."""

    x: Tensor
    y: Tensor
    context: Tensor


def draw_task(
    images: np.ndarray,
    labels: np.ndarray,
    seeds: list[int],
    train_n: int,
    test_n: int,
    change: Change,
    relabel: int = 1,
) -> tuple[Task, Task]:
    """Training and test images of each seed.

    Parameters
    ----------
    images : (N, height, width) bytes or floats in [0, 1]
    labels : (N,) classes from 0
    train_n, test_n : int
        Each seed draws so many images, none in both parts. A training image comes in one context,
        drawn at random, a test image in both, so that the test has 2 test_n rows.
    change : `inverted`, `permuted`, `rotated(angle)`, or such a function
        (images, contexts (n,), seed) to changed images.
    relabel : int
        In context 1 class y is called y + relabel, modulo the number of classes; 0 for no conflict.

    Raises
    ------
    ValueError
        There are fewer than train_n + test_n images.
    """
    if train_n + test_n > len(images):
        raise ValueError(f"{len(images)} images cannot give {train_n} and {test_n}")
    pixels = images / 255 if images.dtype == np.uint8 else np.asarray(images)
    count = int(labels.max()) + 1
    parts: tuple[list, list] = ([], [])
    for seed in seeds:
        rng = np.random.default_rng([seed, 3])
        rows = rng.permutation(len(images))
        train, test = rows[:train_n], np.tile(rows[train_n : train_n + test_n], 2)
        contexts = rng.integers(2, size=train_n), np.repeat([0, 1], test_n)
        for part, chosen, context in zip(parts, (train, test), contexts, strict=True):
            x = 4 * change(pixels[chosen], context, seed).reshape(len(chosen), -1) - 2
            y = (labels[chosen] + relabel * context) % count
            part.append((x.astype(np.float32), y, context))
    stacked = [
        Task(*(torch.tensor(np.stack(arrays, 1)) for arrays in zip(*part, strict=True)))
        for part in parts
    ]
    return stacked[0], stacked[1]


def inverted(images: np.ndarray, context: np.ndarray, seed: int) -> np.ndarray:
    """Context 1 is the negative: dark on light instead of light on dark."""
    return np.where(context[:, None, None] == 1, 1 - images, images)


def permuted(images: np.ndarray, context: np.ndarray, seed: int) -> np.ndarray:
    """Context 1 has its pixels in another order, the same for all images of a seed.

    To a dense layer the two contexts are then equally hard and have nothing in common.
    """
    flat = images.reshape(len(images), -1)
    order = np.random.default_rng([seed, 5]).permutation(flat.shape[1])
    return np.where(context[:, None] == 1, flat[:, order], flat).reshape(images.shape)


def rotated(angle: float) -> Change:
    """Context 1 is turned by ``angle`` degrees; at 0 nothing tells the contexts apart."""

    def change(images: np.ndarray, context: np.ndarray, seed: int) -> np.ndarray:
        turn = torch.tensor(np.radians(angle * context), dtype=torch.float32)
        matrices = affine_matrices(turn, torch.ones(len(turn)), torch.zeros(len(turn), 2))
        x = torch.tensor(images, dtype=torch.float32)[:, None]
        return warp(x, matrices)[:, 0].clamp(0, 1).numpy()

    return change


def told(task: Task, copies: int = 16) -> Task:
    """The task with the context among the pixels: so many more, -2 or 2.

    What a network gains by it is what knowing the context is worth without any routing.
    """
    marks = (4.0 * task.context - 2)[..., None].expand(-1, -1, copies)
    return task._replace(x=torch.cat([task.x, marks], -1))


def thinned(task: Task, share: float) -> Task:
    """The task with fewer images of context 1, so that they are ``share`` of each seed's images.

    0 < share <= 1/2, ValueError otherwise. All seeds keep as many images.
    """
    if not 0 < share <= 0.5:
        raise ValueError(f"share must lie in (0, 1/2], got {share}")
    most = int(torch.minimum((task.context == 0).sum(0), (task.context == 1).sum(0)).min())
    few = round(most * share / (1 - share))
    # Rows by context, in their order within each.
    order = [c.argsort(dim=0, stable=True) for c in (task.context, 1 - task.context)]
    rows = torch.cat([order[0][:most], order[1][:few]])
    column = torch.arange(rows.shape[1])
    return Task(task.x[rows, column], task.y[rows, column], task.context[rows, column])


class Striped(NamedTuple):
    """Images ``x`` (n, side, side) in [0, 1], labels ``y``, and what is in them, each (n,):
    the ``digit``, and whether the image is the ``negative`` and its stripes are ``standing``."""

    x: np.ndarray
    y: np.ndarray
    digit: np.ndarray
    negative: np.ndarray
    standing: np.ndarray


def striped(
    images: np.ndarray, labels: np.ndarray, seed: int, train_n: int, test_n: int
) -> tuple[Striped, Striped]:
    """Training and test images with two contexts at once, one in their mean and one not.

    A shape stands on stripes of half its brightness, two pixels wide, lying or standing, and the
    whole may be its own negative; both are drawn at random. A shape of class y is called
    y + negative + 2 standing, modulo the number of classes. The mean brightness tells the negative
    and not the stripes.

    ``images`` (N, side, side), bytes or floats in [0, 1], ``labels`` (N,) from 0. ValueError if
    there are fewer than train_n + test_n images.
    """
    if train_n + test_n > len(images):
        raise ValueError(f"{len(images)} images cannot give {train_n} and {test_n}")
    pixels = images / 255 if images.dtype == np.uint8 else np.asarray(images)
    rng, count, side = np.random.default_rng([seed, 7]), int(labels.max()) + 1, images.shape[1]
    rows = rng.permutation(len(images))[: train_n + test_n]
    negative, standing = rng.integers(2, size=(2, len(rows)))
    lying = np.tile(0.5 * (np.arange(side) // 2 % 2)[:, None], (1, side))
    ground = np.where(standing[:, None, None] == 1, lying.T, lying)
    x = np.maximum(pixels[rows], ground)
    x = np.where(negative[:, None, None] == 1, 1 - x, x)
    y = (labels[rows] + negative + 2 * standing) % count
    whole = Striped(x.astype(np.float32), y, labels[rows], negative, standing)
    train, test = slice(train_n), slice(train_n, None)
    return Striped(*(a[train] for a in whole)), Striped(*(a[test] for a in whole))


# --- gates ----------------------------------------------------------------------------------------


class LearnedGates(nn.Module):
    """Gate networks of m paths in each of s seeds, as in a `routing.CrossConnection`.

    Parameters
    ----------
    inputs, outputs, width, seeds : int
        m, k, channels of a path, s.
    scale : float
        Every gate is multiplied by it.
    own : float in (0, 1)
        With more than one input: the gates' bias starts so that a path keeps this share for the
        output of its own number, where the features say nothing. 1 / k changes nothing.

    ``forward``: paths (n, s, m, c) and contexts (n, s), which it does not look at, to gates
    (n, s, m, k).
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, seeds: int, scale: float = 1.0,
        own: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.seeds, self.scale = seeds, scale
        self.network = GateNetwork(seeds * inputs, outputs, width)
        if own is not None and inputs > 1:
            lead = np.log(own * (outputs - 1) / (1 - own)) * torch.eye(inputs, outputs)
            with torch.no_grad():
                self.network.scores.bias2 += lead.repeat(seeds, 1)[:, None]

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.scale * self.network(x.flatten(1, 2)).unflatten(1, (self.seeds, -1))


class ConstantGates(nn.Module):
    """The same gates (m, k) for every image: no routing, an average, or cross-stitch if trained."""

    def __init__(self, start: Tensor, seeds: int, trained: bool = False) -> None:
        super().__init__()
        self.gates = nn.Parameter(start.repeat(seeds, 1, 1), requires_grad=trained)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.gates.expand(len(x), -1, -1, -1)


class IdealGates(nn.Module):
    """All m paths of an image go to the output of its context."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        chosen = F.one_hot(context, self.outputs).to(x.dtype)
        return chosen[:, :, None].expand(-1, -1, self.inputs, -1)


# --- networks -------------------------------------------------------------------------------------


class GatedDense(nn.Module):
    """Dense layers in parallel paths, a router before each layer, the mean of the last outputs.

    Parameters
    ----------
    widths : sequence of int
        Pixels, units of the hidden layers of a path, classes.
    gates : callable (router, m, k, width) -> nn.Module
        Builds the gates of router 0, 1, ...; router 0 has one input.
    seeds : int
        s.
    paths : int
        k of every router.
    joined : bool
        A layer sees its gated inputs side by side instead of their sum, with a weight for each:
        cross-prediction, see `routing.spread`.

    ``forward``: pixels (n, s, d) and contexts (n, s) to logits (n, s, classes). The layers' weights
    are drawn before the gates', so that networks of the same widths and global seed share them.
    """

    def __init__(
        self,
        widths: list[int],
        gates: Callable[[int, int, int, int], nn.Module],
        seeds: int,
        paths: int = 2,
        joined: bool = False,
    ) -> None:
        super().__init__()
        self.seeds, self.joined = seeds, joined
        last, inputs = len(widths) - 2, [1] + [paths] * (len(widths) - 2)
        self.layers = nn.ModuleList(
            ParallelDense(seeds * paths, widths[i] * (m if joined else 1), widths[i + 1], i < last)
            for i, m in enumerate(inputs)
        )
        self.gates = nn.ModuleList(gates(i, m, paths, widths[i]) for i, m in enumerate(inputs))

    def forward(self, x: Tensor, context: Tensor, found: list[Tensor] | None = None) -> Tensor:
        """Logits; the gates of each router are appended to the list ``found``."""
        x = x[:, :, None]
        for gates, layer in zip(self.gates, self.layers, strict=True):
            g = gates(x, context)
            if found is not None:
                found.append(g)
            if self.joined:
                y = torch.einsum("nsmk,nsmc->nskmc", g, x).flatten(3)
            else:
                y = torch.einsum("nsmk,nsmc->nskc", g, x)
            x = layer(y.flatten(1, 2)).unflatten(1, (self.seeds, -1))
        return x.mean(2)


def train_together(
    network: GatedDense,
    task: Task,
    epochs: int,
    *,
    batch_size: int = 100,
    lr: float = 0.05,
    seed: int = 0,
    penalty: Callable[[list[Tensor]], Tensor] | None = None,
    callback: Callable[[int], None] | None = None,
) -> GatedDense:
    """SGD with momentum .9 on the sum of the seeds' losses: each seed is trained as if alone.

    The rate is a tenth after 40 % and a hundredth after 75 % of the epochs, weight decay 1e-4. Each
    seed shuffles its images every epoch; a last batch that is not full is left out.

    ``penalty`` takes the scores of all routers, each (n, s m, k) as `gates.watched` collects them,
    and gives what is added to a seed's loss: the mean over the seeds of what each is to pay.
    ``callback(epoch)`` follows each epoch (1, 2, ...). Comes back in evaluation mode.
    """
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr, 0.9, weight_decay=1e-4)
    milestones = [round(0.4 * epochs), round(0.75 * epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, 0.1)
    generator, column = torch.Generator().manual_seed(seed), torch.arange(network.seeds)
    for epoch in range(1, epochs + 1):
        network.train()
        order = torch.rand(task.y.shape, generator=generator).argsort(0)
        for rows in order.split(batch_size):
            if len(rows) < min(batch_size, len(order)):
                continue
            seen: AbstractContextManager = watched(network) if penalty else nullcontext([])
            with seen as scores:
                logits = network(task.x[rows, column], task.context[rows, column])
            loss = F.cross_entropy(logits.flatten(0, 1), task.y[rows, column].flatten())
            if penalty:
                loss = loss + penalty(scores)
            optimizer.zero_grad()
            (loss * network.seeds).backward()
            optimizer.step()
        schedule.step()
        network.eval()
        if callback:
            callback(epoch)
    return network


def train_at_best_rate(
    build: Callable[[], GatedDense],
    task: Task,
    epochs: int,
    rates: list[float],
    **options: Any,
) -> tuple[GatedDense, float]:
    """`train_together` at each rate; the network of least loss on its own training images.

    ``build`` makes the same untrained network each time. Returns the network and its rate; a
    network whose loss is not finite is never chosen. ValueError if all are such.
    """
    networks = {rate: train_together(build(), task, epochs, lr=rate, **options) for rate in rates}
    losses = {rate: mean_loss(network, task) for rate, network in networks.items()}
    best = min(losses, key=lambda rate: losses[rate])
    if losses[best] == np.inf:
        raise ValueError(f"no rate of {rates} has a finite loss")
    return networks[best], best


@torch.no_grad()
def mean_loss(network: GatedDense, task: Task) -> float:
    """Mean cross-entropy over images and seeds; infinite where it is not a number."""
    logits = network(task.x, task.context)
    loss = float(F.cross_entropy(logits.flatten(0, 1), task.y.flatten()))
    return loss if np.isfinite(loss) else np.inf


@torch.no_grad()
def accuracy(network: GatedDense, task: Task) -> np.ndarray:
    """Share of right answers of each seed (s,)."""
    guess = network(task.x, task.context).argmax(-1)
    return (guess == task.y).double().mean(0).numpy()


@torch.no_grad()
def separation(network: GatedDense, task: Task) -> np.ndarray:
    """How well each router tells the contexts apart, (routers, s), from 0 to 1.

    The distance between the mean gates of the two contexts, half the sum of absolute differences
    over the outputs, averaged over the inputs.
    """
    found: list[Tensor] = []
    network(task.x, task.context, found)
    first = (task.context == 0).float()[..., None, None]
    means = [((g * w).sum(0) / w.sum(0)) for g in found for w in (first, 1 - first)]
    pairs = zip(means[::2], means[1::2], strict=True)
    return np.stack([((a - b).abs().sum(-1) / 2).mean(-1).numpy() for a, b in pairs])
