"""The fusion encoder: model, objectives, distributed training and checkpoints."""
