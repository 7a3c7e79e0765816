"""A plain PyTorch loop on the handwritten digits; the five lines marked with # meter make its numbers exact."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from curvewatch_workers.meter import EpochMeter  # meter
from curvewatch_workers.metrics import Accuracy


def main(epochs: int = 10, batch_size: int = 32, learning_rate: float = 0.1) -> None:
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    train, validation = train_test_split(range(len(targets)), test_size=361, random_state=0, stratify=labels)
    train_set = TensorDataset(inputs[train], targets[train])
    model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sampler: DistributedSampler[int] | None = None
    rank, world_size = 0, 1
    if torch.distributed.is_initialized():
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        model, sampler = DistributedDataParallel(model), DistributedSampler(train_set)
    loader = DataLoader(train_set, batch_size, shuffle=sampler is None, sampler=sampler)
    shard = TensorDataset(inputs[validation][rank::world_size], targets[validation][rank::world_size])
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    meter = EpochMeter(train_samples=1436, validation_samples=361, metrics={"accuracy": Accuracy()})  # meter
    for epoch in meter.epochs(epochs):
        model.train()
        if sampler is not None:
            sampler.set_epoch(epoch)
        for batch, truth in loader:
            outputs = model(batch)
            loss = loss_function(outputs, truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            meter.update("train", loss, outputs, truth)  # meter
        model.eval()
        with torch.no_grad():
            for batch, truth in DataLoader(shard, batch_size):
                outputs = getattr(model, "module", model)(batch)
                meter.update("validation", loss_function(outputs, truth), outputs, truth)  # meter
        record = meter.end_epoch(learning_rate=learning_rate)  # meter
        if rank == 0:
            print(f"epoch {epoch}: validation loss {record.validation.loss:.4f}")


if __name__ == "__main__":
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("gloo")  # a job has its process group already
    main()
