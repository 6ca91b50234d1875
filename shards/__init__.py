"""WebDataset shards from raw news corpora: build, annotate, verify, stream."""
