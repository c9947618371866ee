"""What changes a model: quantization, pruning and the rest. Nothing here runs the result; that is `tuner.measure`."""
