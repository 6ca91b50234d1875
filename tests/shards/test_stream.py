"""Order, ranks, resume, access by address, damage, and remote locations."""

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
from safetensors.numpy import save_file

from shards import location
from shards.columns import write_column
from shards.files import InputError
from shards.stream import CanonicalOrder, RankBatches, ShardReader

counts = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(counts, st.integers(1, 6), st.integers(0, 3), st.booleans())
def test_an_epoch_holds_every_sample_once(counts, streams, epoch, shuffle):
    order = CanonicalOrder(counts, seed=1, streams=streams, shuffle=shuffle)
    addresses = order.epoch(epoch)
    assert addresses.dtype == np.int32 and addresses.shape == (len(order), 2)
    expected = [(shard, row) for shard, count in enumerate(counts) for row in range(count)]
    assert sorted(map(tuple, addresses.tolist())) == expected
    if not shuffle:
        assert list(map(tuple, addresses.tolist())) == expected


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch, streams=64):
        return CanonicalOrder([30] * 20, seed=seed, streams=streams).epoch(epoch).tolist()

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(0, 1), order(1, 0), order(1, 1), order(0, 0, streams=3)]
    assert all(a != b for a, b in itertools.combinations(different, 2))


def test_as_many_shards_are_in_use_as_there_are_streams():
    """Positions that a shard spans: short, so that a window of the order touches few shards."""
    order = CanonicalOrder([50] * 40, seed=0, streams=4).epoch(0)
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
    expected = [(e, *map(int, at)) for e in (0, 1, 2) for at in order.epoch(e)]
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
    reader = ShardReader(directory)

    def objects(shard: int) -> bytes:
        lines = []
        for row, sample in enumerate(reader.samples(shard)):
            box = {"box": [0, 0, 1 + row, 2 + shard], "score": 0.5, "label": "dog"}
            lines.append(json.dumps({"key": sample.key, "objects": [box] * (row % 3)}))
        return "".join(f"{line}\n" for line in lines).encode()

    def teacher(shard: int) -> bytes:
        rows = np.arange(10)
        tensors = {
            "image_feat": (np.full((10, 256), 10.0 * shard) + rows[:, None]).astype(np.float16),
            "object_feat": np.zeros((10, 256), np.float16),
            "has_object": rows % 2 == 0,
        }
        path = directory / "buffer"
        save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)
        content = path.read_bytes()
        path.unlink()
        return content

    write_column(directory, "objects", ".jsonl", objects, {}, desc="test")
    write_column(directory, "teacher", ".safetensors", teacher, {}, desc="test")


def test_read_gives_what_tarfile_gives(news_shards):
    reader = ShardReader(news_shards)
    assert len(reader) == 80
    for number, info in enumerate(reader.index.shards):
        with tarfile.open(news_shards / info.name) as tar:
            names = tar.getnames()
            for row in reversed(range(info.samples)):
                sample = reader.read(number, row)
                assert names[2 * row] == f"{sample.key}.jpg"
                assert sample.image == tar.extractfile(names[2 * row]).read()
                meta = json.loads(tar.extractfile(names[2 * row + 1]).read())
                assert json.loads(sample.meta.to_json()) | {"crc32": meta["crc32"]} == meta
                assert sample.objects is None and sample.teacher is None
        assert [s.key for s in reader.samples(number)] == [n[:-4] for n in names[::2]]


def test_columns_come_with_their_sample(shards):
    reader = ShardReader(shards)
    assert not reader.has_column("objects")
    with pytest.raises(InputError, match=r"no teacher column; run `python -m pretrain label"):
        ShardReader(shards, columns=["teacher"])
    add_columns(shards)
    assert reader.has_column("objects")
    reader = ShardReader(shards, columns=["objects", "teacher"])
    sample = reader.read(3, 5)
    assert [item.box for item in sample.objects] == [(0, 0, 6, 5)] * 2
    assert sample.teacher["image_feat"].shape == (256,)
    assert sample.teacher["image_feat"].dtype == np.float16
    assert (sample.teacher["image_feat"] == 35).all() and not sample.teacher["has_object"]
    assert reader.read(0, 4).teacher["has_object"] and reader.read(0, 0).objects == ()
    with pytest.raises(InputError, match="no such column"):
        ShardReader(shards, columns=["labels"])


def test_few_files_are_open(news_shards, monkeypatch):
    monkeypatch.setattr("shards.stream.OPEN_SHARDS", 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader = ShardReader(news_shards)
    keys = [reader.read(shard, row).key for row in range(10) for shard in range(8)]
    assert len(set(keys)) == 80
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 2


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
    index = json.loads((directory / "index.json").read_text())
    index["shards"][2] |= changes
    (directory / "index.json").write_text(json.dumps(index))


def test_a_missing_or_cut_shard_is_named(shards):
    path = shards / "train-000002.tar"
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [(member.offset, member.offset_data) for member in tar.getmembers()]
    header, data = offsets[6]
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
        (b'{"caption', b'["caption'),
        (b".json\0", b".jsom\0"),
        (b".jpg\0", b".gif\0"),
        (b"ustar", b"vstar"),
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
    "content",
    ["", "{", "[]", '{"format": 1}', '{"format": "1"}', '{"format": 2}', "null", '{"format": 1.5}'],
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


def test_damaged_columns_are_named(shards):
    add_columns(shards)
    path = shards / "objects" / "train-000002.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for content in (
        b"".join(lines[:-1]),
        b"".join([lines[1], lines[0], *lines[2:]]),
        b"".join([b"{\n", *lines[1:]]),
        b"".join(lines).replace(b"0.5", b"NaN"),
        b"".join(lines).replace(b"[0, 0,", b"[0, null,"),
        b"".join(lines).replace(b"[0, 0,", b"[90, 0,"),
        b"".join(lines).replace(b'"dog"', b"5"),
    ):
        path.write_bytes(content)
        reader = ShardReader(shards, columns=["objects"])
        assert reader.read(1, 1)
        with pytest.raises(InputError, match=r"train-000002\.jsonl"):
            reader.read(2, 0)
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
    assert len(fetched) == 1


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
