"""Small raw corpora in their publishers' formats, and shards made of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from shards import newsclippings, write
from shards.files import file_sha256
from shards.json_files import read_json
from shards.shard import with_checksum
from shards.stream import ShardReader

PICTURES = 40


def save_picture(path: Path, size: tuple[int, int] = (48, 32), seed: int = 0, **options) -> None:
    """A picture of coarse random blocks: small, and different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path, **options)


@pytest.fixture(scope="session")
def picture():
    """`save_picture`, for tests that need one more."""
    return save_picture


@pytest.fixture(scope="session")
def news(tmp_path_factory) -> Path:
    """`nc/` and `vn/`: 40 articles of two sources, two sub-splits of twins; no row is broken."""
    root = tmp_path_factory.mktemp("news")
    origin, articles = root / "vn" / "origin", []
    for number in range(PICTURES):
        source = ("bbc", "guardian")[number % 2]
        path = f"./{source}/images/0001/{number}.jpg"
        save_picture(origin / path, seed=number)
        articles.append(
            {
                "id": 7 * number,
                "caption": f"A caption {number} of the dog",
                "image_path": path,
                "source": source,
                "topic": "t",
                "article_path": "./a.txt",
            }
        )
    (origin / "data.json").write_text(json.dumps(articles))
    for subset, shift in (("merged_balanced", 3), ("scene_resnet_place", 5)):
        rows = []
        for number in range(PICTURES):
            other = (number + shift) % PICTURES
            for image, falsified in ((number, False), (other, True)):
                row = {"id": 7 * number, "image_id": 7 * image, "falsified": falsified}
                rows.append(row | {"similarity_score": 0.25, "source_dataset": 0})
        path = root / "nc" / "data" / subset / "train.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"annotations": rows}))
    return root


@pytest.fixture(scope="session")
def news_shards(news, tmp_path_factory) -> Path:
    """80 pairs in 8 tars. Not to be changed: copy it first."""
    directory = tmp_path_factory.mktemp("shards") / "train"
    corpus = newsclippings.newsclippings(news / "nc", news / "vn", ["merged_balanced"], "train")
    write.build(corpus, directory, shard_size=10)
    return directory


def write_format_1(source: Path, directory: Path, *, objects: bool = False) -> Path:
    """Shards as commit 265d405 wrote them: a picture and a JSON file a pair, no table of rows."""
    reader, infos, lines = ShardReader(source, columns=["objects"] if objects else []), [], {}
    directory.mkdir()
    for number, info in enumerate(reader.index.shards):
        path, lines[info.stem] = directory / info.name, ""
        with open(path, "wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
            for sample in reader.samples(number):
                meta = dataclasses.asdict(sample.meta)
                del meta["row"], meta["orientation"]
                content = with_checksum(sample.key, sample.image, json.dumps(meta))
                tar.write({"__key__": sample.key, "jpg": sample.image, "json": content})
                found = [dataclasses.asdict(item) for item in sample.objects or ()]
                lines[info.stem] += json.dumps({"key": sample.key, "objects": found}) + "\n"
        counts = {"samples": info.samples, "matched": info.matched}
        size, sha256 = path.stat().st_size, file_sha256(path)
        infos.append({"name": info.name, "bytes": size, "sha256": sha256} | counts)
    index = reader.index.to_dict() | {"shards": infos, "format": 1}
    del index["pictures"]
    (directory / "index.json").write_text(json.dumps(index))
    shutil.copy(source / "rejects.jsonl", directory)
    if objects:
        (directory / "objects").mkdir()
        column = read_json(source / "objects" / "column.json")
        for info in infos:
            path = directory / "objects" / f"{info['name'][:-4]}.jsonl"
            path.write_text(lines[path.stem])
            column["shards"][path.stem] = {
                "samples": info["samples"],
                "sha256": file_sha256(path),
                "tar_sha256": info["sha256"],
            }
        (directory / "objects" / "column.json").write_text(json.dumps(column | {"format": 1}))
    return directory


@pytest.fixture(scope="session")
def format_1():
    """`write_format_1`."""
    return write_format_1


@pytest.fixture
def old_shards(news_shards, tmp_path) -> Path:
    """`news_shards` in format 1."""
    return write_format_1(news_shards, tmp_path / "old")


@pytest.fixture
def caption_csv(tmp_path) -> tuple[Path, Path]:
    """(images, CSV): 20 pictures with three captions each."""
    lines = ["image,caption"]
    for number in range(20):
        save_picture(tmp_path / "images" / f"{number}.v1.jpg", seed=number)
        lines += [f'{number}.v1.jpg,"caption {text}, of {number}"' for text in "abc"]
    (tmp_path / "captions.csv").write_text("\n".join(lines))
    return tmp_path / "images", tmp_path / "captions.csv"
