"""A Lightning training as a job, on a real Ray cluster and through the HTTP API."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hook_support import read_file
from ray_support import ServiceProcess

pytestmark = pytest.mark.long

LOOP = """
import lightning.pytorch as pl
import torch
from curvewatch_workers.hooks.lightning import CurvewatchCallback
from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Linear(4, 2)

    def training_step(self, batch, index):
        loss = functional.cross_entropy(self.model(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val_loss", functional.cross_entropy(self.model(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(file, epochs=6):
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(inputs, (inputs[:, 0] > 0).long())
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices="auto",
        strategy=RayDDPStrategy(),
        plugins=[RayLightningEnvironment()],
        callbacks=[CurvewatchCallback(file)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Classifier(), DataLoader(data, 8), DataLoader(data, 8))
"""


def test_lightning_on_two_workers_tells_the_run(tmp_path: Path, service: ServiceProcess) -> None:
    job = tmp_path / "job"
    job.mkdir()
    (job / "loop.py").write_text(LOOP)
    spec = {
        "name": "lightning",
        "code": {"loop": "loop:main"},
        "params": {"file": str(tmp_path / "curve.csv")},
        "training": {"epochs": 6, "global_batch_size": 16},
        "scaling": {"workers": 2},
    }
    (job / "job.yaml").write_text(json.dumps(spec))

    run = service.wait_for_end(service.submit(job))

    with service.client() as client:
        epochs = client.epochs(run.run_id)
        events = {event.reason for event in client.events(run.run_id)}
    assert (run.state, run.world_size, run.epoch) == ("SUCCEEDED", 2, 6), run.reason
    assert [(epoch.epoch, epoch.train.loss, epoch.validation.loss) for epoch in epochs] == [
        (row["epoch"], row["train_loss"], row["val_loss"]) for row in read_file(tmp_path / "curve.csv")
    ]
    assert {epoch.train.receipt.reported_by for epoch in epochs} == {"lightning"}
    assert "means_of_framework" in events
