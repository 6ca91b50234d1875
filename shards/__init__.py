"""WebDataset shards from raw news corpora: build, annotate, verify, stream."""


def __getattr__(name: str) -> str:  # metadata are read only where they are asked for
    if name == "__version__":
        from shards.command import product_version

        return product_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
