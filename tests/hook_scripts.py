"""What the ranks of the hooks' tests run: `python -m torch.distributed.run tests/hook_scripts.py lightning FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def train_lightning(folder: Path) -> int:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from curvewatch_workers.hooks.lightning import CurvewatchCallback
    from hook_support import make_datasets
    from unit.test_hook_lightning import Classifier

    class BothWays(Classifier):
        """Has the train loss reduced over the ranks, and leaves the validation to rank 0: the other has no number."""

        def log(self, name: str, *arguments: Any, **options: Any) -> None:
            if name == "train_loss":
                super().log(name, *arguments, **options, sync_dist=True)
            elif self.global_rank == 0:
                super().log(name, *arguments, **options, rank_zero_only=True)

    train, validation = make_datasets(healthy=False)
    trainer = pl.Trainer(
        max_epochs=60,
        accelerator="cpu",
        devices=int(os.environ["WORLD_SIZE"]),
        strategy="ddp",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CurvewatchCallback(folder / "curve.csv", stop=True)],
    )
    trainer.fit(BothWays(healthy=False), DataLoader(train, 16), DataLoader(validation, 64))
    return int(trainer.current_epoch)


def train_transformers(folder: Path) -> int:
    from curvewatch_workers.hooks.transformers import CurvewatchCallback
    from unit.test_hook_transformers import make_trainer

    trainer = make_trainer(CurvewatchCallback(folder / "curve.csv", stop=True), folder)
    trainer.train()
    assert trainer.state.epoch is not None
    return int(trainer.state.epoch)


if __name__ == "__main__":
    which, folder = sys.argv[1], Path(sys.argv[2])
    epochs = (train_lightning if which == "lightning" else train_transformers)(folder)
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(epochs))
