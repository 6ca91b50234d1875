"""The sample is in its publishers' formats, repeatable, and tells nothing without its pictures."""

import ast
import hashlib
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.__main__ import main
from shards.files import InputError
from shards.sample.generated import write_generated
from shards.sample.write import SampleConfig, write_sample

SIZE = 48
PAIRS, ROWS = 400, (600, 40, 300)
SPLITS = ("train", "val", "test")
CUE_OF = {
    "couple": "ring", "peer": "ball", "parent": "child", "member_of": "flag",
    "leader_of": "crown", "founder_of": "key", "awarded": "trophy", "author_of": "book",
    "present_in": "camera",
}  # fmt: skip
CUES_OF_TYPE = {
    "per": {"ring", "ball", "child"},
    "org": {"flag", "crown", "key"},
    "misc": {"trophy", "book", "camera"},
}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "raw"
    write_sample(SampleConfig(out=out, pairs=PAIRS, rows=ROWS, size=SIZE, seed=3))
    return out


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mnre_rows(sample: Path, split: str) -> list[dict]:
    lines = (sample / f"mnre/txt/ours_{split}.txt").read_text().splitlines()
    return [ast.literal_eval(line) for line in lines]


def tail_type(row: dict) -> str:
    """As a reader of the text sees it."""
    suffix = row["t"]["name"].split()[1:]
    types = {"Corp": "org", "Club": "org", "Group": "org"} | dict.fromkeys(
        ("Saga", "Gala", "Epic"), "misc"
    )
    return types[suffix[0]] if suffix else "per"


def micro_f1(gold: list[str], predicted: list[str]) -> float:
    """Over all relations but None, in percent."""
    right = sum(g == p != "None" for g, p in zip(gold, predicted, strict=True))
    said, there = (sum(label != "None" for label in labels) for labels in (predicted, gold))
    return 200 * right / (said + there)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# NewsCLIPpings over VisualNews


def annotations(sample: Path, split: str) -> list[dict]:
    path = sample / f"news_clippings/data/merged_balanced/{split}.json"
    return json.loads(path.read_text())["annotations"]


def news(sample: Path) -> dict[int, dict]:
    return {
        entry["id"]: entry
        for entry in json.loads((sample / "visual_news/origin/data.json").read_text())
    }


def test_rows_alternate_between_pristine_and_falsified(sample):
    for split, expected in zip(SPLITS, (400, 40, 40), strict=True):
        rows = annotations(sample, split)
        assert len(rows) == expected
        for pristine, twin in zip(rows[::2], rows[1::2], strict=True):
            assert pristine["falsified"] is False and twin["falsified"] is True
            assert pristine["id"] == pristine["image_id"] == twin["image_id"] != twin["id"]
            assert 0 <= twin["similarity_score"] < 1


def test_every_caption_serves_once_in_each_way(sample):
    rows = annotations(sample, "train")
    assert sorted(row["id"] for row in rows[::2]) == sorted(row["id"] for row in rows[1::2])


def test_a_twin_names_another_cue_or_thing(sample):
    nouns, articles = set(json.loads((sample / "sample.json").read_text())["nouns"]), news(sample)
    rows = annotations(sample, "train")
    named = {key: nouns & set(entry["caption"].split()) for key, entry in articles.items()}
    same = [named[twin["id"]] == named[twin["image_id"]] for twin in rows[1::2]]
    assert np.mean(same) < 0.05  # captions leave out a twentieth of the things


def test_pictures_of_news_exist_and_splits_share_none(sample):
    articles, seen = news(sample), []
    for split in SPLITS:
        ids = {row["image_id"] for row in annotations(sample, split)}
        seen.append({articles[number]["image_path"] for number in ids})
        for path in seen[-1]:
            assert re.fullmatch(r"\./[a-z_]+/images/\d{4}/\d{3}\.jpg", path)
            with Image.open(sample / "visual_news/origin" / path) as picture:
                assert (picture.size, picture.mode) == ((SIZE, SIZE), "RGB")
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_captions_name_what_is_drawn_and_nothing_else(sample):
    articles, provenance = news(sample), json.loads((sample / "sample.json").read_text())
    drawn, named = Counter(), Counter()
    for line in json_lines(sample / "visual_news/objects.jsonl"):
        words = set(articles[line["image_id"]]["caption"].split())
        found = {item["label"] for item in line["objects"]}
        drawn += Counter(found)
        named += Counter(found & words)
    assert set(drawn) == set(provenance["nouns"])
    assert named.total() / drawn.total() > 0.9
    words = Counter(word for entry in articles.values() for word in entry["caption"].split())
    assert 60 < sum(not word[0].isupper() for word in words) < 200


