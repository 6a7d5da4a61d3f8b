"""Held-out loss of checkpoints on text files: python examples/held_out_loss.py text.jsonl MODEL [MODEL ...]"""

import sys
import tempfile
from math import exp
from pathlib import Path

from depthup.data.packing import pack
from depthup.data.sources import Files
from depthup.data.tokens import sample, write_tokens
from depthup.evaluation.heldout import held_out_loss
from depthup.models import end_of_text, load_model, load_tokenizer
from depthup.training.objectives import summed_loss

text, *models = sys.argv[1:]
for folder in models:
    tokenizer = load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as place:
        documents = write_tokens(Files((text,)).documents(), tokenizer, end_of_text(tokenizer), Path(place))
        rows = pack(sample(documents, max_tokens=8192), row_tokens=512)
        measured = held_out_loss(load_model(folder), rows, summed_loss)
    print(f"{folder}: loss {measured.loss:.4f}, perplexity {exp(measured.loss):.2f}, {measured.num_tokens} tokens")
