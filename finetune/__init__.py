"""Relation extraction and entity recognition: every method on every task, judged one way."""
