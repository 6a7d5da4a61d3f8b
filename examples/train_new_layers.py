"""Train the new layers of a grown checkpoint, all else frozen: python examples/train_new_layers.py GROWN TEXT OUT"""

import sys
from pathlib import Path

import torch

from depthup.checkpoint.carry import carry
from depthup.files import publishing
from depthup.growth.freeze import read_freeze_map
from depthup.models import export_model, load_model, load_tokenizer

grown, text, out = map(Path, sys.argv[1:4])
model, tokenizer = load_model(grown), load_tokenizer(grown)

groups = read_freeze_map(grown).groups(name for name, _ in model.named_parameters())
new = set(groups["new"])
for name, parameter in model.named_parameters():
    parameter.requires_grad_(name in new)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
print(f"{len(trained)} tensors of new layers are trained, {len(groups['original'])} of original layers are frozen")

tokens = tokenizer(text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][:, :512]
optimizer = torch.optim.AdamW(trained, lr=2e-4)  # the rate of LLaMA Pro, reported
model.train()
for step in range(3):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.4f}")

with publishing(out) as partial:
    carry(grown, partial)
    export_model(model, grown, partial)
