"""Table 3.2 on a GPU: train its networks on CIFAR-10 together, inside a time budget.

    PYTHONPATH=lib python book/tools/multipath_cifar.py DATA OUT [--budget 480] [--check]

DATA holds ``cifar10/train.npz`` and ``test.npz`` as `latentspace.data` writes them; OUT gets
``records.json`` (fields of `latentspace.results`), ``runs.json``, ``curves.npz``,
``probabilities.npz``, ``gates.npz`` and ``weights.npz``, rewritten whenever a run ends.

Schedule of the thesis: SGD with momentum .9, learning rate .1, a tenth of it after 40 % and a
hundredth after 75 % of the epochs (80 and 150 of 200), batches of 128, mirror images and shifts of
up to 4 pixels, zeros coming in; weight decay 1e-4 (the thesis names none, T5). An epoch leaves out
the last 80 images of its order. Networks with the same seed see the same views in the same order.

The number of epochs and seeds is the first of LADDER that fits the budget, by the speed measured
before training: never by results. The number that counts is the test error after the last epoch.
The curve of test errors is kept to show what choosing an epoch by it would be worth.

On CUDA each network is trained in bfloat16 (weights, batch normalisation and their updates in
float32), channels last; a training step is one CUDA graph, and several networks share the card, a
stream each. If graphs and plain steps do not agree, or cannot be captured, plain steps are used.
Seen on an H100 (torch 2.11, another process beside it): graphs agree with plain steps; a step takes
.95 ms for BaseCNN and 1.9 for BaseCNN-3, but 10 to 29 for each network that begins with a router.
So the paths' convolutions are not slow as such. What those networks share, and the others lack, is
a gradient to the 3 channels of the first convolution's input, which is where its gates get theirs,
and thin matrix products in `route`. `--check` times both against their alternatives and lists the
kernels of a step: begin there, before the first long run. That run had He's start and networks that
died of it (see `multipath`); its errors are of no use.

On a CPU the same code runs in float32: ``--images 512 --ladder 1x1`` is a trial.
"""

import argparse
import collections
import gc
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from latentspace.files import fingerprint, write_bytes
from latentspace.multipath import network
from latentspace.results import record
from latentspace.routing import route

PRINTED = {
    "BaseCNN": 9.26, "WideCNN": 8.96, "DeepCNN": 8.49, "SEBaseCNN": 8.99, "SEDeepCNN": 8.15,
    "BaseCNN-3": 9.41, "Cr-Stitch2": 7.89, "BaseCNN-2-CC": 7.03, "BaseCNN-3-CC": 6.51,
    "BaseCNN-4-CC": 6.55, "BaseCNN-2-CP": 7.24, "BaseCNN-3-CP": 6.63, "BaseCNN-4-CP": 6.45,
}  # fmt: skip
CONTROLS = ("BaseCNN-plain", "BaseCNN-2-CC-plain")  # is it batch normalisation? (T2)
KEPT = ("BaseCNN-2-CC", "BaseCNN-3-CC", "BaseCNN-3-CP")  # weights of seed 0, for later chapters
LADDER = "200x5 200x3 150x3 120x3 100x3 80x3 60x3 50x3 40x3 30x3 30x2 30x1 20x1 10x1 5x1"
BATCH, SLOTS, CHUNK, WAITING, SAFETY = 128, 12, 13, 12, 1.12


# --- data on the device ---------------------------------------------------------------------------


