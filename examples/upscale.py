"""Make a checkpoint deeper: python examples/upscale.py BASE OUT 8"""

import sys

from depthup.checkpoint.names import find_stack
from depthup.checkpoint.reader import open_checkpoint
from depthup.growth.surgery import upscale
from depthup.layers import LayerPlan

base, out, num_removed = sys.argv[1], sys.argv[2], int(sys.argv[3])
checkpoint = open_checkpoint(base)
num_layers = find_stack(checkpoint.tensors, checkpoint.config).num_layers

plan = LayerPlan.upscale(num_layers, num_removed)
print(plan.render())
for seam in plan.seams:
    print(f"target layer {seam.target_layer} is base layer {seam.above}; below it stands base layer {seam.below}")

surgery = upscale(base, out, plan)
print(f"{surgery.num_parameters:,} parameters in {out}")
