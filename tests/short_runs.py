"""Short training runs of tiny models: rows, settings, an optimizer."""

from __future__ import annotations

import numpy as np
import pico
import torch

from depthup.data.packing import PackedRows, pack
from depthup.data.tokens import TokenizedDocuments
from depthup.training.optimizers import make_optimizer
from depthup.training.schedule import Schedule
from depthup.training.settings import TrainSettings

SETTINGS = TrainSettings(Schedule("cosine", 6, 2), learning_rate=1e-2, rows_per_step=8, micro_batch_rows=8)


def make_rows(seed: int = 0, row_tokens: int = 24) -> PackedRows:
    lengths = np.random.default_rng(seed).integers(3, 40, 60)
    tokens = np.random.default_rng(seed).integers(1, pico.VOCAB_SIZE, lengths.sum()).astype(np.int32)
    return pack(TokenizedDocuments(tokens, np.concatenate([[0], np.cumsum(lengths)])), row_tokens)


def optimizer_of(model: torch.nn.Module, weight_decay: float = SETTINGS.weight_decay) -> torch.optim.Optimizer:
    return make_optimizer(model, weight_decay=weight_decay, betas=SETTINGS.betas)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
