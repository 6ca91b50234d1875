"""The fusion encoder, the pre-training heads on it, and the frozen prompter."""
