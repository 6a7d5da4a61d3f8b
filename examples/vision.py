"""Grow your vision transformer and train it on: python examples/vision.py BASE OUT 2 IMAGES.npz

IMAGES.npz holds ``images`` [n, channels, height, width] as your model wants them, and ``labels`` [n].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageClassification

from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import open_checkpoint
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan
from depthup.models import prove_loading

base, out, num_removed, file = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
checkpoint = open_checkpoint(base)
plan = LayerPlan.upscale(find_stack(checkpoint.tensors, checkpoint.config).num_layers, num_removed)
upscale(base, out / "untrained", plan)
assert prove_loading(out / "untrained").whole, "a tensor found no place"

model = AutoModelForImageClassification.from_pretrained(out / "untrained").train()
images, labels = (torch.from_numpy(np.load(file)[name]) for name in ("images", "labels"))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
for step, rows in enumerate(torch.randperm(len(labels)).split(32)):
    loss = model(pixel_values=images[rows].float(), labels=labels[rows].long()).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step + 1}: loss {loss.item():.4f}")
model.save_pretrained(out / "trained")
print(f"{plan.num_base_layers} -> {plan.num_target_layers} layers, trained on, in {out / 'trained'}")