class Data:
    """Padded training images, test images and labels on the device, as bytes."""

    def __init__(self, folder, device, images):
        self.folder, self.device, loaded = folder, device, {}
        for split in ("train", "test"):
            with np.load(folder / "cifar10" / f"{split}.npz", allow_pickle=False) as file:
                x, y = file["x"], file["y"]
            if images:  # a trial: every k-th image, so that all classes are there
                x, y = x[:: len(x) // images][:images], y[:: len(y) // images][:images]
            loaded[split] = x, torch.as_tensor(y.astype(np.int64), device=device)
        self.fingerprint = fingerprint(loaded["train"][0], loaded["test"][0])
        padded = np.pad(loaded["train"][0], ((0, 0), (4, 4), (4, 4), (0, 0)))
        self.bank, self.labels = torch.as_tensor(padded, device=device), loaded["train"][1]
        self.test = torch.as_tensor(loaded["test"][0], device=device)
        self.test_labels = loaded["test"][1]
        self.steps = max(1, len(self.bank) // BATCH)
        self.batch = min(BATCH, len(self.bank))

    def order(self, seed, epochs):
        """What each step sees, (epochs * steps, batch): image, shifts and mirroring in one code."""
        rng, n = np.random.default_rng([seed, 11]), len(self.bank)
        rows = [rng.permutation(n) * 162 + rng.integers(162, size=n) for _ in range(epochs)]
        rows = np.stack(rows)[:, : self.steps * self.batch].astype(np.int32)
        return torch.as_tensor(rows.reshape(-1, self.batch), device=self.device)

    def views(self, codes):
        """Images (batch, 3, 32, 32) about 0, and labels, of one row of `order`."""
        codes = codes.long()
        mirror, codes = codes % 2, codes // 2
        right, codes = codes % 9, codes // 9
        down, index = codes % 9, codes // 9
        place = torch.arange(32, device=self.device)
        columns = torch.where(mirror[:, None] == 1, 31 - place, place) + right[:, None]
        rows = down[:, None] + place
        x = self.bank[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels(x), self.labels[index]


def pixels(x):
    """Bytes (n, height, width, 3) to numbers from -2 to 2, (n, 3, height, width) channels last."""
    return (x.float() * (4 / 255) - 2).permute(0, 3, 1, 2)


# --- one network ----------------------------------------------------------------------------------


class Run:
    """A network of one seed and everything that its training writes to, on a stream of its own.

    All weights lie in one flat float32 vector, `weights`; the network computes with a flat bfloat16
    copy of it, apart from batch normalisation, which reads the float32 ones.
    """

    def __init__(self, name, seed, data, orders, rates, grouped=False, graphs=True):
        self.name, self.seed, self.data, self.orders, self.rates = name, seed, data, orders, rates
        self.cuda = data.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.stream = torch.cuda.Stream() if self.cuda else None
        self.done, self.epochs, self.started, self.pending = 0, 0, 0.0, collections.deque()
        with self.on_stream():
            self._build(grouped)
            self.position = torch.zeros(1, dtype=torch.int64, device=data.device)
            self.loss = torch.zeros((), device=data.device)
            self.error = torch.zeros((), device=data.device)
            self.curve = torch.zeros(len(rates), device=data.device)
            self.probabilities = torch.zeros(len(data.test), 10, device=data.device)
            self.step, self.test = self._step, self._test
            if graphs and self.cuda:
                self._capture()

    def on_stream(self):
        return torch.cuda.stream(self.stream)  # None is no stream: nothing happens

    def _build(self, grouped):
        torch.manual_seed(self.seed)
        model = built(self.name)
        for module in model.modules():
            if hasattr(module, "grouped"):
                module.grouped = grouped
            if getattr(module, "norm", None) is not None and hasattr(module, "conv"):
                module.conv.bias = None  # batch normalisation takes it away again
        model = model.to(self.data.device)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        single = {id(p) for m in norms for p in m.parameters()}
        # Those of batch normalisation come last, so that the others are one range.
        parameters = sorted(model.parameters(), key=lambda p: id(p) in single)
        size = sum(p.numel() for p in parameters)
        self.half_size = sum(p.numel() for p in parameters if id(p) not in single)
        new = torch.zeros
        self.weights, self.velocity, self.gradient = (
            new(size, device=self.data.device) for _ in range(3)
        )
        self.half = new(self.half_size, device=self.data.device, dtype=self.dtype)
        self.parameters, self.gradients, start = [], [], 0
        for p in parameters:
            source = self.weights if id(p) in single else self.half
            placed(self.weights, start, p.shape).copy_(p.detach())
            p.data = placed(source, start, p.shape)
            self.parameters.append(p)
            self.gradients.append(placed(self.gradient, start, p.shape))
            start += p.numel()
        self.half.copy_(self.weights[: self.half_size])
        kinds = [(p.dtype, p.ndim) for p in self.parameters]
        self.alike = [[i for i, k in enumerate(kinds) if k == kind] for kind in set(kinds)]
        self.model = model.train()
        self.buffers = [b for m in norms for b in (m.running_mean, m.running_var)]
        self.start = [t.clone() for t in (self.weights, *self.buffers)]

    def _step(self):
        """One step of SGD: everything it reads and writes stays where it is."""
        codes = self.orders.index_select(0, self.position)[0]
        rate = self.rates.index_select(0, self.position // self.data.steps)
        x, y = self.data.views(codes)
        loss = F.cross_entropy(self.model(x.to(self.dtype)).float(), y)
        found = torch.autograd.grad(loss, self.parameters)
        for some in self.alike:  # one kernel for many tensors of one dtype
            torch._foreach_copy_([self.gradients[i] for i in some], [found[i] for i in some])
        self.gradient.add_(self.weights, alpha=1e-4)
        self.velocity.mul_(0.9).add_(self.gradient)
        self.weights.addcmul_(self.velocity, rate, value=-1)
        self.half.copy_(self.weights[: self.half_size])
        self.loss.copy_(loss.detach())
        self.position.add_(1)

    @torch.no_grad()
    def _test(self):
        """Probabilities of the test images, and their error in per cent."""
        self.model.eval()
        for rows in torch.arange(len(self.data.test)).split(1000):
            rows = slice(int(rows[0]), int(rows[-1]) + 1)
            x = pixels(self.data.test[rows]).to(self.dtype)
            self.probabilities[rows] = self.model(x).float().softmax(1)
        self.model.train()
        wrong = (self.probabilities.argmax(1) != self.data.test_labels).float().mean() * 100
        self.error.copy_(wrong)

    def _capture(self):
        for _ in range(3):  # cuDNN chooses, allocators fill
            self._step()
        self._test()
        self.stream.synchronize()
        gc.collect()
        graphs = []
        for work in (self._step, self._test):
            graph = torch.cuda.CUDAGraph()
            gc.disable()  # an old graph must not be freed while a new one is captured
            # Not `torch.cuda.graph`: it would wait for all that other networks still have to do.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            finally:
                graph.capture_end()
                gc.enable()
            graphs.append(graph)
        self.graphs = graphs  # they own their memory
        self.step, self.test = (graph.replay for graph in graphs)
        self.reset()

    @torch.no_grad()
    def reset(self):
        """Back to the beginning."""
        with self.on_stream():
            for tensor, start in zip((self.weights, *self.buffers), self.start, strict=True):
                tensor.copy_(start)
            self.half.copy_(self.weights[: self.half_size])
            for tensor in (self.velocity, self.position, self.curve, self.loss):
                tensor.zero_()
        self.done = 0

    def advance(self, epochs):
        """Launch the next few steps unless enough are waiting; whether any were."""
        while self.pending and self.pending[0].query():
            self.pending.popleft()
        if len(self.pending) >= WAITING or self.done >= epochs * self.data.steps:
            return False
        with self.on_stream():
            for _ in range(min(CHUNK, epochs * self.data.steps - self.done)):
                self.step()
                self.done += 1
                if self.done % self.data.steps == 0:
                    self.test()
                    self.curve[self.done // self.data.steps - 1].copy_(self.error)
            if self.cuda:
                event = torch.cuda.Event()
                event.record()
                self.pending.append(event)
        return True

    def finished(self, epochs):
        return self.done >= epochs * self.data.steps and not self.pending

    @torch.no_grad()
    def gates(self):
        """Gates of the test images, one array (n, inputs, outputs) a router."""
        with self.on_stream():
            self.model.eval()
            parts = [
                [g.float().cpu().numpy() for g in self.model.gates(pixels(x).to(self.dtype))]
                for x in self.data.test.split(1000)
            ]
            self.model.train()
        return [np.concatenate(router).astype(np.float16) for router in zip(*parts, strict=True)]

    @torch.no_grad()
    def state(self):
        """The state dict as arrays: float16, vectors (biases, normalisation) in float32."""
        full = built(self.name)
        arrays, state = {}, self.model.state_dict()
        names = {id(p): name for name, p in self.model.named_parameters()}
        start = 0
        for p in self.parameters:
            state[names[id(p)]] = placed(self.weights, start, p.shape)
            start += p.numel()
        for name, value in full.state_dict().items():
            value = state.get(name, torch.zeros_like(value)).float().cpu().numpy()
            arrays[name] = value if value.ndim < 2 else value.astype(np.float16)
        return arrays


def built(name):
    """The network of that name; "-plain" is without batch normalisation."""
    return network(name.removesuffix("-plain"), norm=not name.endswith("-plain"))


def placed(flat, start, shape):
    """The view of a flat vector that is a tensor of this shape; convolutions channels last."""
    size = torch.Size(shape).numel()
    part = flat[start : start + size]
    if len(shape) < 4:
        return part.view(shape)
    return part.view(*shape[:-3], *shape[-2:], shape[-3]).movedim(-1, -3)


# --- the plan: what fits --------------------------------------------------------------------------


def agreement(data, orders, rates, name="BaseCNN", steps=2):
    """Relative distances of the weights' changes: graph from plain steps, and plain from plain."""
    changes = []
    for graphs in (True, False, False):
        run = Run(name, 0, data, orders, rates, graphs=graphs)
        with run.on_stream():
            for _ in range(steps):
                run.step()
            changes.append((run.weights - run.start[0]).double())
        synchronize(data.device)
    graph, plain, again = changes
    return tuple(float((other - plain).norm() / plain.norm()) for other in (graph, again))


def alone(run):
    """Milliseconds of a step while nothing else runs."""
    steps = 20 if run.cuda else 1
    for repeat in range(2):
        synchronize(run.data.device)
        start = time.perf_counter()
        with run.on_stream():
            for _ in range(steps if repeat else 1):
                run.step()
        synchronize(run.data.device)
    return (time.perf_counter() - start) / steps * 1e3


def together(runs):
    """Seconds of a step of all runs at once, a step each."""
    rounds = 40 if runs[0].cuda else 1
    synchronize(runs[0].data.device)
    start = time.perf_counter()
    for _ in range(rounds):
        for run in runs:
            with run.on_stream():
                run.step()
    synchronize(runs[0].data.device)
    return (time.perf_counter() - start) / rounds


def choose(ladder, round_seconds, steps, seconds):
    """The first (epochs, seeds) of the ladder that fits; the last one if none does."""
    rungs = [tuple(map(int, rung.split("x"))) for rung in ladder.split()]
    for epochs, seeds in rungs:
        if epochs * seeds * steps * round_seconds * SAFETY <= seconds:
            return epochs, seeds
    return rungs[-1]


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


# --- the programme --------------------------------------------------------------------------------


class Results:
    """What finished runs gave, written to the folder as it comes."""

    def __init__(self, folder, data, about):
        self.folder, self.data, self.about = folder, data, about
        self.runs, self.arrays = [], {"curves": {}, "probabilities": {}, "gates": {}, "weights": {}}

    def add(self, run, milliseconds, seconds):
        key = f"{run.name}/{run.seed}"
        curve = run.curve[: run.epochs].cpu().numpy()
        self.arrays["curves"][key] = curve.astype(np.float32)
        self.arrays["probabilities"][key] = run.probabilities.cpu().numpy().astype(np.float16)
        changed = ["curves", "probabilities"]
        if run.seed < 3:
            self.arrays["gates"] |= {f"{key}/{i}": g for i, g in enumerate(run.gates())}
            changed.append("gates")
        if run.seed == 0 and run.name in KEPT:
            self.arrays["weights"] |= {f"{run.name}/{k}": v for k, v in run.state().items()}
            changed.append("weights")
        entry = {
            "network": run.name, "seed": run.seed, "error": float(curve[-1]),
            "best_epoch_error": float(curve.min()), "epochs": run.epochs,
            "last_loss": float(run.loss), "milliseconds_a_step_alone": milliseconds,
            "images_a_second_alone": self.data.batch / milliseconds * 1e3,
            "seconds_with_others": seconds,
        }  # fmt: skip
        self.runs.append(entry)
        print(
            f"{self.about['clock']():6.1f} s  {run.name:18} seed {run.seed}  error {curve[-1]:5.2f}"
            f" %  loss {entry['last_loss']:.3f}  {milliseconds:.2f} ms a step alone",
            flush=True,
        )
        self.write(changed)

    def write(self, changed=()):
        about = {k: v for k, v in self.about.items() if k != "clock"}
        text = json.dumps({"about": about, "runs": self.runs}, indent=1)
        write_bytes(self.folder / "runs.json", text.encode())
        for name in changed:
            content = io.BytesIO()
            np.savez(content, **self.arrays[name])
            write_bytes(self.folder / f"{name}.npz", content.getvalue())
        if records := self.records():
            text = json.dumps({"records": records}, indent=1, ensure_ascii=False)
            write_bytes(self.folder / "records.json", text.encode())

    def records(self):
        about, found = self.about, []
        common = dict(
            document="Multi-path thesis", item="Table 3.2", metric="error (%)",
            higher_is_better=False,
            setting=f"{about['epochs']} epochs of the 200, bfloat16, last epoch",
            device=about["device"], data=self.data.fingerprint,
        )  # fmt: skip
        for name in dict.fromkeys([*PRINTED, *(r["network"] for r in self.runs)]):
            runs = [r for r in self.runs if r["network"] == name]
            if runs:
                seconds = sum(
                    r["milliseconds_a_step_alone"] * r["epochs"] * self.data.steps / 1e3
                    for r in runs
                )
                ours = [r["error"] for r in runs]
                found.append(record(
                    row=name, paper=PRINTED.get(name), ours=ours, seconds=seconds, **common
                ))  # fmt: skip
        seeds = range(about["seeds"])
        base = [f"BaseCNN/{seed}" for seed in seeds]
        groups = {"BaseCNN Ensemble": (7.87, [base[:3]] if len(base) > 2 else [])}
        mixed = [[f"{n}/{s}" for n in ("BaseCNN", "WideCNN", "DeepCNN")] for s in seeds]
        groups["All Ensemble"] = (6.9, mixed)
        have = self.arrays["probabilities"]
        for row, (printed, members) in groups.items():
            errors = [self.ensemble(keys) for keys in members if all(k in have for k in keys)]
            if errors:
                found.append(record(row=row, paper=printed, ours=errors, **common))
        return found

    def ensemble(self, keys):
        """Error in per cent of the mean of these runs' probabilities."""
        mean = sum(self.arrays["probabilities"][key].astype(np.float32) for key in keys)
        return float((mean.argmax(1) != self.data.test_labels.cpu().numpy()).mean() * 100)


def train(jobs, epochs, make, times, results, clock, deadline):
    """Run the jobs (name, seed) in order, SLOTS at a time, until done or until the deadline."""
    waiting, active = collections.deque(jobs), []
    while (waiting or active) and clock() < deadline:
        while waiting and len(active) < SLOTS:
            run = make(*waiting.popleft())
            run.reset()
            run.epochs, run.started = epochs, clock()
            active.append(run)
        launched = [run.advance(epochs) for run in active]
        for run in [r for r in active if r.finished(epochs)]:
            active.remove(run)
            results.add(run, times[run.name], clock() - run.started)
        if not any(launched):
            time.sleep(2e-4)
    return [(r.name, r.seed) for r in active] + list(waiting)


def check(data, orders, rates):
    """Graph against plain steps, loop against grouped, one stream against many."""
    fine = True
    for name in ("BaseCNN", "BaseCNN-2-CC", "BaseCNN-3-CP"):
        graph, noise = agreement(data, orders, rates, name)
        good = graph <= max(5 * noise, 0.05)
        fine &= good
        print(f"{name:13} graph from plain {graph:.1e}, plain from plain {noise:.1e}: "
              f"{'agree' if good else 'DIFFER'}", flush=True)  # fmt: skip
        for grouped in (False, True):
            for graphs in (False, True):
                run = Run(name, 0, data, orders, rates, grouped, graphs)
                ms = alone(run)
                print(f"{name:13} {'grouped' if grouped else 'loop':8}"
                      f"{'graph' if graphs else 'plain'} {ms:7.3f} ms a step, "
                      f"{data.batch / ms * 1e3:8.0f} images/s", flush=True)  # fmt: skip
    suspects(data)
    runs = [Run("BaseCNN", s, data, orders, rates) for s in range(SLOTS)]
    single, many = alone(runs[0]) / 1e3, together(runs)
    print(f"{SLOTS} x BaseCNN at once: {many * 1e3:.2f} ms a step of all, "
          f"{single * SLOTS / many:.2f} times one after the other", flush=True)  # fmt: skip
    return fine


def suspects(data):
    """Times of what may be slow in a network that begins with a router, and a step's kernels."""
    dtype = torch.bfloat16 if data.device.type == "cuda" else torch.float32

    def report(name, work, *arguments):
        for repeat in range(2):  # the first time warms up
            synchronize(data.device)
            start = time.perf_counter()
            for _ in range(10 if repeat else 1):
                work(*arguments)
            synchronize(data.device)
        print(f"{name:58} {(time.perf_counter() - start) * 100:7.3f} ms", flush=True)

    def convolution(channels, to_input):
        x = torch.randn(data.batch, channels, 32, 32, device=data.device, dtype=dtype)
        x = x.to(memory_format=torch.channels_last).requires_grad_(to_input)
        w = torch.randn(32, channels, 3, 3, device=data.device, dtype=dtype)
        w = w.to(memory_format=torch.channels_last).requires_grad_()
        F.conv2d(x, w, padding=1).sum().backward()

    def multiplied(paths, gates):
        return (gates[..., None, None, None] * paths[:, :, None]).sum(1)

    def products(form):
        x = torch.randn(data.batch, 2, 32, 16, 16, device=data.device, dtype=dtype)
        g = torch.rand(data.batch, 2, 2, device=data.device, dtype=dtype)
        form(x.requires_grad_(), g.requires_grad_()).sum().backward()

    for channels, to_input in ((3, False), (3, True), (8, True)):
        end = "and to its input" if to_input else "to its weights only"
        name = f"{channels} to 32 channels, gradient {end}"
        report(name, convolution, channels, to_input)
    report("route by matrix products", products, route)
    report("route multiplied out", products, multiplied)
    if data.device.type == "cuda":
        orders, rates = data.order(0, 1), torch.full((2,), 0.1, device=data.device)
        run = Run("BaseCNN-2-CC", 0, data, orders, rates, graphs=False)
        with run.on_stream():
            run.step()
            run.stream.synchronize()
            with torch.profiler.profile() as profile:
                run.step()
                run.stream.synchronize()
        kernels = profile.key_averages()
        print(kernels.table(sort_by="self_device_time_total", row_limit=12), flush=True)


def main(argv=None):
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=480, help="seconds, all included")
    parser.add_argument("--ladder", default=LADDER, help="EPOCHSxSEEDS, the dearest first")
    parser.add_argument("--networks", nargs="+", default=[*PRINTED, *CONTROLS])
    parser.add_argument("--images", type=int, default=0, help="for a trial: so many of each split")
    parser.add_argument("--form", default="auto", choices=("auto", "loop", "grouped"),
                        help="how parallel paths are convolved; auto takes the faster")  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="no CUDA graphs")
    parser.add_argument("--check", action="store_true", help="compare and time, train nothing")
    options = parser.parse_args(argv)

    def clock():
        return time.monotonic() - start

    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # before CUDA starts
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    options.out.mkdir(parents=True, exist_ok=True)
    data = Data(options.data, device, options.images)
    rungs = [tuple(map(int, rung.split("x"))) for rung in options.ladder.split()]
    longest = max(100 // data.steps + 1, *(e for e, _ in rungs))  # 100 steps are timed
    orders = [data.order(0, longest)]
    rates = torch.full((longest + 1,), 0.1, device=device)
    synchronize(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{clock():6.1f} s  {name}, torch {torch.__version__}, {len(data.bank)} images")
    if options.check:
        return 0 if check(data, orders[0], rates) else 1

    graphs = device.type == "cuda" and not options.plain
    if graphs:
        try:
            graph, noise = agreement(data, orders[0], rates)
            graphs = graph <= max(5 * noise, 0.05)
            print(f"{clock():6.1f} s  graph from plain {graph:.1e}, plain from plain {noise:.1e}")
        except Exception:
            traceback.print_exc()
            graphs = False
        if not graphs:
            print("graphs are not used", flush=True)

    grouped = options.form == "grouped"
    if options.form == "auto" and graphs:
        loop, group = (
            alone(Run("BaseCNN-2-CC", 0, data, orders[0], rates, form)) for form in (False, True)
        )
        grouped = group < loop
        print(f"{clock():6.1f} s  BaseCNN-2-CC: loop {loop:.2f}, grouped {group:.2f} ms a step")

    def make(network_name, seed):
        nonlocal ready
        if (network_name, seed) in ready:
            return ready.pop((network_name, seed))
        return Run(network_name, seed, data, orders[seed], rates, grouped, graphs)

    ready = {}
    for network_name in options.networks:
        ready[network_name, 0] = make(network_name, 0)
    times = {network_name: alone(run) for (network_name, _), run in ready.items()}
    round_seconds = together(list(ready.values()))
    reserve = min(12.0, options.budget / 10)
    epochs, seeds = choose(
        options.ladder, round_seconds, data.steps, options.budget - reserve - clock()
    )
    for share in (0.4, 0.75):
        rates[round(share * epochs) :] *= 0.1
    orders += [data.order(seed, epochs) for seed in range(1, seeds)]
    synchronize(device)
    print(f"{clock():6.1f} s  a step of all {round_seconds * 1e3:.2f} ms: {epochs} epochs, {seeds} "
          f"seeds, {'graphs' if graphs else 'plain steps'}", flush=True)  # fmt: skip
    sizes = {n: sum(p.numel() for p in built(n).parameters()) for n in options.networks}
    about = {
        "clock": clock, "epochs": epochs, "seeds": seeds, "graphs": graphs, "device": str(device),
        "device_name": name, "torch": torch.__version__, "ladder": options.ladder,
        "round_milliseconds": round_seconds * 1e3, "parameters": sizes, "milliseconds": times,
        "test": "the error after the last epoch counts; curves are for studying selection only",
    }  # fmt: skip
    results = Results(options.out, data, about)
    names = sorted(options.networks, key=times.get, reverse=True)
    jobs = [(n, seed) for seed in range(seeds) for n in names]
    about["unfinished"] = train(
        jobs, epochs, make, times, results, clock, options.budget - reserve
    )
    if device.type == "cuda":
        about["peak_memory_gib"] = torch.cuda.max_memory_reserved() / 2**30
    about["seconds"] = clock()
    results.write()
    print(f"{clock():6.1f} s  {len(results.runs)} runs done, unfinished: {about['unfinished']}")
    for entry in results.records():
        spread = "" if entry["std"] is None else f" ± {entry['std']:.2f}"
        printed, ours = entry["paper"] or "-", f"{entry['mean']:5.2f}{spread}"
        print(f"{entry['row']:18} printed {printed:5}  ours {ours} (n = {entry['n_seeds']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
