"""The programme for Table 3.2: its data, its step of SGD, its plan and its time limit, on a CPU."""

import json
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import multipath_cifar as tool
from latentspace import results
from latentspace.multipath import multipath

N = 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "cifar10").mkdir()
    for split in ("train", "test"):
        x = rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
        np.savez(tmp_path / "cifar10" / f"{split}.npz", x=x, y=np.arange(N) % 10)
    plan = "R C4 M M M R F6 R"
    monkeypatch.setattr(tool, "built", lambda name: multipath(plan, (3, 32, 32), 10, paths=2))
    return tmp_path


@pytest.fixture
def data(folder):
    return tool.Data(folder, torch.device("cpu"), 0)


def test_views_are_shifted_and_mirrored_images(data):
    with np.load(data_path(data)) as file:
        x, y = file["x"], file["y"]
    codes = data.order(3, 2)
    assert codes.shape == (2, N) and sorted(codes[0] // 162) == list(range(N))
    images, labels = data.views(codes[1])
    for k in range(N):
        code = int(codes[1, k])
        mirror, right, down, index = code % 2, code // 2 % 9, code // 18 % 9, code // 162
        padded = np.zeros((40, 40, 3))
        padded[4:36, 4:36] = x[index]
        expected = padded[down : down + 32, right : right + 32]
        expected = expected[:, ::-1] if mirror else expected
        np.testing.assert_allclose(
            images[k].permute(1, 2, 0).numpy(), expected * 4 / 255 - 2, atol=1e-5
        )
        assert labels[k] == y[index]


def data_path(data):
    return data.folder / "cifar10" / "train.npz"


def test_the_step_is_torchs_sgd_without_idle_biases(data):
    orders, rates = data.order(0, 3), torch.tensor([0.01, 0.002, 0.002])
    run = tool.Run("BaseCNN-2-CC", 0, data, orders, rates)
    torch.manual_seed(0)
    model = tool.built("")
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    for k in range(3):
        x, y = data.views(orders[k])
        optimizer.param_groups[0]["lr"] = float(rates[k])
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step()
        assert float(run.loss) == pytest.approx(float(loss), abs=1e-4)
    state = run.state()
    for name, value in model.state_dict().items():
        if "num_batches" not in name and "conv.bias" not in name and "running_mean" not in name:
            np.testing.assert_allclose(state[name], value, atol=2e-3)  # weights in float16


def test_reset_is_a_new_start(data):
    run = tool.Run("BaseCNN-2-CC", 1, data, data.order(1, 2), torch.full((3,), 0.1))
    losses = []
    for _ in range(2):
        run.step()
        run.step()
        losses.append(float(run.loss))
        run.reset()
    assert losses[0] == losses[1]


def test_the_first_rung_that_fits_is_taken():
    ladder = "10x3 5x3 5x1"
    cost = 100 * 0.01 * tool.SAFETY  # of an epoch of all networks
    assert tool.choose(ladder, 0.01, 100, 30 * cost + 0.1) == (10, 3)
    assert tool.choose(ladder, 0.01, 100, 30 * cost - 0.1) == (5, 3)
    assert tool.choose(ladder, 0.01, 100, 6 * cost) == (5, 1)
    assert tool.choose(ladder, 0.01, 100, 0) == (5, 1)


def test_a_whole_run_writes_records_and_can_be_started_again(folder, tmp_path):
    out = tmp_path / "out"
    arguments = [str(folder), str(out), "--budget", "100", "--ladder", "2x2", "--networks",
                 "BaseCNN", "BaseCNN-2-CC"]  # fmt: skip
    for _ in range(2):
        assert tool.main(arguments) == 0
    records = results.read(out / "records.json")
    assert [(r["row"], r["n_seeds"]) for r in records] == [("BaseCNN", 2), ("BaseCNN-2-CC", 2)]
    with np.load(out / "probabilities.npz") as file:
        wrong = (file["BaseCNN/1"].argmax(1) != np.arange(N) % 10).mean() * 100
        assert records[0]["values"][1] == pytest.approx(wrong, abs=2.6)  # one tie in float16
    with np.load(out / "gates.npz") as file:
        assert file["BaseCNN-2-CC/0/1"].shape == (N, 2, 2)
    with np.load(out / "weights.npz") as file, torch.no_grad():
        model = tool.built("").eval()
        model.load_state_dict({
            name: torch.tensor(file[f"BaseCNN-2-CC/{name}"]).to(value.dtype)
            for name, value in model.state_dict().items()
        })  # fmt: skip
    with np.load(out / "probabilities.npz") as file:
        data = tool.Data(folder, torch.device("cpu"), 0)
        again = model(tool.pixels(data.test)).softmax(1).detach().numpy()
        np.testing.assert_allclose(again, file["BaseCNN-2-CC/0"], atol=5e-3)
    runs = json.loads((out / "runs.json").read_text())
    assert runs["about"]["unfinished"] == [] and len(runs["runs"]) == 4


def test_training_stops_at_the_deadline(data):
    seconds = iter(range(0, 1000, 3))
    made = lambda name, seed: tool.Run(  # noqa: E731
        name, seed, data, data.order(seed, 400), torch.full((401,), 0.1)
    )
    found = types.SimpleNamespace(add=lambda *_: None)
    jobs = [("BaseCNN", 0), ("BaseCNN", 1)]
    left = tool.train(jobs, 400, made, {"BaseCNN": 1.0}, found, lambda: next(seconds), 10)
    assert left == jobs


def test_check_runs(folder, tmp_path, capsys):
    assert tool.main([str(folder), str(tmp_path / "out"), "--check", "--images", "8"]) == 0
    assert "multiplied out" in capsys.readouterr().out
