"""A large network on few of the digits, some of them labelled wrong: it learns them by heart and overfits."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask


def build(
    train_samples: int = 200,
    wrong_labels: float = 0.2,
    width: int = 512,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
) -> TrainingTask:
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    pool, validation = train_test_split(range(len(targets)), test_size=361, random_state=0, stratify=labels)
    train = pool[:train_samples]
    train_targets = targets[train]
    noise = torch.Generator().manual_seed(0)
    wrong = torch.rand(train_samples, generator=noise) < wrong_labels
    shift = torch.randint(1, 10, (train_samples,), generator=noise)
    train_targets = torch.where(wrong, (train_targets + shift) % 10, train_targets)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    return TrainingTask(
        model=model,
        train=TensorDataset(inputs[train], train_targets),
        validation=TensorDataset(inputs[validation], targets[validation]),
        loss=nn.CrossEntropyLoss(),
        optimizer=torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay),
        metrics={"accuracy": Accuracy()},
    )
