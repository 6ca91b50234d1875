"""Order, ranks, resume, access by address, damage, and remote locations."""

import dataclasses
import itertools
import json
import multiprocessing
import pickle
import shutil
import sys
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save, save_file

from shards import location
from shards.__main__ import main
from shards.columns import write_column
from shards.detections import pack_detections
from shards.files import InputError, file_sha256
from shards.json_files import read_json
from shards.rows import id_hash
from shards.schema import DetectedObject
from shards.stream import CanonicalOrder, RankBatches, ShardReader

counts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(counts, st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_every_sample_once(counts, streams, epoch, shuffle):
    order = CanonicalOrder(counts, seed=1, streams=streams, shuffle=shuffle)
    addresses = order.epoch(epoch)[:]
    assert addresses.dtype == np.int32 and addresses.shape == (len(order), 2)
    expected = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert sorted(map(tuple, addresses.tolist())) == expected
    if not shuffle:
        assert list(map(tuple, addresses.tolist())) == expected


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, streams=64):
        return CanonicalOrder([30] * 20, seed=seed, streams=streams).epoch(epoch)[:].tolist()

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), order(0, 0, streams=3)]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_as_many_shards_are_in_use_as_there_are_streams():
    """Positions that a shard spans: short, so that a window of the order touches few shards."""
    order = CanonicalOrder([50] * 40, seed=0, streams=4).epoch(0)[:]
    for start in range(0, len(order) - 100, 100):
        assert len(set(order[start : start + 100, 0].tolist())) <= 8
    # The streams take turns, one sample each.
    assert len(set(order[:4, 0].tolist())) == 4
    assert order[:4, 0].tolist() == order[4:8, 0].tolist()


