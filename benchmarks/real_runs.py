"""Really train many small models, and write down their curves: ``python benchmarks/real_runs.py OUT.jsonl.gz``.

Two kinds of runs, each of many workloads, all from data that this file makes or that scikit-learn ships:

- `search`: what a search over optimizers tries (SGD, momentum, Adam, AdamW; learning rates over four decades; constant,
  cosine, linear and stepped schedules, with and without warm-up), 40 to 300 evaluations each. Most settings are bad.
- `teaching`: what a tutorial trains, 5 to 50 epochs with a sensible setting, on few samples or on enough. Beside the
  validation set, which is small, each epoch is evaluated on a large one: it tells whether the run overfits, and when it
  was at its best.

Models of one workload are trained side by side as one stacked tensor, so all of it takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor
from torch.nn import functional

Data = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws so many samples: inputs, and labels or targets."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and its data."""

    name: str
    data: Data
    train: int
    validation: int
    layers: tuple[int, ...]
    """Widths from the input to the output."""
    held_out: int = 0
    batch: int = 32
    evaluations: int = 100
    steps: int = 10
    """Steps between two evaluations."""
    activation: Callable[[Tensor], Tensor] = torch.relu
    dropout: float = 0.0
    patches: bool = False
    """Whether a layer of 3 x 3 convolutions reads images of 8 x 8 before the first layer."""
    rates: tuple[float, float] = (1e-4, 10.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one of the stacked models is trained."""

    optimizer: str
    rate: float
    schedule: str
    decay: float

    def rate_at(self, done: float) -> float:
        """Return the learning rate after a share of the run."""
        warm = 0.05 if "warm-up" in self.schedule else 0.0
        if done < warm:
            return self.rate * done / warm
        left = 1 - (done - warm) / (1 - warm)
        if "cosine" in self.schedule:
            return self.rate * (1 - math.cos(math.pi * left)) / 2
        if "linear" in self.schedule:
            return self.rate * left
        if "steps" in self.schedule:
            return self.rate * 0.1 ** ((left < 0.5) + (left < 0.25))
        return self.rate


CHANNELS = 8


class Stack:
    """Models of one shape and many settings; parameter tensors have shape (settings, in, out)."""

    def __init__(self, workload: Workload, settings: list[Setting], draw: torch.Generator) -> None:
        self.workload, self.settings = workload, settings
        shapes = list(zip(workload.layers, workload.layers[1:], strict=False))
        if workload.patches:
            shapes = [(9, CHANNELS), (9 * CHANNELS, shapes[0][1]), *shapes[1:]]
        count = len(settings)
        self.parameters: list[Tensor] = []
        for wide, out in shapes:
            self.parameters.append(torch.randn(count, wide, out, generator=draw) * math.sqrt(2 / wide))
            self.parameters.append(torch.zeros(count, 1, out))
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self._momenta = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._adam = _column([one.optimizer in ("adam", "adamw") for one in settings]).bool()
        self._kept = _column([0.0 if one.optimizer == "sgd" else 0.9 for one in settings])
        self._new = torch.where(self._adam, 1 - self._kept, 1.0)
        self._decay = _column([one.decay for one in settings])
        self._taken = 0

    def outputs(self, inputs: Tensor, *, training: bool = False) -> Tensor:
        """Return the outputs, of shape (settings, samples, outputs), for inputs of (settings or 1, samples, inputs)."""
        count = len(self.settings)
        hidden = inputs.expand(count, -1, -1)
        layers = list(zip(self.parameters[::2], self.parameters[1::2], strict=True))
        if self.workload.patches:
            (weight, bias), *layers = layers
            hidden = self._convolved(hidden, weight, bias)
        for place, (weight, bias) in enumerate(layers):
            if place:
                hidden = self.workload.activation(hidden)
                hidden = functional.dropout(hidden, self.workload.dropout, training)
            hidden = torch.baddbmm(bias, hidden, weight)
        return hidden

    def _convolved(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, samples, _ = images.shape
        patches = images.reshape(count, samples, 8, 8).unfold(2, 3, 1).unfold(3, 3, 1)
        maps = torch.relu(torch.baddbmm(bias, patches.reshape(count, samples * 36, 9), weight))
        return maps.reshape(count, samples, 3, 2, 3, 2, CHANNELS).mean(dim=(3, 5)).reshape(count, samples, -1)

    def step(self, inputs: Tensor, targets: Tensor, done: float) -> Tensor:
        """Train on one batch a model, and return its losses."""
        losses = _losses(self.outputs(inputs, training=True), targets)
        gradients = torch.autograd.grad(losses.sum(), self.parameters)
        rates = _column([one.rate_at(done) for one in self.settings])
        self._taken += 1
        with torch.no_grad():
            for parameter, gradient, momentum, square in zip(
                self.parameters, gradients, self._momenta, self._squares, strict=True
            ):
                momentum.mul_(self._kept).add_(self._new * gradient)
                square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                scaled = momentum / (1 - 0.9**self._taken)
                scaled = scaled / ((square / (1 - 0.999**self._taken)).sqrt() + 1e-8)
                change = torch.where(self._adam, scaled, momentum)
                parameter.sub_(rates * (change + self._decay * parameter))
        return losses.detach()

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy of each model; the accuracy of a regression is NaN."""
        losses, right = torch.zeros(len(self.settings)), torch.zeros(len(self.settings))
        for begin in range(0, len(inputs), 2000):
            some, wanted = inputs[begin : begin + 2000], targets[begin : begin + 2000]
            outputs = self.outputs(some[None])
            losses += _losses(outputs, wanted.expand(len(self.settings), *wanted.shape)) * len(some)
            if targets.dtype == torch.long:
                right += (outputs.argmax(-1) == wanted).float().sum(-1)
            else:
                right += math.nan
        return losses / len(inputs), right / len(inputs)


def _column(values: list[float] | list[bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of each model."""
    if targets.dtype == torch.long:
        wanted = targets[..., None]
        return -functional.log_softmax(outputs, dim=-1).gather(-1, wanted)[..., 0].mean(-1)
    return (outputs - targets).square().mean(dim=(-2, -1))


Row = dict[str, Any]


def train(workload: Workload, settings: list[Setting], seed: int) -> list[Row]:
    """Train one model a setting, and return their curves."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    total = workload.train + workload.validation + workload.held_out
    inputs, targets = workload.data(total, draw)
    order = torch.randperm(len(inputs), generator=draw)
    ends = (0, workload.train, workload.train + workload.validation, len(inputs))
    parts = [order[begin:end] for begin, end in pairwise(ends)]
    stack = Stack(workload, settings, draw)
    curves: dict[str, list[Tensor]] = {
        name: [] for name in ("train_loss", "val_loss", "val_acc", "true_loss")
    }
    steps = workload.evaluations * workload.steps
    for evaluation in range(workload.evaluations):
        sums = torch.zeros(len(settings))
        for step in range(workload.steps):
            picked = parts[0][torch.randint(workload.train, (len(settings), workload.batch), generator=draw)]
            done = (evaluation * workload.steps + step) / steps
            sums += stack.step(inputs[picked], targets[picked], done)
        loss, accuracy = stack.evaluate(inputs[parts[1]], targets[parts[1]])
        curves["train_loss"].append(sums / workload.steps)
        curves["val_loss"].append(loss)
        curves["val_acc"].append(accuracy)
        if workload.held_out:
            curves["true_loss"].append(stack.evaluate(inputs[parts[2]], targets[parts[2]])[0])
    stacked = {name: torch.stack(values, dim=1).tolist() for name, values in curves.items() if values}
    return [
        {
            "id": f"{workload.name}/{seed}/{place}",
            "workload": workload.name,
            "setting": f"{one.optimizer} {one.rate:.2g} {one.schedule} decay {one.decay:g}",
            **{name: [_plain(value) for value in values[place]] for name, values in stacked.items()},
        }
        for place, one in enumerate(settings)
    ]


def _plain(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def drawn_settings(workload: Workload, count: int, rng: random.Random) -> list[Setting]:
    """Draw what a search over optimizers tries."""
    low, high = (math.log(rate) for rate in workload.rates)
    settings = []
    for _ in range(count):
        optimizer = rng.choice(("sgd", "momentum", "adam", "adamw"))
        rate = (
            math.exp(rng.uniform(low, high)) / {"sgd": 1, "momentum": 5, "adam": 30, "adamw": 30}[optimizer]
        )
        schedule = rng.choice(("constant", "cosine", "warm-up cosine", "linear", "warm-up", "steps"))
        decay = rng.choice((0.0, 1e-3, 1e-2, 1e-1)) if optimizer == "adamw" else rng.choice((0.0, 0.0, 1e-4))
        settings.append(Setting(optimizer=optimizer, rate=rate, schedule=schedule, decay=decay))
    return settings


def teaching_settings(count: int, rng: random.Random) -> list[Setting]:
    """Draw what a tutorial takes."""
    settings = []
    for _ in range(count):
        optimizer = rng.choice(("adam", "adam", "adam", "momentum"))
        rate = rng.choice((3e-4, 1e-3, 1e-3, 3e-3)) * (10 if optimizer == "momentum" else 1)
        decay = rng.choice((0.0, 0.0, 1e-3)) if optimizer == "momentum" else 0.0
        settings.append(Setting(optimizer=optimizer, rate=rate, schedule="constant", decay=decay))
    return settings


def clusters(inputs: int, classes: int, wrong: float, spread: float, seed: int) -> Data:
    """Classes of three Gaussian clusters each, half of the inputs useless, a share of the labels wrong."""
    fixed = torch.Generator().manual_seed(seed)
    centres = torch.randn(3 * classes, inputs // 2, generator=fixed)

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        which = torch.randint(3 * classes, (count,), generator=draw)
        useful = centres[which] + spread * torch.randn(count, inputs // 2, generator=draw)
        useless = torch.randn(count, inputs - inputs // 2, generator=draw)
        labels = which % classes
        other = torch.randint(classes, (count,), generator=draw)
        labels = torch.where(torch.rand(count, generator=draw) < wrong, other, labels)
        return torch.cat([useful, useless], dim=1), labels

    return draw


def reviews(words: int, length: float, seed: int) -> Data:
    """Bags of words, one in ten of which speaks for one of two labels."""
    fixed = torch.Generator().manual_seed(seed)
    common = 1 / torch.arange(10, words + 10).float()
    mood = torch.where(
        torch.rand(words, generator=fixed) < 0.1, torch.randn(words, generator=fixed), torch.zeros(words)
    )

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(2, (count,), generator=draw)
        odds = common * torch.exp((2.0 * labels[:, None] - 1) * 0.5 * mood)
        odds = 1 - torch.exp(-length * odds / common.sum())
        return (torch.rand(count, words, generator=draw) < odds).float(), labels

    return draw


def characters(classes: int, context: int, seed: int) -> Data:
    """The next of some letters, which depends on the two before."""
    fixed = torch.Generator().manual_seed(seed)
    table = torch.softmax(2 * torch.randn(classes, classes, classes, generator=fixed), dim=-1)

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        letters = torch.randint(classes, (count, context + 1), generator=draw)
        for place in range(2, context + 1):
            odds = table[letters[:, place - 2], letters[:, place - 1]]
            letters[:, place] = torch.multinomial(odds, 1, generator=draw)[:, 0]
        return functional.one_hot(letters[:, :-1], classes).float().flatten(1), letters[:, -1]

    return draw


def prices(inputs: int, noise: float, tails: bool, seed: int) -> Data:
    """A smooth function of some inputs (Friedman's first), with noise, which may have long tails."""
    del seed

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.rand(count, inputs, generator=draw)
        y = torch.sin(math.pi * x[:, 0] * x[:, 1]) * 2 + 4 * (x[:, 2] - 0.5) ** 2 + 2 * x[:, 3] + x[:, 4]
        error = torch.randn(count, generator=draw)
        error = error / torch.rand(count, generator=draw).clamp(0.05).sqrt() if tails else error
        return (2 * x - 1) * math.sqrt(3), (y + noise * error)[:, None] - 2.5

    return draw


def parity(inputs: int, bits: int) -> Data:
    """The parity of some of the signs: flat for long, then learned at once."""

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        x = torch.where(torch.rand(count, inputs, generator=draw) < 0.5, -1.0, 1.0)
        return x, (x[:, :bits].prod(dim=1) > 0).long()

    return draw


def shipped(load: Callable[..., tuple[object, object]], wrong: float = 0.0, rebuild: bool = False) -> Data:
    """A data set of scikit-learn, each sample once."""
    x, y = load(return_X_y=True)
    inputs, labels = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.long)
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-3)

    def draw(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        del count
        if rebuild:
            return inputs, inputs
        other = torch.randint(int(labels.max()) + 1, labels.shape, generator=draw)
        return inputs, torch.where(torch.rand(labels.shape, generator=draw) < wrong, other, labels)

    return draw


SEARCH = (
    Workload(
        name="digits linear",
        data=shipped(load_digits),
        train=1200,
        validation=597,
        layers=(64, 10),
        evaluations=100,
        steps=8,
    ),
    Workload(
        name="digits mlp",
        data=shipped(load_digits),
        train=1000,
        validation=797,
        layers=(64, 48, 48, 10),
        evaluations=60,
        steps=15,
    ),
    Workload(
        name="digits wrong labels",
        data=shipped(load_digits, wrong=0.2),
        train=1000,
        validation=797,
        layers=(64, 64, 10),
        evaluations=150,
        steps=8,
    ),
    Workload(
        name="digits cnn",
        data=shipped(load_digits),
        train=1200,
        validation=597,
        layers=(64, 32, 10),
        patches=True,
        batch=16,
        evaluations=50,
        steps=12,
        rates=(1e-3, 10),
    ),
    Workload(
        name="digits autoencoder",
        data=shipped(load_digits, rebuild=True),
        train=1200,
        validation=597,
        layers=(64, 32, 8, 32, 64),
        evaluations=120,
        steps=10,
        rates=(1e-3, 10),
    ),
    Workload(
        name="cancer mlp",
        data=shipped(load_breast_cancer),
        train=380,
        validation=189,
        layers=(30, 32, 2),
        batch=16,
        evaluations=80,
        steps=8,
    ),
    Workload(
        name="clusters clean",
        data=clusters(20, 5, 0.0, 1.2, 1),
        train=4000,
        validation=1500,
        layers=(20, 64, 5),
        evaluations=200,
        steps=8,
    ),
    Workload(
        name="clusters noisy",
        data=clusters(20, 3, 0.15, 1.0, 2),
        train=1500,
        validation=800,
        layers=(20, 64, 3),
        batch=16,
        evaluations=300,
        steps=6,
    ),
    Workload(
        name="clusters deep",
        data=clusters(16, 4, 0.05, 0.7, 3),
        train=3000,
        validation=1000,
        layers=(16, 24, 24, 24, 24, 4),
        activation=torch.tanh,
        evaluations=150,
        steps=8,
    ),
    Workload(
        name="clusters dropout",
        data=clusters(24, 4, 0.05, 1.2, 4),
        train=1500,
        validation=1000,
        layers=(24, 96, 4),
        dropout=0.5,
        evaluations=100,
        steps=10,
    ),
    Workload(
        name="reviews",
        data=reviews(300, 60.0, 5),
        train=2000,
        validation=1000,
        layers=(300, 16, 2),
        evaluations=60,
        steps=12,
    ),
    Workload(
        name="characters",
        data=characters(12, 3, 6),
        train=8000,
        validation=2000,
        layers=(36, 64, 12),
        batch=64,
        evaluations=200,
        steps=6,
        rates=(1e-3, 10),
    ),
    Workload(
        name="prices",
        data=prices(10, 0.3, False, 7),
        train=3000,
        validation=1000,
        layers=(10, 32, 32, 1),
        evaluations=100,
        steps=10,
        rates=(1e-4, 1),
    ),
    Workload(
        name="prices long tails",
        data=prices(10, 0.4, True, 8),
        train=1500,
        validation=500,
        layers=(10, 48, 1),
        batch=16,
        evaluations=250,
        steps=5,
        rates=(1e-4, 1),
    ),
    Workload(
        name="parity",
        data=parity(12, 3),
        train=4000,
        validation=1000,
        layers=(12, 48, 2),
        evaluations=120,
        steps=12,
        rates=(1e-3, 10),
    ),
    Workload(
        name="parity deep",
        data=parity(8, 4),
        train=4000,
        validation=1000,
        layers=(8, 24, 24, 2),
        activation=torch.tanh,
        evaluations=150,
        steps=8,
        rates=(1e-3, 10),
    ),
)


def teaching_workloads(rng: random.Random) -> list[Workload]:
    """Draw data sets, sizes and lengths such as tutorials have."""
    kinds: list[tuple[str, Callable[[int], Data], int, int]] = [
        ("reviews", lambda seed: reviews(400, 50.0, seed), 400, 2),
        ("topics", lambda seed: clusters(100, 8, 0.05, 3.0, seed), 100, 8),
        ("pictures", lambda seed: clusters(64, 5, 0.1, 1.5, seed), 64, 5),
        ("table", lambda seed: clusters(16, 2, 0.1, 1.0, seed), 16, 2),
        ("prices", lambda seed: prices(10, 0.5, False, seed), 10, 1),
    ]
    workloads = []
    for number in range(60):
        name, data, inputs, outputs = kinds[number % len(kinds)]
        train = rng.choice((150, 400, 1000, 2500, 5000))
        batch = rng.choice((16, 32, 64)) if train > 500 else 16
        hidden = rng.choice(((16,), (64,), (128,), (64, 64), (16, 16)))
        workloads.append(
            Workload(
                name=f"{name} {number}",
                data=data(number),
                train=train,
                validation=rng.choice((100, 300, 1000)),
                held_out=6000,
                layers=(inputs, *hidden, outputs),
                batch=batch,
                evaluations=rng.choice((5, 8, 10, 10, 15, 20, 20, 30, 40, 50)),
                steps=max(train // batch, 1),
                dropout=rng.choice((0.0, 0.0, 0.3, 0.5)),
            )
        )
    return workloads


def labelled(row: Row) -> Row:
    """Say by the large held-out set whether a run overfits; `unclear` where an expert would not say."""
    true, train = row.pop("true_loss"), row["train_loss"]
    if None in true or None in train:
        return {**row, "label": "unclear"}
    best = min(true)
    rise = sum(true[-2:]) / 2 / best - 1
    label = "overfit" if rise > 0.1 and train[-1] < train[0] else "not_overfit" if rise < 0.02 else "unclear"
    return {**row, "label": label, "true_best": true.index(best) + 1}


def main() -> None:
    """Train everything, a line a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--settings", type=int, default=96, help="models a workload and seed of the search")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    clock = time.perf_counter()
    with gzip.open(options.out, "wt", encoding="utf-8") as lines:
        for workload in SEARCH:
            for seed in range(options.seeds):
                rng = random.Random(f"{workload.name}/{seed}")
                for row in train(workload, drawn_settings(workload, options.settings, rng), seed):
                    lines.write(json.dumps({"kind": "search", **row}) + "\n")
            print(f"{time.perf_counter() - clock:5.0f} s: {workload.name}", flush=True)
        for workload in teaching_workloads(random.Random(0)):
            rng = random.Random(workload.name)
            for row in train(workload, teaching_settings(8, rng), 0):
                lines.write(json.dumps({"kind": "teaching", **labelled(row)}) + "\n")
        print(f"{time.perf_counter() - clock:5.0f} s: teaching runs")


if __name__ == "__main__":
    main()
