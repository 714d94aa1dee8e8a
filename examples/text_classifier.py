"""A transformers classifier on padded texts. Replace the small configuration by your own model."""

import torch

import exprune
import exprune.lab  # repairs torchvision, which transformers imports if it is installed

from transformers import BertConfig, BertForSequenceClassification  # isort: skip

torch.manual_seed(0)
model = BertForSequenceClassification(
    BertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512, vocab_size=500)
).eval()
tokens = torch.randint(0, 500, (20, 6, 24))  # twenty batches of six texts
mask = torch.ones(6, 24, dtype=torch.long)
mask[:3, 16:] = 0  # padding is neither used for calibration nor counted
batches = [{"input_ids": ids, "attention_mask": mask} for ids in tokens]

print(exprune.inspect(model, batches[0]))
calibration = exprune.calibrate(model, batches)
with torch.no_grad(), exprune.prune(model, calibration, saved=0.2) as run:
    for batch in batches:
        model(**batch)
print(run.point)
print(f"{run.flops.saved:.1%} of the FLOPs saved")
