"""Handwritten digits (scikit-learn's 1797 images of 8x8 pixels), a small convolutional network: a good fit."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from curvewatch_workers.metrics import Accuracy
from curvewatch_workers.task import TrainingTask


def build(
    width: int = 32, learning_rate: float = 0.1, decay: float = 0.85, weight_decay: float = 5e-3
) -> TrainingTask:
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    # 361 validation samples divide by none of 2, 3 and 4 workers: padding would show.
    train, validation = train_test_split(range(len(targets)), test_size=361, random_state=0, stratify=labels)
    model = nn.Sequential(
        nn.Conv2d(1, width, kernel_size=3, stride=2, padding=1),
        nn.GELU(),
        nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(2 * width * 2 * 2, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9, weight_decay=weight_decay)
    return TrainingTask(
        model=model,
        train=TensorDataset(inputs[train], targets[train]),
        validation=TensorDataset(inputs[validation], targets[validation]),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=decay),
        metrics={"accuracy": Accuracy()},
    )