def test_file_detector_gets_boxes_inside_pictures_best_first(sample):
    lines = json_lines(sample / "visual_news/objects.jsonl")
    assert len(lines) == len(news(sample))
    for line in lines:
        assert (sample / "visual_news/origin" / line["image"]).is_file()
        scores = [item["score"] for item in line["objects"]]
        assert scores == sorted(scores, reverse=True)
        for x1, y1, x2, y2 in (item["box"] for item in line["objects"]):
            assert 0 <= x1 < x2 <= SIZE and 0 <= y1 < y2 <= SIZE


def test_boxes_hold_what_they_say(sample):
    """Green, pink and steel are where a tree, a balloon and a key are said to be."""
    means = defaultdict(list)
    for line in json_lines(sample / "visual_news/objects.jsonl"):
        picture = Image.open(sample / "visual_news/origin" / line["image"])
        for item in line["objects"]:
            x1, y1, x2, y2 = item["box"]
            width, height = x2 - x1, y2 - y1
            core = (x1 + 0.3 * width, y1 + 0.2 * height, x2 - 0.3 * width, y2 - 0.5 * height)
            means[item["label"]].append(np.asarray(picture.crop(core)).mean((0, 1)))
    red, green, blue = np.transpose(
        [np.mean(means[noun], 0) for noun in ("tree", "balloon", "key")]
    )
    assert green[0] > red[0] + 20 and green[0] > blue[0] + 20  # tree
    assert red[1] > green[1] + 40  # balloon
    assert blue[2] > red[2] + 20 and blue[2] > green[2] + 20  # key: blueish steel


# MNRE


def test_mnre_rows_have_exact_spans_and_known_relations(sample):
    relation2id = json.loads((sample / "mnre/ours_rel2id.json").read_text())
    assert relation2id["None"] == 0 and sorted(relation2id.values()) == list(range(10))
    ends, swapped, pictures = 0, 0, []
    for split, number in zip(SPLITS, ROWS, strict=True):
        rows = mnre_rows(sample, split)
        assert len(rows) == number
        for row in rows:
            assert set(row) == {"token", "h", "t", "img_id", "relation"}
            assert row["relation"] in relation2id
            for entity in (row["h"], row["t"]):
                assert " ".join(row["token"][slice(*entity["pos"])]) == entity["name"]
            swapped += row["t"]["pos"] < row["h"]["pos"]
            ends += max(row["h"]["pos"][1], row["t"]["pos"][1]) == len(row["token"])
            with Image.open(sample / "mnre/img_org" / split / row["img_id"]) as picture:
                assert picture.size == (SIZE, SIZE)
        pictures.append({row["img_id"] for row in rows})
    assert swapped and ends
    assert not (pictures[0] & pictures[1] or pictures[0] & pictures[2] or pictures[1] & pictures[2])
    assert 0.02 < 1 - len(pictures[0]) / ROWS[0] < 0.1  # as in MNRE, rows share pictures


def test_text_does_not_tell_the_relation(sample):
    """The best that text can do: the commonest relation of its entity types."""
    train, test = mnre_rows(sample, "train"), mnre_rows(sample, "test")
    commonest = {}
    for kind in CUES_OF_TYPE:
        count = Counter(row["relation"] for row in train if tail_type(row) == kind)
        assert len(count) == 4  # None and three relations
        assert max(count.values()) < 0.4 * count.total()
        commonest[kind] = max((name for name in count if name != "None"), key=count.get)
    gold = [row["relation"] for row in test]
    assert micro_f1(gold, [commonest[tail_type(row)] for row in test]) <= 36


@pytest.mark.parametrize("feature", ["template", "swapped", "length"])
def test_no_surface_feature_of_the_text_goes_with_the_relation(sample, feature):
    def read(row: dict) -> object:
        inside = {i for end in "ht" for i in range(*row[end]["pos"])}
        if feature == "swapped":
            return row["t"]["pos"] < row["h"]["pos"]
        if feature == "length":
            return len(row["token"])
        rest = [word for i, word in enumerate(row["token"]) if i not in inside]
        return tuple(word for word in rest if word[0] != "@")

    tables = defaultdict(Counter)
    for row in mnre_rows(sample, "train"):
        tables[tail_type(row), read(row)][row["relation"]] += 1
    test = mnre_rows(sample, "test")
    predicted = [
        tables[key].most_common(1)[0][0] if (key := (tail_type(row), read(row))) in tables else ""
        for row in test
    ]
    assert micro_f1([row["relation"] for row in test], predicted) <= 40


