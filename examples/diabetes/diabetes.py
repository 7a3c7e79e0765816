"""Progression of diabetes in 442 patients after one year (scikit-learn's data): regression, MAE beside MSE."""

import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

from curvewatch_workers.metrics import MeanAbsoluteError
from curvewatch_workers.task import TrainingTask


def build(width: int = 16, learning_rate: float = 3e-3, weight_decay: float = 0.1) -> TrainingTask:
    measurements, progression = load_diabetes(return_X_y=True)
    train, validation = train_test_split(range(len(progression)), test_size=111, random_state=0)
    inputs = torch.tensor(measurements, dtype=torch.float32) / 0.0476  # the columns' standard deviation
    # The target ranges from 25 to 346; in units of 100 the loss starts near 1, and MAE is in hundreds.
    targets = torch.tensor(progression, dtype=torch.float32).unsqueeze(1) / 100
    model = nn.Sequential(nn.Linear(10, width), nn.ReLU(), nn.Linear(width, 1))
    return TrainingTask(
        model=model,
        train=TensorDataset(inputs[train], targets[train]),
        validation=TensorDataset(inputs[validation], targets[validation]),
        loss=nn.MSELoss(),
        optimizer=torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay),
        metrics={"mae": MeanAbsoluteError()},
    )
