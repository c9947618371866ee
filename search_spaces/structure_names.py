"""The names that the structural parts of a space may use, with what each does: built-in ones, to be known without loading what does it.

The registries of `tuner.compress` hold the functions; a test keeps both in step. Plug-ins add to the registries alone."""

from __future__ import annotations

CHANNEL_CRITERIA: dict[str, str] = {
    "l1": "the sum of the absolute weights that make a channel",
    "l2": "the length (2-norm) of the weights that make a channel",
    "fpgm": "the distance of a filter from all others: what lies near the middle of them can be replaced",
    "apoz": "how seldom a channel is zero after the activation",
    "mean-activation": "the mean of a channel after the activation",
    "slim": "the scale of the BatchNormalization behind the layer",
    "taylor": "how much the loss changes with the channel, by its weights and their gradients (first order)",
    "taylor-bn": "the same, by scale and shift of the BatchNormalization behind the layer",
    "taylor-activation": "the same, by the channel's activations and their gradients",
    "mask-gradient": "how much the loss changes with a factor on a channel that the layer reads; made for attention heads",
    "snip": "the share of the gradient's effect that the channel's weights carry",
    "random": "a draw; what others should beat",
}
"""What `criterion` of `channels` may be: it rates whole channels, of which the lowest go first."""

SPARSEGPT = "sparsegpt"
WEIGHT_CRITERIA: dict[str, str] = {
    "level": "the absolute value of the weight",
    "lamp": "the square of a weight as a share of those at least as large, comparable between layers",
    "gradient": "the gradient's absolute value",
    "snip-element": "the absolute value of weight times gradient",
    "movement": "how far the gradients push the weight away from zero",
    "wanda": "the weight's absolute value times the length of the input that it reads",
    SPARSEGPT: "reconstruction layer by layer: the error of each zero is made good by the weights that stay",
    "random-element": "a draw; what others should beat",
}
"""What `criterion` of `sparsity` may be: it rates single weights, of which the lowest go first."""

PRUNERS: dict[str, str] = {
    "level": "everything at once, before training",
    "criterion": "by the criterion's scores at once, before training",
    "linear": "the same number of weights in every step of the first half of training",
    "exponential": "the same share of what is left in every step of the first half of training",
    "agp": "fast at first and slower later (automated gradual pruning); weights may come back on the way",
    "iterative": "rounds of pruning and training, the same share of what is left in each",
    "lottery": "rounds of pruning and training, each from the first weights (lottery ticket)",
    "admm": "weights are drawn to zero by ADMM, then cut and trained on",
    "movement": "by how training moves weights; made for few steps from a pretrained model",
}
"""What `pruner` of `sparsity` may be."""
SLIM = "slim"
"""Registered as a pruner, but it sets no weights to zero: it is the training that goes before the criterion of this name."""
SCORED = frozenset({"level", "criterion", "linear", "exponential", "iterative"})
"""The pruners that take a criterion's scores; the others rate weights themselves."""

METHODS: dict[str, str] = {
    "svd": "a matrix as the product of two: the nearest one",
    "svd-llm": "the product with the least error of the layer's output on calibration rows",
    "fwsvd": "the nearest product where weights count as much as the loss depends on them (Fisher information)",
    "spatial-svd": "a convolution with a column as its kernel, then one with a row",
    "channel-svd": "a convolution to fewer channels, then one of size 1×1",
    "tucker2": "a 1×1 convolution to fewer channels, the kernel on these, and 1×1 to the channels that there were",
}
"""What `methods` of `rank` may name."""

LOSSES: dict[str, str] = {
    "logits": "the original's outputs (for classes its softened probabilities)",
    "labels": "the labels of the training rows",
    "features": "the original's tensors inside the network, value by value",
    "cosine": "their direction",
    "attention": "where in the image or sequence they are large",
}
"""What `losses` of `recovery` may name."""