def test_the_picture_tells_the_relation(sample):
    """Of the cues of the row's type, none but its own is drawn, and mostly among the largest."""
    found = {
        line["img_id"]: {item["label"] for item in line["od"]}
        for line in json_lines(sample / "mnre/regions_od.jsonl")[1:]
    }
    read = 0
    for row in mnre_rows(sample, "train"):
        cues = found[row["img_id"]] & CUES_OF_TYPE[tail_type(row)]
        relation = row["relation"].rsplit("/")[-1]
        wanted = {CUE_OF[relation]} if relation != "None" else set()
        assert cues <= wanted
        read += bool(cues)
    assert read > 0.6 * ROWS[0]


def test_captions_help_with_the_picture_and_do_not_replace_it(sample):
    """One a picture; the rule that reads the cue from them gains much, and stays far from all."""
    gold, predicted = [], []
    for split in SPLITS:
        lines = (sample / f"mnre/caption/caption_{split}.txt").read_text().splitlines()
        captions = [ast.literal_eval(line) for line in lines]
        rows = mnre_rows(sample, split)
        images = dict.fromkeys(row["img_id"] for row in rows)
        assert [caption["img_id"] for caption in captions] == list(images)
        told = {caption["img_id"]: caption["text"].split() for caption in captions}
        for row in rows:
            cues = sorted(CUES_OF_TYPE[tail_type(row)] & set(told[row["img_id"]]))
            relations = [r for r in CUE_OF if cues and CUE_OF[r] == cues[0]]
            gold.append(row["relation"].rsplit("/")[-1])
            predicted.append(relations[0] if relations else "None")
    assert 55 <= micro_f1(gold, predicted) <= 75


def test_region_caches_are_leak_safe_by_shape(sample):
    for split in SPLITS:
        header, *lines = json_lines(sample / f"mnre/regions_vg_{split}.jsonl")
        rows = mnre_rows(sample, split)
        assert header["leaky"] is False and {"tool", "model", "thresholds"} <= set(header)
        assert [line["row"] for line in lines] == list(range(len(rows)))
        for line, row in zip(lines, rows, strict=True):
            assert (line["img_id"], line["size"]) == (row["img_id"], [SIZE, SIZE])
            assert [region["kind"] for region in line["vg"]] == ["head", "tail", "noun"]
            phrases = [region["phrase"] for region in line["vg"]]
            assert phrases[:2] == [row["h"]["name"], row["t"]["name"]]
            assert phrases[2] in row["token"]
            for x1, y1, x2, y2 in (region["box"] for region in line["vg"]):
                assert 0 <= x1 < x2 <= SIZE and 0 <= y1 < y2 <= SIZE


def test_region_geometry_does_not_tell_the_relation(sample):
    """Where the boxes are says no more than the text: which slots, in a 3 x 3 grid of places."""
    tables, gold, predicted = defaultdict(Counter), [], []
    for split in ("train", "test"):
        lines = json_lines(sample / f"mnre/regions_vg_{split}.jsonl")[1:]
        for line, row in zip(lines, mnre_rows(sample, split), strict=True):
            x1, y1, x2, y2 = line["vg"][1]["box"]
            cell = (int((x1 + x2) * 1.5 / SIZE), int((y1 + y2) * 1.5 / SIZE))
            # A child stands on the ground: the one relation that has a place of its own.
            if row["relation"] != "/per/per/parent":
                key = (tail_type(row), cell)
                if split == "train":
                    tables[key][row["relation"]] += 1
                else:
                    gold.append(row["relation"])
                    predicted.append(max(tables[key], key=tables[key].get, default="None"))
    assert micro_f1(gold, predicted) <= 45


def test_od_regions_are_three_a_picture(sample):
    _, *lines = json_lines(sample / "mnre/regions_od.jsonl")
    images = {row["img_id"] for split in SPLITS for row in mnre_rows(sample, split)}
    assert {line["img_id"] for line in lines} == images
    assert {len(line["od"]) for line in lines} == {3}


def test_generated_pictures_know_the_text_alone(sample, tmp_path):
    """One a picture; the same bytes whatever the rows' relations are, and from no photograph."""
    for split in SPLITS:
        images = {row["img_id"] for row in mnre_rows(sample, split)}
        folder = sample / "mnre/diffusion_pic" / split
        assert {path.name for path in folder.iterdir()} == images
    for split in SPLITS:
        rows = mnre_rows(sample, split)
        (tmp_path / "txt").mkdir(exist_ok=True)
        lines = [repr(row | {"relation": "None"}) for row in rows]
        (tmp_path / f"txt/ours_{split}.txt").write_text("\n".join(lines) + "\n")
    write_generated(tmp_path, SIZE, seed=3, workers=1)
    assert digests(tmp_path / "diffusion_pic") == digests(sample / "mnre/diffusion_pic")


