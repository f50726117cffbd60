"""`fit` against loops written out by hand, killed runs, several processes and bad input."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchvision import models, ops

from latentspace.training import (
    batches,
    checkpoints,
    fit,
    loop,
    pick_device,
    predict,
    progress,
    seed_everything,
)
from latentspace.training.processes import Processes

pytestmark = pytest.mark.filterwarnings("error::UserWarning")

HELPERS = Path(__file__).parent / "helpers"
sys.path.insert(0, str(HELPERS))

X = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
Y = X.square().sum(1, keepdim=True)


def network(dropout=0.0, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1))


def step(model, batch, generator):
    x, y = batch
    return {"loss": (model(x) - y).square().mean(), "mae": (model(x) - y).abs().mean()}


def train(model=None, loader=None, step=step, optimizer=None, epochs=3, **options):
    """`fit` on the toy regression; returns (model, history)."""
    model = network() if model is None else model
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    loader = batches(X, Y, batch_size=16) if loader is None else loader
    options = {"device": "cpu", "progress": False} | options
    return model, fit(model, loader, step, optimizer=optimizer, epochs=epochs, **options)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --- The loop -------------------------------------------------------------------------------------


def test_a_loop_by_hand_gives_the_same_weights_and_means():
    model, history = train(step=noisy_step, epochs=4, seed=11)

    other = network()
    optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
    for epoch in range(1, 5):
        order = torch.Generator().manual_seed(checkpoints.seed_of(11, epoch, "order"))
        generator = torch.Generator().manual_seed(checkpoints.seed_of(11, epoch, "step"))
        losses = []
        for rows in torch.randperm(50, generator=order).split(16):
            x = X[rows] + 0.1 * torch.randn(len(rows), 4, generator=generator)
            loss = (other(x) - Y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(rows)  # 16, 16, 16 and 2 rows
        assert history["loss"][epoch - 1] == pytest.approx(np.mean(losses), rel=1e-12)
    assert same(model, other)
    assert list(history.columns) == ["epoch", "loss"]
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert history.attrs["seconds"] > 0


def noisy_step(model, batch, generator):
    x, y = batch
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return {"loss": (model(x) - y).square().mean()}


def test_the_seed_alone_decides():
    def run(seed):
        model, history = train(network(dropout=0.5), seed=seed)
        return model, list(history["loss"])

    model, losses = run(1)
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    again, losses_again = run(1)
    other, _ = run(2)
    assert same(model, again) and losses == losses_again
    assert not same(model, other)


def test_the_callers_random_states_come_back():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    seed_everything(3)
    expected = draw()
    seed_everything(3)
    train(network(dropout=0.5))
    assert draw() == expected
    with pytest.raises(FloatingPointError):
        seed_everything(3)
        train(network(dropout=0.5), batches(X, Y * torch.nan, batch_size=16))
    assert draw() == expected


@pytest.mark.parametrize("part, draws", [
    (nn.Dropout(0.1), True), (nn.Dropout(0.0), False), (nn.Linear(1, 1), False),
    (nn.TransformerEncoderLayer(4, 2, 4), True), (nn.MultiheadAttention(4, 2), False),
    (nn.MultiheadAttention(4, 2, dropout=0.2), True), (nn.LSTM(2, 2, 2, dropout=0.2), True),
    (nn.RReLU(), True), (ops.StochasticDepth(0.2, "row"), True), (models.resnet18(), False),
])  # fmt: skip
def test_global_states_are_seeded_for_what_has_no_other_source(part, draws):
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(part))
    assert checkpoints.draws_globally(model, batches(X, batch_size=2)) == draws
    assert checkpoints.draws_globally(model, DataLoader(TensorDataset(X)))


def test_nothing_global_is_touched_without_dropout(monkeypatch):
    """Not even for a moment: another thread would see it."""
    model = network()

    def touched(*_):
        raise AssertionError("a global random state was set")

    monkeypatch.setattr(random, "seed", touched)
    monkeypatch.setattr(np.random, "seed", touched)
    monkeypatch.setattr(np.random, "set_state", touched)
    monkeypatch.setattr(torch, "set_rng_state", touched)
    state = torch.get_rng_state()
    train(model, callback=lambda *_: torch.equal(torch.get_rng_state(), state) or touched())


def test_streams_of_one_epoch_differ():
    seeds = [
        checkpoints.seed_of(seed, epoch, stream, rank)
        for seed in (0, 1, 2**40)
        for epoch in (1, 2)
        for stream in ("order", "step", "global")
        for rank in (0, 1)
    ]
    assert len(set(seeds)) == len(seeds)


def test_no_epoch_changes_nothing():
    model, history = train(epochs=0)
    assert same(model, network())
    assert len(history) == 0 and list(history.columns) == ["epoch", "loss"]


def test_the_schedule_steps_once_an_epoch():
    model, rates = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(
        model,
        optimizer=optimizer,
        epochs=5,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1),
        callback=lambda epoch, model: rates.append(optimizer.param_groups[0]["lr"]),
    )
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001, 0.001])


def test_validate_and_callback_see_eval_mode():
    seen = []

    def validate(model):
        seen.append(("validate", model.training, torch.is_grad_enabled()))
        return {"score": torch.tensor(2.0), "other": np.float32(0.5)}

    def callback(epoch, model):
        seen.append((epoch, model.training, torch.is_grad_enabled()))

    def watching(model, batch, generator):
        assert model.training
        return step(model, batch, generator)

    model, history = train(step=watching, epochs=2, validate=validate, callback=callback)
    assert seen == [(who, False, who != "validate") for who in ("validate", 1, "validate", 2)]
    assert list(history.columns) == ["epoch", "loss", "mae", "score", "other"]
    assert list(history["score"]) == [2.0, 2.0] and not model.training


def test_logged_values_may_require_a_gradient():
    model = network()
    model.scale = nn.Parameter(torch.tensor(2.0))

    def step(model, batch, generator):
        loss = (model.scale * model(batch[0])).square().mean()
        return {"loss": loss, "scale": model.scale, "double": 2 * loss}

    torch.set_warn_always(True)  # else torch warns of a thing once in a process
    try:
        _, history = train(model, step=step, validate=lambda model: {"s": model.scale, "t": 1})
    finally:
        torch.set_warn_always(False)
    assert history["double"].tolist() == pytest.approx(2 * history["loss"])
    assert history["s"].iloc[-1] == model.scale.item()


def test_half_precision_scales_and_unscales(monkeypatch, tmp_path):
    """The float16 path, on the CPU: a scaled loss, an unscaled step."""

    def precision(mixed_precision, device):
        half = torch.autocast("cpu", torch.float16)
        return lambda: half, torch.amp.GradScaler("cpu", init_scale=256, enabled=mixed_precision)

    full, _ = train(epochs=6, mixed_precision=True)  # ignored on the CPU
    monkeypatch.setattr(loop, "_precision", precision)
    model, _ = train(epochs=6, mixed_precision=True)
    assert not same(model, full)
    for a, b in zip(model.parameters(), full.parameters(), strict=True):
        assert torch.allclose(a, b, atol=0.01)
    path = tmp_path / "half.pt"
    train(epochs=3, mixed_precision=True, checkpoint=path)
    resumed, _ = train(epochs=6, mixed_precision=True, checkpoint=path)
    assert same(model, resumed)


# --- Loaders --------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class Noisy(TensorDataset):
    def __getitem__(self, row):
        x, y = super().__getitem__(row)
        return x + torch.rand(()) + random.random(), y


@pytest.mark.parametrize("make", [
    lambda: batches(X, Y, batch_size=16),
    lambda: batches(X.numpy(), Y.numpy(), batch_size=16, drop_last=True),
    lambda: DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True),
    lambda: DataLoader(TensorDataset(X, Y), 16, shuffle=True, generator=torch.Generator()),
    lambda: DataLoader(Noisy(X, Y), batch_size=25, shuffle=True, num_workers=1),
    lambda: DataLoader(Stream(), batch_size=16),
    lambda: [(X[:20], Y[:20]), (X[20:], Y[20:])],
], ids=["batches", "drop_last", "dataloader", "generator", "worker", "stream", "list"])  # fmt: skip
def test_every_loader_is_exact_after_a_restart(make, tmp_path):
    model, history = train(loader=make(), epochs=3)
    train(loader=make(), epochs=1, checkpoint=tmp_path / "c.pt")
    resumed, again = train(loader=make(), epochs=3, checkpoint=tmp_path / "c.pt")
    assert same(model, resumed) and history.equals(again)


def test_shuffled_orders_change_between_epochs():
    for loader in (
        batches(torch.arange(50), batch_size=50),
        DataLoader(TensorDataset(torch.arange(50)), batch_size=50, shuffle=True),
    ):
        orders = []

        def step(model, batch, generator, orders=orders):
            orders.append(batch[0].tolist())
            return {"loss": model.weight.sum()}

        train(nn.Linear(1, 1), loader, step, epochs=2)
        assert orders[0] != orders[1]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))


def test_batches_rows_lengths_and_copies():
    x, y = np.arange(10.0)[:, None], np.arange(10)
    for batch_size, drop_last, sizes in [
        (4, False, [4, 4, 2]), (4, True, [4, 4]), (10, True, [10]), (99, False, [10]),
    ]:  # fmt: skip
        loader = batches(x, y, batch_size=batch_size, drop_last=drop_last)
        rows = list(loader)
        assert [len(b) for _, b in rows] == sizes and len(loader) == len(sizes)
        assert all(torch.equal(a[:, 0], b.double()) for a, b in rows)
    ordered = list(batches(x, y, batch_size=4, shuffle=False))
    assert torch.cat([b for _, b in ordered]).tolist() == list(range(10))
    ordered[0][0].zero_()
    assert x[3] == 3
    frozen = x[::-1]
    frozen.flags.writeable = False
    assert next(iter(batches(frozen, batch_size=2, shuffle=False)))[0].tolist() == [[9.0], [8.0]]


@pytest.mark.parametrize("n, size, parts", [(70, 8, 2), (70, 8, 3), (7, 2, 3), (6, 9, 4)])
def test_parts_of_batches_make_up_the_global_batches(n, size, parts):
    def part(number):
        loader = batches(np.arange(n), batch_size=size)
        loader.part, loader.parts = number, parts
        loader.generator.manual_seed(4)
        return [rows.tolist() for (rows,) in loader], len(loader)

    whole = batches(np.arange(n), batch_size=size * parts)
    whole.generator.manual_seed(4)
    shares = [part(number) for number in range(parts)]
    whole = [rows.tolist() for (rows,) in whole if len(rows) >= parts]
    for i, rows in enumerate(whole):
        together = sum((share[i] for share, _ in shares), [])
        assert together == rows[: len(rows) // parts * parts]
        assert len({len(share[i]) for share, _ in shares}) == 1
    assert all(len(share) == length == len(whole) for share, length in shares)


def test_batches_of_any_shape_reach_the_step():
    def step(model, batch, generator):
        assert batch["x"].shape == (5, 4) and batch["pair"][1] == "name"
        return {"loss": model(batch["x"]).mean()}

    _, history = train(loader=[{"x": X[:5], "pair": (Y[:5], "name")}], step=step, epochs=1)
    assert len(history) == 1
    train(loader=[X[:5]], step=lambda model, x, generator: {"loss": model(x).mean()}, epochs=1)


# --- Checkpoints ----------------------------------------------------------------------------------


def test_killed_and_resumed_equals_never_killed(tmp_path):
    from train_until_killed import run

    checkpoint = tmp_path / "checkpoint.pt"
    script = HELPERS / "train_until_killed.py"
    process = subprocess.Popen([sys.executable, script, checkpoint, "0.03"])
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed_after = len(torch.load(checkpoint, weights_only=True)["history"])
    assert 2 <= killed_after < 12

    expected, expected_history = run()
    weights, history = run(checkpoint)
    assert history == expected_history
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


def test_a_crash_between_checkpoints(tmp_path):
    def crash(epoch, model):
        if epoch == 4:
            raise KeyboardInterrupt

    options = {"epochs": 7, "seed": 2, "step": noisy_step}
    straight, history = train(**options)
    options |= {"checkpoint": tmp_path / "deep" / "c.pt"}
    with pytest.raises(KeyboardInterrupt):
        train(callback=crash, **options)
    seen = []
    model, again = train(callback=lambda epoch, model: seen.append(epoch), **options)
    assert seen == [4, 5, 6, 7]
    assert same(model, straight) and again.equals(history)
    assert os.listdir(tmp_path / "deep") == ["c.pt"]

    model, again = train(callback=crash, **options)  # complete: nothing is trained again
    assert same(model, straight) and again.equals(history)


def other_optimizer(**options):
    model = network()
    return {"model": model, "optimizer": torch.optim.Adam(model.parameters(), **options)}


@pytest.mark.parametrize("change, message", [
    (lambda: {"seed": 1}, "another seed: there 0, here 1"),
    (lambda: {"epochs": 1}, "holds 2 epochs, more than the 1"),
    (lambda: {"mixed_precision": True}, "another mixed_precision"),
    (lambda: {"loader": batches(X, Y, batch_size=8)}, "another batches"),
    (lambda: other_optimizer(lr=0.02), "another optimizer"),
    (lambda: {"model": network().double()}, "another parameters"),
    (lambda: {"model": nn.Linear(4, 1)}, "another parameters"),
    (lambda: {"model": (m := network()), "optimizer": torch.optim.SGD(m.parameters(), 0.01)},
     "another optimizer"),
    (lambda: (o := other_optimizer(lr=0.01)) | {
        "scheduler": torch.optim.lr_scheduler.ExponentialLR(o["optimizer"], 1.0)},
     "another optimizer|another scheduler"),
])  # fmt: skip
def test_a_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    path = tmp_path / "c.pt"
    train(epochs=2, checkpoint=path)
    before = path.read_bytes()
    change = change()
    model = change.setdefault("model", network())
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        train(**{"epochs": 4, "checkpoint": path} | change)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert path.read_bytes() == before


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("payload-was-run"),))


def test_an_unreadable_checkpoint_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(epochs=1, checkpoint="good.pt")
    Path("cut.pt").write_bytes(Path("good.pt").read_bytes()[:-100])
    Path("text.pt").write_text("not a checkpoint")
    Path("empty.pt").touch()
    torch.save({"settings": Payload()}, "payload.pt")
    torch.save({"weights": 1}, "foreign.pt")
    for name in ("cut", "text", "empty", "payload", "foreign"):
        with pytest.raises(ValueError, match=f"{name}.pt is not a readable checkpoint"):
            train(checkpoint=f"{name}.pt")
    assert not Path("payload-was-run").exists()


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    train(epochs=1, checkpoint=path)
    before = path.read_bytes()

    def full_disk(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        train(epochs=2, checkpoint=path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.pt"]


# --- Bad input ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_is_named_before_it_does_harm(tmp_path):
    y = Y.clone()
    y[37] = torch.inf
    model, path = network(), tmp_path / "c.pt"
    loader = batches(X, y, batch_size=16, shuffle=False)
    with pytest.raises(FloatingPointError, match="loss is inf in epoch 1, batch 3"):
        train(model, loader, checkpoint=path)
    assert all(p.isfinite().all() for p in model.parameters()) and not path.exists()

    with pytest.raises(FloatingPointError, match="epoch 2, batch 1"):
        train(
            loader=[(X, Y)],
            step=lambda model, batch, _: {"loss": next(values) * step(model, batch, _)["loss"]},
            **{"epochs": (values := iter([1.0, float("nan")])) and 3},
        )


def test_a_log_kept_on_a_gpu_is_checked_at_the_end_of_the_epoch():
    log = progress.Log(4, torch.device("cpu"))
    log.names, log.sizes = ["mae", "loss"], [2, 2, 2]
    log.values = [torch.tensor([torch.nan, value]) for value in (1.0, torch.inf, torch.nan)]
    with pytest.raises(FloatingPointError, match="loss is inf in epoch 4, batch 2"):
        log.means(None)


def test_a_gradient_that_is_not_finite_is_not_silent(tmp_path):
    def root(model, batch, generator):  # 0 has the square root 0, with slope infinity times 0
        return {"loss": (model(batch[0]) * 0).square().sum().sqrt()}

    path = tmp_path / "c.pt"
    with pytest.raises(FloatingPointError, match="a parameter is not finite after epoch 1"):
        train(loader=batches(X, batch_size=50), step=root, epochs=1, checkpoint=path)
    assert not path.exists()


def every(value):
    return lambda model, batch, generator: value


@pytest.mark.parametrize("options, message", [
    ({"epochs": -1}, "epochs must be an integer >= 0, got -1"),
    ({"epochs": 1.5}, "epochs must be an integer"),
    ({"seed": -1}, "seed must be an integer >= 0"),
    ({"validate": lambda model: {"mae": 1.0}}, r"validate logs \['mae'\]"),
    ({"loader": []}, "the loader yields no batch"),
    ({"loader": DataLoader(TensorDataset(X, Y), 64, drop_last=True)}, "larger than the data"),
    ({"loader": DataLoader(Stream(), 64, drop_last=True)}, "yields no batch in epoch 1"),
    ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)}, "not in model"),
    ({"step": every(torch.tensor(1.0))}, "must return a dict with 'loss', got tensor"),
    ({"step": every({"mae": 1.0})}, "must return a dict with 'loss'"),
    ({"step": every({"loss": torch.ones(3)})}, "must return scalars"),
    ({"device": "mps" if torch.cuda.is_available() else "cuda"}, "is not available here"),
])  # fmt: skip
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)


STRANGE = {
    "reversed": lambda x: x[::-1, ::-1],
    "foreign byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "read-only": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, x.strides, writeable=False),
    "every other column": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "column-major": np.asfortranarray,
    "DataFrame": pd.DataFrame,
    "mixed DataFrame": lambda x: pd.DataFrame(x).astype({0: object}),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_arrays_of_every_layout(change, tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 4))
    got = change(x)
    expected = torch.tensor(np.array(got, dtype=float).tolist(), dtype=torch.float64)
    (rows,) = next(iter(batches(got, batch_size=7, shuffle=False)))
    torch.testing.assert_close(rows.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(predict(lambda x: 2 * x, got).double(), 2 * expected)
    model = network().eval()
    with torch.no_grad():
        torch.testing.assert_close(predict(model, got), model(expected.float()))


@pytest.mark.parametrize("dtype", "?bhilqBHILQefdg")
def test_arrays_of_every_type(dtype, tmp_path):
    x = np.array([[0, 1], [1, 1], [1, 0]], dtype=dtype)
    np.save(tmp_path / "x.npy", x)
    for given in (x, np.load(tmp_path / "x.npy", mmap_mode="r")):
        (rows,) = next(iter(batches(given, batch_size=3, shuffle=False)))
        assert rows.tolist() == x.tolist()
        assert predict(lambda x: x, given).tolist() == x.tolist()


def test_what_is_no_number_is_refused():
    for bad in (np.array(["a"]), np.array([object()]), np.array([2**63], np.uint64),
                np.array(["2020-01-01"], "datetime64[D]")):  # fmt: skip
        with pytest.raises(ValueError, match="an array"):
            batches(bad, batch_size=1)


@pytest.mark.parametrize("arrays, options", [
    ([], {}), ([X, Y[:5]], {}), ([X[:0]], {}), ([torch.tensor(1.0)], {}),
    ([X], {"batch_size": 0}), ([X], {"batch_size": 51, "drop_last": True}),
])  # fmt: skip
def test_bad_batches(arrays, options):
    with pytest.raises(ValueError, match="batch"):
        batches(*arrays, **{"batch_size": 5} | options)


# --- predict, seeds, devices ----------------------------------------------------------------------


class Coder(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))

    def encode(self, x):
        assert not torch.is_grad_enabled()
        return self.body(x)

    def forward(self, x):
        return self.encode(x), x


def test_predict_is_the_forward_pass_in_eval_mode():
    model = Coder()
    model.body[1].eval()
    modes = [part.training for part in model.modules()]
    codes, echo = predict(model, X, batch_size=7)
    assert [part.training for part in model.modules()] == modes
    with torch.no_grad():
        expected = model.eval().encode(X)
    model.train()
    assert torch.allclose(codes, expected, atol=1e-6) and torch.equal(echo, X)
    assert torch.allclose(predict(model.encode, X.numpy()), expected, atol=1e-6)
    assert model.training
    assert torch.equal(predict(torch.square, X, batch_size=3), X.square())
    with pytest.raises(RuntimeError):
        predict(model, X[:, :2])
    assert model.training
    for bad in ({"x": X[:0]}, {"x": torch.tensor(1.0)}, {"x": X, "batch_size": 0}):
        with pytest.raises(ValueError, match="x has shape"):
            predict(model, **bad)


def test_seed_everything_and_pick_device():
    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    seed_everything(7)
    first = draw()
    seed_everything(7)
    assert draw() == first
    for bad in (-1, 2**32):
        with pytest.raises(ValueError, match="seed must lie in"):
            seed_everything(bad)
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device() == pick_device(pick_device())


# --- Outside one process --------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate (the extra `scale`) is not installed")
    from train_in_processes import train as train_helper

    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = HELPERS / "train_in_processes.py"
    done = subprocess.run(
        [sys.executable, *command, script, tmp_path],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (world, runs), (_, others) = (torch.load(tmp_path / f"rank{i}.pt") for i in (0, 1))
    assert world == 2 and len(runs) == 3
    for name, (weights, history) in runs.items():
        expected, expected_history = train_helper("batches" if name == "resumed" else name, 1)
        for key in expected:
            assert torch.equal(weights[key], others[name][0][key])
            assert torch.allclose(weights[key], expected[key], rtol=1e-4, atol=1e-5), (name, key)
        assert history == others[name][1]
        for key in expected_history:
            assert history[key] == pytest.approx(expected_history[key], rel=1e-5)


def test_one_accelerated_process_is_plain(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    plain, history = train()
    model, again = train(accelerator=accelerate.Accelerator(cpu=True))
    assert same(model, plain) and again.equals(history)
    with pytest.raises(ValueError, match="use fit's mixed_precision"):
        train(accelerator=accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2))


def test_several_processes_share_only_what_can_be_split():
    two = SimpleNamespace(process_index=1, num_processes=2, mixed_precision="no",
                          gradient_accumulation_steps=1)  # fmt: skip
    with pytest.raises(ValueError, match=r"batches\(...\) or a DataLoader"):
        Processes(two).share([torch.ones(2)])
    alone = [torch.ones(2)]
    assert Processes(None).share(alone) is alone


CELL = """
import torch
from latentspace.training import batches, fit
model = torch.nn.Linear(2, 1)
x = torch.ones(200, 2)
history = fit(model, batches(x, batch_size=2),
              lambda model, batch, generator: {"loss": model(batch[0]).square().mean()},
              optimizer=torch.optim.SGD(model.parameters(), 0.01), epochs=4, device="cpu")
"""


def test_a_stored_notebook_shows_one_line():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    preprocessors = pytest.importorskip("nbconvert.preprocessors", reason="no nbconvert")
    stored = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    preprocessors.ExecutePreprocessor(timeout=120).preprocess(stored)
    (output,) = stored["cells"][0]["outputs"]
    assert output["output_type"] == "display_data" and output["data"].keys() == {"text/plain"}
    line = output["data"]["text/plain"]
    assert line.startswith("epoch 4/4 · loss ") and line.endswith(" s") and "\n" not in line
    assert "widgets" not in stored["metadata"]


def test_a_terminal_shows_a_bar_and_a_file_nothing(monkeypatch, capsys):
    train(progress=True)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with contextlib.suppress(FloatingPointError):
        train(progress=True, loader=[(X, Y), (X, Y * torch.nan)])
    train(progress=True, epochs=2)
    out, err = capsys.readouterr()
    lines = err.replace("\r", "\n").split("\n")
    assert out == "" and any(line.startswith("epoch 2/2 · loss ") for line in lines)
    train(progress=False)
    assert capsys.readouterr() == ("", "")
