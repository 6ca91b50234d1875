"""`python -m shards`: raw corpora -> shards and their columns. One line and exit 2 on bad input."""

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shards import captions, corpora, newsclippings, nouns, objects, verify, write
from shards.command import CommandParser, product_version
from shards.files import InputError, read_json_lines
from shards.sample import write as sample
from shards.schema import REJECTS_NAME, ShardIndex
from shards.tables import DELIMITERS, MOST_LISTED

EXAMPLE = """example:
  python -m shards sample raw
  python -m shards build newsclippings --news-clippings raw/news_clippings \\
      --visual-news raw/visual_news --split train --out shards/train
  python -m shards detect shards/train --detector torchvision
  python -m shards nouns shards/train --size 1000 --out entities.json
  python -m shards verify shards/train
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run one command."""
    parser = _parser()
    argv = sys.argv[1:] if argv is None else argv
    if list(argv) == ["--version"]:
        return print(f"fusion-mre {product_version()}")
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "-m", "shards", *argv])
    try:
        args.run(args)
    except InputError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted; run the same command again to go on", 130))
    except BrokenPipeError:
        # The reader of our output is gone; Python must not complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(_fail(f"{error.filename}: {error.strerror}"))


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m shards",
        description="Raw corpora to training shards and their columns.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module, text, example in (
        ("sample", sample, "write synthetic corpora in the raw formats", "raw"),
        ("detect", objects, "write the objects column", "shards/train --detector torchvision"),
        (
            "nouns",
            nouns,
            "count the nouns of the captions: the entity vocabulary",
            "shards/train --size 1000 --out entities.tsv",
        ),
        (
            "captions",
            captions,
            "generate captions, or convert published ones",
            "convert cogvlm.txt --out cogvlm.csv",
        ),
        ("verify", verify, "check every byte, key and count", "shards/train"),
    ):
        example = f"example: python -m shards {name} {example}"
        command = commands.add_parser(name, help=text, description=module.__doc__, epilog=example)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    example = (
        "example: python -m shards build captions --images flickr --captions c.csv --out shards"
    )
    build = commands.add_parser("build", help="raw corpus to shards", epilog=example)
    _add_build(build.add_subparsers(metavar="CORPUS", required=True))
    return parser


def _add_build(kinds: argparse._SubParsersAction) -> None:
    news = kinds.add_parser(
        "newsclippings",
        help="NewsCLIPpings over VisualNews",
        epilog=(
            "example: python -m shards build newsclippings --news-clippings NC --visual-news VN "
            "--split train --out shards/train"
        ),
    )
    news.add_argument("--news-clippings", type=Path, required=True, help="holds data/<subset>/")
    news.add_argument("--visual-news", type=Path, required=True, help="holds origin/data.json")
    news.add_argument(
        "--subset",
        nargs="+",
        default=["merged_balanced"],
        choices=newsclippings.SUBSETS,
        metavar="NAME",
        help="sub-splits to unite: %(choices)s (default: merged_balanced)",
    )
    news.add_argument("--split", required=True, choices=("train", "val", "test"))
    news.set_defaults(run=_build_newsclippings)

    pairs = kinds.add_parser(
        "captions",
        help="any CSV with the columns image,caption",
        epilog=(
            "example: python -m shards build captions --images flickr --captions c.csv --out shards"
        ),
    )
    pairs.add_argument("--images", type=Path, required=True, help="folder of the pictures")
    pairs.add_argument("--captions", type=Path, required=True, help="CSV: image,caption")
    pairs.add_argument(
        "--delimiter", metavar="NAME", help=f"{', '.join(DELIMITERS)} (default: as the header has)"
    )
    pairs.add_argument("--encoding", help="of the CSV (default: its byte order mark's, or utf-8)")
    pairs.add_argument("--split", default="train", help="name of the split (default: train)")
    pairs.add_argument(
        "--mismatch",
        type=float,
        default=0.5,
        help="share of the rows given another picture's caption (default: 0.5)",
    )
    pairs.add_argument(
        "--fraction",
        type=_range,
        default=(0.0, 1.0),
        metavar="A:B",
        help="take this range of the (seeded, permuted) pictures, e.g. 0:0.9 (default: 0:1)",
    )
    pairs.set_defaults(run=_build_captions)
    for parser in (news, pairs):
        parser.add_argument("--out", type=Path, required=True, help="shard directory, one split")
        parser.add_argument(
            "--max-side", type=int, default=512, help="largest shorter side, pixels (default: 512)"
        )
        parser.add_argument("--shard-size", type=int, help="samples per tar (default: automatic)")
        parser.add_argument("--seed", type=int, default=0, help="of the permutation (default: 0)")
        parser.add_argument(
            "--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)"
        )


def _range(text: str) -> tuple[float, float]:
    try:
        first, last = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form A:B") from error
    if not 0 <= first < last <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: 0 <= A < B <= 1 is needed")
    return first, last


def _build_newsclippings(args: argparse.Namespace) -> None:
    subsets = list(dict.fromkeys(args.subset))
    corpus = newsclippings.newsclippings(args.news_clippings, args.visual_news, subsets, args.split)
    _build(corpus, args)


def _build_captions(args: argparse.Namespace) -> None:
    if not 0 <= args.mismatch <= 1:
        raise InputError(f"--mismatch {args.mismatch}: a share between 0 and 1 is needed")
    corpus = corpora.captions(
        args.images,
        args.captions,
        split=args.split,
        mismatch=args.mismatch,
        fraction=args.fraction,
        seed=args.seed,
        delimiter=args.delimiter,
        encoding=args.encoding,
    )
    _build(corpus, args)


def _build(corpus: corpora.Corpus, args: argparse.Namespace) -> None:
    for name in ("max_side", "shard_size", "jobs"):
        if (getattr(args, name) or 1) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be positive")
    index = write.build(
        corpus,
        args.out,
        max_side=args.max_side,
        shard_size=args.shard_size,
        seed=args.seed,
        jobs=args.jobs,
        command=args.command,
    )
    _report(args.out, index)


def _report(directory: Path, index: ShardIndex) -> None:
    total = sum(shard.bytes for shard in index.shards)
    print(
        f"{directory}: {index.rows} rows = {index.samples} samples ({index.matched} matched) "
        f"+ {index.rejects} rejects; {len(index.shards)} shards, {total / 2**20:.1f} MiB"
    )
    for title, values in index.provenance["report"].items():
        print(f"  {title}: {values}")
    if index.rejects:
        rejects = [reject for _, reject in read_json_lines(directory / REJECTS_NAME)]
        for reason, count in Counter(reject["reason"] for reject in rejects).most_common(8):
            print(f"  rejected {count}: {reason}")
        for reject in rejects[:MOST_LISTED]:
            print(f"  {reject['where']}: {reject['reason']}")
        if len(rejects) > MOST_LISTED:
            print(f"  and {len(rejects) - MOST_LISTED} more in {directory / REJECTS_NAME}")


if __name__ == "__main__":
    main()
