"""A small GPT that learns to write Python, from the source of Python's own standard library."""

import math
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from curvewatch_workers.metrics import Accuracy, Perplexity
from curvewatch_workers.task import TrainingTask

CHARACTERS = 128  # ASCII; whatever else is in the source becomes a question mark


class Block(nn.Module):
    """Attention, then a layer for each place."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape, [batch, length, width]."""
        parts = self.query_key_value(self.first(x)).unflatten(-1, (3, self.heads, -1)).movedim(2, 0)
        query, key, value = parts.transpose(2, 3)  # [batch, heads, length, width / heads] each
        seen = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.projection(seen.transpose(1, 2).flatten(2)))
        changed: Tensor = x + self.dropout(self.inner(self.second(x)))
        return changed


class Gpt(nn.Module):
    """From characters to what may follow each."""

    def __init__(self, width: int, layers: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Return logits [batch, characters, length] of the next character of texts [batch, length]."""
        places = torch.arange(text.shape[1], device=text.device)
        x = self.blocks(self.characters(text) + self.places(places))
        logits: Tensor = self.head(self.norm(x)).transpose(1, 2)
        return logits


def texts(characters: int, length: int) -> TensorDataset:
    """Cut the first characters of the standard library into texts and what follows each of their characters.

    A module's last text is filled up; nothing is asked there (-100), so that such a text weighs less.
    """
    inputs, targets = [], []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text(encoding="utf-8", errors="replace")[:characters]
        characters -= len(source)
        if len(source) > 1:
            codes = torch.tensor(list(source.encode("ascii", "replace")))
            missing = (0, -(len(codes) - 1) % length)
            inputs.append(nn.functional.pad(codes[:-1], missing).view(-1, length))
            targets.append(nn.functional.pad(codes[1:], missing, value=-100).view(-1, length))
    return TensorDataset(torch.cat(inputs), torch.cat(targets))


def build(
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    length: int = 64,
    dropout: float = 0.0,
    characters: int = 400_000,
    learning_rate: float = 3e-3,
    warmup_steps: int = 40,
    epochs: int = 8,  # these two as in `training`: the schedule ends with the run
    global_batch_size: int = 64,
) -> TrainingTask:
    data = texts(characters, length)
    held_out = len(data) // 10
    model = Gpt(width, layers, heads, length, dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    total_steps = epochs * math.ceil((len(data) - held_out) / global_batch_size)

    def rate(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))

    return TrainingTask(
        model=model,
        train=TensorDataset(*data[:-held_out]),
        validation=TensorDataset(*data[-held_out:]),
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        scheduler_step="step",
        metrics={"perplexity": Perplexity(), "accuracy": Accuracy()},
    )
