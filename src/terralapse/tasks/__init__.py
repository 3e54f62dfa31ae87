"""One file a task: output type, losses, metrics, the training step. Never the name of a model."""
