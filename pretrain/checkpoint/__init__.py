"""Run checkpoints, released model directories, and conversions between known layouts."""
