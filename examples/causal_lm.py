"""A causal language model that generates while it is pruned. Replace the small configuration by your own model."""

import torch

import exprune
import exprune.lab  # repairs torchvision, which transformers imports if it is installed

from transformers import LlamaConfig, LlamaForCausalLM  # isort: skip

torch.manual_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
    )
).eval()
batches = [{"input_ids": ids[None]} for ids in torch.randint(0, 500, (8, 64))]

calibration = exprune.calibrate(model, batches)
print(exprune.tradeoff(model, calibration, batches))
with torch.no_grad(), exprune.prune(model, calibration, kl=0.01) as run:
    print(model.generate(batches[0]["input_ids"][:, :8], max_new_tokens=8, do_sample=False, pad_token_id=0))
print(f"{run.flops.saved:.1%} of the FLOPs saved")
