"""Each context's mean image, and the units that it silences."""

import torch
from sklearn.datasets import load_digits

from latentspace.centring import centred, context_means, silent
from latentspace.contexts import ConstantGates, GatedDense, IdealGates, Task, draw_task, permuted

DIGITS = load_digits()
IMAGES, LABELS = DIGITS.images / 16, DIGITS.target


def both(router, m, k, w):
    """Paths that never meet, each with the whole image."""
    return ConstantGates(torch.eye(2) if m > 1 else torch.ones(1, 2), 1)


def test_centred_takes_each_contexts_mean_image():
    train, test = draw_task(IMAGES, LABELS, [0, 1], 60, 5, permuted)
    means = context_means(train)
    less = centred(test, means)
    assert torch.equal(less.y, test.y)
    for s in range(2):
        for c in range(2):
            mean = train.x[train.context[:, s] == c, s].double().mean(0)
            rows = test.context[:, s] == c
            wanted = (test.x[rows, s].double() - mean).float()
            torch.testing.assert_close(less.x[rows, s], wanted, atol=1e-5, rtol=1e-5)


def test_silent_counts_by_the_images_of_a_path():
    gates = {"ideal": lambda r, m, k, w: IdealGates(m, k), "both": both}
    nets = {name: GatedDense([1, 2, 3], g, 1) for name, g in gates.items()}
    x = torch.tensor([1.0, 1, 1, -1])[:, None, None]
    task = Task(x, torch.zeros(4, 1).long(), torch.tensor([0, 0, 0, 1])[:, None])
    for net in nets.values():
        with torch.no_grad():  # in each path one unit for x > 0 and one for x < 0
            net.layers[0].weight[:] = torch.tensor([[[1.0, -1.0]], [[1.0, -1.0]]])
    # Path 0 gets the first three, path 1 the last: one unit of each never wakes.
    assert silent(nets["ideal"], task).tolist() == [2]
    assert silent(nets["both"], task).tolist() == [0]
    assert silent(nets["both"], task, share=0.3).tolist() == [2]
