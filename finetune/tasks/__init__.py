"""Readers of the public data sets: files on disk -> examples."""