def take(order, world, micro, accumulation, start, samples):
    """The global sequence, put together from all ranks as the definition says."""
    ranks = [
        iter(
            RankBatches(
                order,
                rank=rank,
                world=world,
                micro_batch_size=micro,
                accumulation=accumulation,
                start=start,
            )
        )
        for rank in range(world)
    ]
    sequence = []
    for _ in range(-(-samples // (micro * world))):
        batches = [next(rank) for rank in ranks]
        assert {len(batch) for batch in batches} == {micro}
        sequence += [batches[rank][j] for j in range(micro) for rank in range(world)]
    return sequence


@settings(deadline=None, max_examples=40)
@given(counts, st.sampled_from([(1, 8, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (1, 2, 4), (2, 1, 4)]))
def test_every_world_size_gives_the_same_two_epochs(counts, shape):
    order = CanonicalOrder(counts, seed=3, streams=4)
    expected = [(e, *map(int, at)) for e in (0, 1, 2) for at in order.epoch(e)[:]]
    samples = 2 * len(order)
    sequence = take(order, *shape, start=0, samples=samples)
    assert sequence[:samples] == expected[:samples]
    assert len(set(sequence[:samples])) == samples


@settings(deadline=None, max_examples=40)
@given(counts, st.integers(0, 12), st.sampled_from([(1, 8, 1), (2, 2, 2), (4, 2, 1)]))
def test_resume_on_another_world_size_loses_nothing(counts, batches, shape):
    order = CanonicalOrder(counts, seed=3, streams=4)
    consumed = 8 * batches
    before = take(order, 2, 4, 1, 0, consumed)[:consumed]
    after = take(order, *shape, start=consumed, samples=24)
    assert before + after == take(order, 1, 8, 1, 0, consumed + 24)


PICTURES_OF = st.lists(st.lists(st.integers(1, 7), min_size=1, max_size=6), min_size=1, max_size=5)
"""Of each shard the number of samples of each picture."""


def together_order(sizes: list[list[int]], together: int) -> CanonicalOrder:
    pictures = [np.repeat(np.arange(len(shard)), shard) for shard in sizes]
    return CanonicalOrder(
        [len(shard) for shard in pictures],
        seed=3, streams=2, together=together, pictures=pictures.__getitem__,
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(
    PICTURES_OF,
    st.integers(2, 4),
    st.sampled_from([(1, 8, 1), (2, 4, 1), (4, 2, 1), (4, 1, 2), (2, 2, 2)]),
    st.integers(0, 5),
)
def test_pictures_kept_together_are_one_sequence_for_all(sizes, together, shape, batches):
    """Any ranks, accumulation and start: the global batches are those of one process."""
    order = together_order(sizes, together)
    whole = take(order, 1, 8, 1, 0, 3 * len(order) + 8 * (batches + 3))
    start = 8 * batches

    def sets(sequence: list) -> list:
        return [sequence[at : at + 8] for at in range(0, len(sequence), 8)]

    assert sets(take(order, *shape, start=start, samples=24)) == sets(whole[start:])[:3]
    for epoch in (0, 1):
        addresses = [at[1:] for at in whole if at[0] == epoch]
        # Spans lie over the ends of epochs: an epoch's last samples may come a span later.
        assert len(set(addresses)) == len(addresses) <= len(order)
    samples = order.epoch(1)[:]
    assert len(set(map(tuple, samples.tolist()))) == len(order)
    (blocks,) = [
        list(itertools.islice(batch.blocks(), 3))
        for batch in [RankBatches(order, rank=0, world=2, micro_batch_size=4, start=start)]
    ]
    flat = [one for block in blocks for one in block]
    alone = RankBatches(order, rank=0, world=2, micro_batch_size=4, start=start)
    assert flat == list(itertools.islice(alone, len(flat)))
    assert len(blocks[0]) == together - batches % together and len(blocks[1]) == together


def test_one_decoding_serves_several_steps():
    """Five samples a picture: each block of five steps shows as many pictures as one step has."""
    sizes = [[5] * 12, [5] * 20]
    order, apart = together_order(sizes, 5), together_order(sizes, 1)
    decodings = {}
    for name, one in (("together", order), ("apart", apart)):
        batches = RankBatches(one, rank=1, world=2, micro_batch_size=8)
        picture = lambda at: (at[1], at[2] // 5)  # noqa: E731
        blocks = [list(itertools.islice(iter(batches), 10))]
        steps = blocks[0]
        for batch in steps:
            assert name == "apart" or len({picture(at) for at in batch}) == 8
        decodings[name] = len({picture(at) for batch in steps[:5] for at in batch}) + len(
            {picture(at) for batch in steps[5:] for at in batch}
        )
    assert decodings["together"] == 16 < decodings["apart"]
    # Those with fewer samples come last, so that the others stay aligned.
    mixed = together_order([[2, 3, 2, 1, 5, 4]], 2).epoch(0)[:][:, 1]
    pictures = np.repeat(np.arange(6), [2, 3, 2, 1, 5, 4])[mixed]
    assert (pictures[0:14:2] == pictures[1:14:2]).all() and len(set(mixed.tolist())) == 17


def test_position_and_wrong_start():
    order = CanonicalOrder([5, 7], seed=0)
    batches = RankBatches(order, rank=0, world=2, micro_batch_size=3)
    assert [batches.position(n) for n in (0, 11, 12, 30)] == [(0, 0), (0, 11), (1, 0), (2, 6)]
    with pytest.raises(InputError, match="global batch 6"):
        RankBatches(order, rank=0, world=2, micro_batch_size=3, start=4)
    with pytest.raises(InputError, match="no sample"):
        CanonicalOrder([0, 0], seed=0)


# ------------------------------------------------------------------ reading


@pytest.fixture
def shards(news_shards, tmp_path) -> Path:
    shutil.copytree(news_shards, tmp_path / "shards")
    return tmp_path / "shards"


def add_columns(directory: Path) -> None:
    """Object boxes and teacher features that can be told from the shard and row."""

    def objects(shard: int) -> bytes:
        boxes = [DetectedObject((0, 0, 1 + n, 2 + shard), 0.5, "dog") for n in range(5)]
        return pack_detections([[box] * (n % 3) for n, box in enumerate(boxes)])

    def teacher(shard: int) -> bytes:
        pictures = np.arange(5)
        tensors = {
            "image_feat": (np.full((5, 256), 10.0 * shard) + pictures[:, None]).astype(np.float16),
            "object_feat": np.zeros((5, 256), np.float16),
            "has_object": pictures % 2 == 0,
        }
        return save(tensors)

    for column, compute in (("objects", objects), ("teacher", teacher)):
        files = lambda numbers, compute=compute: ((n, compute(n)) for n in numbers)  # noqa: E731
        write_column(directory, column, files, {}, desc="test")


def test_read_gives_what_tarfile_gives(news_shards):
    reader = ShardReader(news_shards)
    assert len(reader) == 80
    for number, info in enumerate(reader.index.shards):
        with tarfile.open(news_shards / info.name) as tar:
            names, expected = tar.getnames(), []
            for name in names[1::2]:
                meta = json.loads(tar.extractfile(name).read())
                image = tar.extractfile(name.replace(".json", ".jpg")).read()
                expected += [(pair, meta["image_id"], image) for pair in meta["pairs"]]
        # Matched pairs come first, each kind in the order of the pictures.
        expected.sort(key=lambda entry: not entry[0]["matched"])
        assert len(expected) == info.samples
        for row, (pair, image_id, image) in reversed(list(enumerate(expected))):
            sample, place = reader.read(number, row), reader.shard(number).place(row)
            assert sample.image == image and sample.objects is None and sample.teacher is None
            assert sample.key == place.key == f"train_{pair['row']:08d}"
            assert (sample.meta.image_id, sample.meta.row) == (image_id, pair["row"])
            assert all(getattr(sample.meta, name) == value for name, value in pair.items())
            assert (sample.meta.matched, sample.meta.size) == (place.matched, place.size)
            assert place.ids == (id_hash(sample.meta.caption_id), id_hash(image_id))
        assert reader.captions(number) == [pair["caption"] for pair, *_ in expected]
        pictures = list(reader.pictures(number))
        assert [f"{picture.key}.jpg" for picture in pictures] == names[::2]
        assert [len(picture.meta.pairs) for picture in pictures] == [2] * info.pictures


def test_columns_come_with_their_sample(shards):
    reader = ShardReader(shards)
    assert not reader.has_column("objects")
    with pytest.raises(InputError, match=r"no teacher column; run `python -m pretrain label"):
        ShardReader(shards, columns=["teacher"])
    add_columns(shards)
    assert reader.has_column("objects")
    reader = ShardReader(shards, columns=["objects", "teacher"])
    rows = [row for row in range(10) if reader.shard(3).place(row).picture == 2]
    assert len(rows) == 2
    for row in rows:
        sample, place = reader.read(3, row), reader.shard(3).place(row)
        assert [item.box for item in sample.objects] == [(0, 0, 3, 5)] * 2
        assert place.box == (0, 0, 3, 5)
        for teacher in (sample.teacher, place.teacher):
            assert teacher["image_feat"].shape == (256,)
            assert teacher["image_feat"].dtype == np.float16
            assert (teacher["image_feat"] == 32).all() and teacher["has_object"]
    first = next(row for row in range(10) if reader.shard(0).place(row).picture == 0)
    assert reader.read(0, first).objects == () and not any(reader.shard(0).place(first).box)
    with pytest.raises(InputError, match="no such column"):
        ShardReader(shards, columns=["labels"])


def test_few_files_are_open(news_shards, monkeypatch):
    monkeypatch.setattr("shards.stream.OPEN_SHARDS", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ShardReader(news_shards)
    keys = [reader.read(shard, row).key for row in range(10) for shard in range(8)]
    assert len(set(keys)) == 80
    # The tar and its mapped table, of two shards.
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 4


def read_keys(reader, addresses, queue):
    queue.put([reader.read(*address).key for address in addresses])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_read_the_same(news_shards, method):
    reader = ShardReader(news_shards)
    addresses = [(shard, row) for shard in range(8) for row in (0, 9, 4)]
    expected = [reader.read(*address).key for address in addresses]
    assert [pickle.loads(pickle.dumps(reader)).read(*a).key for a in addresses] == expected
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    worker = context.Process(target=read_keys, args=(reader, addresses, queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join()


class Keys:
    """A dataset as `pretrain.data.pairs` has one: addresses in, one batch out."""

    def __init__(self, reader):
        self.reader = reader

    def __getitems__(self, addresses):
        return [(epoch, self.reader.read(shard, row).key) for epoch, shard, row in addresses]


def test_ranks_and_loader_workers_give_one_sequence(news_shards):
    """World sizes 1, 2, 4, each with 0, 1, 2 loader workers: the same keys for two epochs."""
    data = pytest.importorskip("torch.utils.data")
    reader = ShardReader(news_shards)
    order = CanonicalOrder([info.samples for info in reader.index.shards], seed=5)
    every_key = {sample.key for shard in range(8) for sample in reader.samples(shard)}
    sequences = []
    for world, workers in itertools.product((1, 2, 4), (0, 1, 2)):
        micro = 16 // world
        ranks = [
            data.DataLoader(
                Keys(reader),
                batch_sampler=RankBatches(order, rank=rank, world=world, micro_batch_size=micro),
                num_workers=workers,
                collate_fn=list,
            )
            for rank in range(world)
        ]
        steps = [list(itertools.islice(loader, 160 // 16)) for loader in ranks]
        sequences.append(
            [steps[r][g][j] for g in range(10) for j in range(micro) for r in range(world)]
        )
    assert all(sequence == sequences[0] for sequence in sequences)
    for epoch in (0, 1):
        keys = [key for at, key in sequences[0] if at == epoch]
        assert len(keys) == 80 and set(keys) == every_key


def damage_index(directory: Path, **changes) -> None:
    index = read_json(directory / "index.json")
    index["shards"][2] |= changes
    (directory / "index.json").write_text(json.dumps(index))


def test_a_missing_or_cut_shard_is_named(shards):
    path = shards / "train-000002.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [(member.offset, member.offset_data) for member in tar.getmembers()]
    header, data = offsets[2]
    for cut in (0, 1, header, header + 100, data, data + 50, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match=rf"train-000002\.tar: {cut} bytes.*verify"):
            ShardReader(shards).read(2, 0)
        # The same cut where the index was forged to agree on the size.
        if cut < len(content) - 1:
            damage_index(shards, bytes=cut)
            with pytest.raises(InputError, match=r"train-000002\.tar: "):
                list(ShardReader(shards).samples(2))
            damage_index(shards, bytes=len(content))
    path.unlink()
    with pytest.raises(InputError, match=r"train-000002\.tar: missing.*verify"):
        ShardReader(shards).read(2, 0)
    assert ShardReader(shards).read(1, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"caption": "', b'"captiom": "'),
        (b'"matched": ', b'"matched":"'),
        (b'"size": [48', b'"size": [-8'),
        (b'"size": [48, 32]', b'"size": [48, "2"'),
        (b'{"image_id', b'["image_id'),
    ],
)
def test_wrong_members_are_named(shards, old, new):
    path = shards / "train-000002.tar"
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        list(ShardReader(shards).samples(2))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"caption": "', b'"captiom": "'),
        (b".json\0", b".jsom\0"),
        (b".jpg\0", b".gif\0"),
        (b"ustar", b"vstar"),
    ],
)
def test_wrong_members_of_format_1_are_named(old_shards, old, new):
    path = old_shards / "train-000002.tar"
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=r"train-000002\.tar"):
        list(ShardReader(old_shards).samples(2))


def test_format_1_reads_the_same(news_shards, old_shards):
    old, new = ShardReader(old_shards), ShardReader(news_shards)
    assert (old.index.format, old.index.samples, old.index.pictures) == (1, 80, 80)
    for number in range(8):
        pairs = zip(old.samples(number), new.samples(number), strict=True)
        for row, (ours, theirs) in enumerate(pairs):
            assert ours == dataclasses.replace(
                theirs, meta=dataclasses.replace(theirs.meta, row=None)
            )
            places = [reader.shard(number).place(row) for reader in (old, new)]
            assert places[0]._replace(picture=0) == places[1]._replace(picture=0)
        assert old.captions(number) == new.captions(number)
    main(["verify", str(old_shards)])
    with pytest.raises(InputError, match=r"earlier format.*python -m shards convert"):
        write_column(old_shards, "objects", lambda numbers: [], {}, desc="test")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format": 1}', '{"format": "1"}', '{"format": 3}', "null", '{"format": 1.5}'],
)
def test_damaged_index(shards, content):
    (shards / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json"):
        ShardReader(shards)


def test_no_index(tmp_path):
    with pytest.raises(InputError, match=r"no index\.json.*build"):
        ShardReader(tmp_path)
    with pytest.raises(InputError, match=r"no index\.json"):
        ShardReader(tmp_path / "nothing")


def agree(directory: Path, column: str) -> None:
    """Let a column's index say that shard 2's file is as it is now."""
    path = directory / column / "column.json"
    index, file = read_json(path), directory / column / "train-000002.safetensors"
    index["shards"]["train-000002"]["sha256"] = file_sha256(file)
    path.write_text(json.dumps(index))


def test_damaged_columns_are_named(shards):
    add_columns(shards)
    path = shards / "objects" / "train-000002.safetensors"
    content = path.read_bytes()
    other = pack_detections([[DetectedObject((0, 0, 1, 2), 0.5, "dog")]] * 4)
    for wrong in (content[:-9], b"", content[:4], b"\0" * 64, other, save({"best": np.zeros(5)})):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=r"train-000002\.safetensors: another checksum"):
            ShardReader(shards, columns=["objects"]).read(2, 0)
        agree(shards, "objects")
        reader = ShardReader(shards, columns=["objects"])
        assert reader.read(1, 1)
        with pytest.raises(InputError, match=r"train-000002\.safetensors"):
            reader.read(2, 0)
    path.write_bytes(content)
    agree(shards, "objects")
    path = shards / "teacher" / "train-000002.safetensors"
    content = path.read_bytes()
    save_file({"image_feat": np.zeros((10, 256), np.float16)}, shards / "one")
    save_file({"image_feat": np.zeros((9, 256), np.float16)}, shards / "short")
    for wrong in (
        content[:-9],
        b"",
        (shards / "one").read_bytes(),
        (shards / "short").read_bytes(),
    ):
        path.write_bytes(wrong)
        agree(shards, "teacher")
        with pytest.raises(InputError, match=r"train-000002\.safetensors"):
            ShardReader(shards, columns=["teacher"]).read(2, 0)
    damage_index(shards, sha256="0" * 64)
    with pytest.raises(InputError, match="outdated; run `python -m shards detect"):
        ShardReader(shards, columns=["objects"])


# ------------------------------------------------------------------ remote


@pytest.fixture
def remote(shards, tmp_path, monkeypatch):
    """The shards with columns behind `memory://`, and the cache folder."""
    add_columns(shards)
    files = fsspec.filesystem("memory")
    for path in shards.rglob("*"):
        if path.is_file():
            files.pipe(f"/bucket/train/{path.relative_to(shards)}", path.read_bytes())
    monkeypatch.setattr(location, "FIRST_WAIT", 0.001)
    yield "memory://bucket/train", tmp_path / "cache"
    files.rm("/bucket", recursive=True)


def test_remote_reads_the_same(remote, shards):
    url, cache = remote
    columns = ["objects", "teacher"]
    local = ShardReader(shards, columns=columns)
    for there in (url, f"file://{shards}"):
        reader = ShardReader(there, columns=columns, cache=cache)
        assert reader.index == local.index and reader.has_column("objects")
        for shard in range(8):
            for ours, theirs in zip(reader.samples(shard), local.samples(shard), strict=True):
                assert (ours.key, ours.image, ours.objects) == (
                    *(theirs.key, theirs.image, theirs.objects),
                )
                assert all((ours.teacher[n] == theirs.teacher[n]).all() for n in ours.teacher)
    assert pickle.loads(pickle.dumps(reader)).read(0, 0).key == local.read(0, 0).key


def test_remote_files_are_fetched_once_and_kept_for_other_runs(remote, monkeypatch):
    url, cache = remote
    ShardReader(url, cache=cache).read(3, 0)
    fetched = []
    real = location._fetch
    monkeypatch.setattr(location, "_fetch", lambda *a: fetched.append(a) or real(*a))
    reader = ShardReader(url, cache=cache)
    reader.read(3, 1)
    assert fetched == []
    reader.read(4, 0), reader.read(4, 1)
    assert len(fetched) == 2  # the tar and its table


def test_remote_failures_are_tried_again(remote, monkeypatch):
    url, cache = remote
    reader, failures = ShardReader(url, cache=cache), [OSError("reset"), TimeoutError()]
    real = fsspec.open

    def unsteady(*args, **options):
        if failures:
            raise failures.pop()
        return real(*args, **options)

    monkeypatch.setattr(fsspec, "open", unsteady)
    assert reader.read(0, 0)
    failures += [OSError("reset")] * 10
    with pytest.raises(InputError, match=r"train-000001\.tar: still failing after 5 attempts"):
        reader.read(1, 0)
    assert len(failures) == 5


def test_remote_damage_is_noticed(remote):
    url, cache = remote
    files = fsspec.filesystem("memory")
    content = files.cat("/bucket/train/train-000001.tar")
    reader = ShardReader(url, cache=cache)
    for wrong in (content[:-512], content[:-1] + b"x"):
        files.pipe("/bucket/train/train-000001.tar", wrong)
        with pytest.raises(InputError, match=r"train-000001\.tar.*checksum"):
            reader.read(1, 0)
    assert not [p for p in cache.iterdir() if p.suffix != ".lock"]  # nothing damaged is kept
    files.rm("/bucket/train/train-000001.tar")
    with pytest.raises(InputError, match=r"train-000001\.tar: missing"):
        reader.read(1, 0)
    with pytest.raises(InputError, match=r"no index\.json"):
        ShardReader("memory://bucket/nothing", cache=cache)


def test_the_cache_is_limited(remote, monkeypatch):
    url, cache = remote
    reader = ShardReader(url, cache=cache)
    size = reader.index.shards[0].bytes
    reader._source.cache_bytes = int(3.5 * size)
    for shard in range(8):
        assert reader.read(shard, 0)
        held = [p for p in cache.iterdir() if p.suffix != ".lock"]
        assert sum(path.stat().st_size for path in held) <= 3.5 * size
    assert reader.read(0, 1)  # removed from the cache, yet still open


@pytest.mark.parametrize(
    "url", ["pipe://cat x", "tar://a::s3://b/x", "zip::file:///x", "ssh://host/x", "s3::x://y"]
)
def test_other_protocols_are_refused(url, tmp_path):
    with pytest.raises(InputError):
        ShardReader(url, cache=tmp_path)


@pytest.mark.parametrize(
    ("url", "backend"),
    [("s3://b/train", "s3fs"), ("gs://b/train", "gcsfs"), ("https://h/t", "aiohttp")],
)
def test_missing_backend_says_what_to_install(url, backend, tmp_path, monkeypatch):
    # None: as if it were not installed, also where it is.
    for module in ("s3fs", "gcsfs", "aiohttp", "fsspec.implementations.http"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    expected = rf"{url}/index\.json: .*{backend}.*; pip install 'fusion-mre\[remote\]' brings"
    with pytest.raises(InputError, match=expected):
        ShardReader(url, cache=tmp_path)


@pytest.mark.parametrize("damage", ["moved by a row", "zeros", "other boxes"])
def test_columns_that_are_not_what_was_written_are_refused(shards, damage):
    """Files of the same size whose numbers are possible ones, as a script beside us leaves them."""
    add_columns(shards)
    column = "objects" if damage == "other boxes" else "teacher"
    path = sorted((shards / column).glob("*[0-9].*"))[1]
    size = path.stat().st_size
    if column == "teacher":
        tensors = load_file(path)
        features = tensors["image_feat"]
        changed = np.roll(features, 1, 0) if damage == "moved by a row" else features * 0
        path.write_bytes(save(tensors | {"image_feat": changed}))
    else:
        boxes = [[DetectedObject((0, 0, 2 + n, 3), 0.5, "dog")] * (n % 3) for n in range(5)]
        path.write_bytes(pack_detections(boxes))
    assert path.stat().st_size == size
    reader = ShardReader(shards, columns=[column])
    assert reader.read(0, 0)
    with pytest.raises(InputError, match=rf"{path.name}: another checksum than column\.json says"):
        reader.read(1, 0)