# Twitter-2017


def tweets(sample: Path, split: str) -> list[tuple[str, list[tuple[str, str]]]]:
    blocks = (sample / f"twitter2017/{split}.txt").read_text().split("\n\n")
    assert blocks.pop() == ""  # the last block is closed as well
    sentences = []
    for block in blocks:
        first, *lines = block.split("\n")
        sentences.append((first.removeprefix("IMGID:"), [tuple(x.split("\t")) for x in lines]))
    return sentences


def test_twitter_counts_tags_and_pictures(sample):
    seen = set()
    for split, number in (("train", 600), ("valid", 150), ("test", 300)):
        sentences = tweets(sample, split)
        assert len(sentences) == number
        types = Counter()
        for image, tagged in sentences:
            assert image not in seen
            seen.add(image)
            assert (sample / f"twitter2017/twitter2017_images/{image}.jpg").is_file()
            previous = "O"
            for _, tag in tagged:
                assert re.fullmatch(r"O|[BI]-(PER|ORG|LOC|MISC)", tag)
                assert tag[0] != "I" or previous[1:] == tag[1:]
                previous = tag
                types[tag[2:]] += tag[0] == "B"
            assert 1 <= sum(tag[0] == "B" for _, tag in tagged) <= 2
        assert min(types[kind] for kind in ("PER", "ORG", "LOC", "MISC")) > 0.15 * number


def test_tweet_text_does_not_tell_the_type(sample):
    tables = defaultdict(Counter)
    for _, tagged in tweets(sample, "train"):
        words = tuple(word for word, tag in tagged if tag == "O" and word[0] != "@")
        for _, tag in tagged:
            tables[words][tag[2:]] += tag[0] == "B"
    assert max(max(table.values()) / table.total() for table in tables.values()) < 0.5


# The folder


def test_same_options_give_the_same_bytes_from_any_number_of_workers(tmp_path):
    options = {"pairs": 80, "rows": (30, 5, 5), "size": 32}
    for name, more in (("a", {}), ("b", {"workers": 2}), ("c", {"seed": 1})):
        write_sample(SampleConfig(out=tmp_path / name, **options, **more))
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    other = digests(tmp_path / "c")
    assert first["mnre/txt/ours_train.txt"] != other["mnre/txt/ours_train.txt"]
    assert (
        first["twitter2017/twitter2017_images/1.jpg"]
        != (other["twitter2017/twitter2017_images/1.jpg"])
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_finished_sample_is_left_alone_and_another_is_refused(sample, capsys):
    before = (sample / "sample.json").stat().st_mtime_ns
    write_sample(SampleConfig(out=sample, pairs=PAIRS, rows=ROWS, size=SIZE, seed=3))
    assert "already there" in capsys.readouterr().out
    assert (sample / "sample.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"sample\.json.*remove the folder or name a new one"):
        write_sample(SampleConfig(out=sample, pairs=PAIRS, rows=ROWS, size=SIZE, seed=4))


def test_a_sample_written_before_there_were_generated_pictures_gets_them(tmp_path):
    options = SampleConfig(out=tmp_path / "raw", pairs=80, rows=(5, 5, 5), size=32)
    write_sample(options)
    before = digests(options.out)
    shutil.rmtree(options.out / "mnre/diffusion_pic")
    write_sample(options)
    assert digests(options.out) == before


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"no sample\.json"):
        write_sample(SampleConfig(out=tmp_path, pairs=80))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_and_a_damaged_sample_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        write_sample(SampleConfig(out=tmp_path / "file", pairs=80))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/sample.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        write_sample(SampleConfig(out=tmp_path / "raw", pairs=80))


def test_an_interrupted_sample_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("shards.sample.write.write_twitter", fail)
    with pytest.raises(OSError, match="disk full"):
        write_sample(SampleConfig(out=tmp_path / "raw", pairs=80, rows=(5, 5, 5), size=32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["--pairs", "81"], ["--rows", "5,5"], ["--size", "8"], ["--workers", "0"]]
)
def test_impossible_options_exit_with_2(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(tmp_path / "raw"), *arguments])
    assert stop.value.code == 2
    assert arguments[0].strip("-") in capsys.readouterr().err
    assert not (tmp_path / "raw").exists()
