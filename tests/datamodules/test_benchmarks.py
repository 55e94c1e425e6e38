"""The image benchmarks, in generated folders of their layouts."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datamodules
from dafw.data.manifest import Entry, write_manifest
from dafw.errors import UserError
from datamodules.layouts import benchmarks, canonical, find_home, list_checksum, list_domain
from datamodules.splits import in_domainbed_split

NAMES = ("PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet", "DomainNet126")
NAMES += ("Office31", "OfficeCaltech", "ImageCLEF", "VisDA2017", "Signs")


def fill(folder: Path, count: int = 12, ending: str = "jpg") -> None:
    """Tiny images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"pic_{index:03}.{ending}")


def make(name: str, root: Path, *domains: str, **options):
    *sources, target = domains
    return getattr(datamodules, name)(
        sources, target, **{"root": str(root), "size": 8, "resize": 10, "batch_size": 2, **options}
    )


def ids(data, name: str, split: str) -> set[str]:
    return set(data.load(name, split).ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_and_what_is_known_agree(name: str) -> None:
    facts, reader = benchmarks()[name], getattr(datamodules, name)
    assert reader.domain_names == tuple(facts.domains)
    total = sum(domain.images for domain in facts.domains.values())
    assert name == "TerraIncognita" or f"{total:,} " in inspect.getdoc(reader).splitlines()[0]
    assert f" {facts.num_classes} classes" in inspect.getdoc(reader).splitlines()[0]
    for domain in facts.domains.values():
        assert not domain.counts or sum(domain.counts.values()) == domain.images
    assert "images" in facts.provenance
    assert all(how.startswith(("seen (", "recalled (")) for how in facts.provenance.values())
    assert set(benchmarks()) == set(NAMES)
    assert facts.homes


@pytest.mark.parametrize("home", ["", "PACS", "kfold", "PACS/kfold"])
def test_pacs_in_each_of_its_homes(tmp_path: Path, home: str) -> None:
    for domain in ("photo", "sketch"):
        for label in ("dog", "guitar"):
            fill(tmp_path / home / domain / label)
    (tmp_path / home / "photo_train_kfold.txt").write_text("photo/dog/pic_000.jpg 1\n")
    data = make("PACS", tmp_path, "photo", "sketch")
    assert data.class_names == ("dog", "guitar")
    assert data.class_counts() == {name: {"dog": 12, "guitar": 12} for name in ("photo", "sketch")}
    assert "photo/dog/pic_003.jpg" in ids(data, "photo", "train") | ids(data, "photo", "val")
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.shape == (4, 3, 8, 8)


def test_domainbed_s_splits_are_the_default(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        fill(tmp_path / domain / "dog", 60)
    data = make("PACS", tmp_path, "photo", "sketch")
    every = {name: {f"{name}/dog/pic_{index:03}.jpg" for index in range(60)} for name in ("photo", "sketch")}
    train, val = ids(data, "photo", "train"), ids(data, "photo", "val")
    assert train == {name for name in every["photo"] if in_domainbed_split(name, "train", reported=False)}
    assert val == ids(data, "photo", "test") == every["photo"] - train
    assert ids(data, "sketch", "test") == ids(data, "sketch", "train") == every["sketch"] - ids(data, "sketch", "val")
    assert 40 <= len(train) <= 56
    assert ids(make("PACS", tmp_path, "photo", "sketch", seed=9), "photo", "train") == train
    other = ids(make("PACS", tmp_path, "photo", "sketch", split_seed=1), "photo", "train")
    assert other != train
    oracle = make("PACS", tmp_path, "photo", "sketch", oracle=True)
    assert not ids(oracle, "sketch", "train") & ids(oracle, "sketch", "test")
    shares = make("PACS", tmp_path, "photo", "sketch", protocol="shares", split=(0.5, 0.25, 0.25))
    assert len(set().union(*(ids(shares, "sketch", split) for split in ("train", "val", "test")))) == 60


def test_the_layout_moves_no_image_to_another_split(tmp_path: Path) -> None:
    for home in ("a", "b/PACS/kfold"):
        for domain in ("photo", "sketch"):
            fill(tmp_path / home / domain / "dog", 30)
    one, other = (make("PACS", tmp_path / home, "photo", "sketch") for home in "ab")
    assert ids(one, "photo", "train") == ids(other, "photo", "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": (0.5, 0.25, 0.25)}, r"data\.split has no part in data\.protocol domainbed"),
        ({"transductive": True}, r"data\.transductive has no part in data\.protocol domainbed"),
        ({"protocol": "domainbd"}, 'unknown protocol "domainbd": did you mean "domainbed"'),
        ({"split_seed": -2}, r"data\.split_seed must be at least 0, not -2"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict, message: str) -> None:
    for domain in ("photo", "sketch"):
        fill(tmp_path / domain / "dog")
    with pytest.raises(UserError, match=message):
        make("PACS", tmp_path, "photo", "sketch", **options)


def test_a_manifest_s_own_splits_and_domainbed_s(tmp_path: Path) -> None:
    fill(tmp_path / "x", 4)
    names = [f"x/pic_{index:03}.jpg" for index in range(4)]
    rows = [Entry(name, "dog", "photo" if index % 2 else "sketch", "train") for index, name in enumerate(names)]
    write_manifest(tmp_path / "list.csv", rows)
    with pytest.raises(UserError, match=r"list\.csv gives splits, which data\.protocol domainbed would overrule"):
        make("PACS", tmp_path, "photo", "sketch", manifest=str(tmp_path / "list.csv"))
    write_manifest(tmp_path / "list.csv", [Entry(row.path, row.label, row.domain) for row in rows])
    data = make("PACS", tmp_path, "photo", "sketch", manifest=str(tmp_path / "list.csv"))
    assert data.class_counts() == {"photo": {"dog": 2}, "sketch": {"dog": 2}}


def test_what_is_missing_or_strange(tmp_path: Path) -> None:
    fill(tmp_path / "photo" / "dog")
    with pytest.raises(UserError, match=r"holds no images of sketch: dafw data check PACS --root .* says what"):
        make("PACS", tmp_path, "photo", "sketch")
    fill(tmp_path / "sketch" / "dgo")
    with pytest.raises(UserError, match=r'PACS has no class "dgo", which sketch in .* has: see dafw data check PACS'):
        make("PACS", tmp_path, "photo", "sketch")
    with pytest.raises(UserError, match=r"holds none of PACS's domain folders \(art_painting, cartoon, "):
        make("PACS", tmp_path / "photo", "photo", "sketch")
    with pytest.raises(UserError, match=r"folder .*nowhere \(data\.root\) does not exist"):
        find_home(benchmarks()["PACS"], tmp_path / "nowhere")
    with pytest.raises(UserError, match='unknown domain "paint": did you mean'):
        make("PACS", tmp_path, "photo", "paint")


def test_a_reader_of_one_s_own_keeps_the_benchmark(tmp_path: Path) -> None:
    class Mine(datamodules.PACS):
        pass

    for domain in ("photo", "sketch"):
        fill(tmp_path / "PACS" / domain / "dog")
    data = Mine("photo", "sketch", root=str(tmp_path), size=8, resize=10)
    assert data.class_counts()["photo"] == {"dog": 12}


def test_vlcs_as_domainbed_has_it(tmp_path: Path) -> None:
    for domain in ("Caltech101", "SUN09"):
        for label in ("bird", "car"):
            fill(tmp_path / "VLCS" / domain / label)
    assert make("VLCS", tmp_path, "Caltech101", "SUN09").class_names == ("bird", "car")


@pytest.mark.parametrize("whole", [True, False])
def test_vlcs_with_numbered_classes(tmp_path: Path, whole: bool) -> None:
    for domain in ("CALTECH", "SUN"):
        for part, count in (("train", 6), ("crossval", 3), ("test", 4), *([("full", 13)] if whole else [])):
            for label in ("0", "1"):
                fill(tmp_path / domain / part / label, count)
    data = make("VLCS", tmp_path, "Caltech101", "SUN09")
    assert data.class_names == ("bird", "car")
    assert data.class_counts() == {name: {"bird": 13, "car": 13} for name in ("Caltech101", "SUN09")}
    entries = list_domain(benchmarks()["VLCS"], tmp_path, "SUN09")
    assert len(set(map(canonical, entries))) == 26
    assert {canonical(entry).split("/")[2] for entry in entries} == (
        {"full"} if whole else {"train", "crossval", "test"}
    )


@pytest.mark.parametrize("folder", ["Real World", "Real_World", "RealWorld", "real_world"])
def test_office_home_s_real_world(tmp_path: Path, folder: str) -> None:
    for domain in ("Art", folder):
        for label in ("Alarm_Clock", "TV"):
            fill(tmp_path / "OfficeHomeDataset_10072016" / domain / label)
    (tmp_path / "OfficeHomeDataset_10072016" / "image_list").mkdir()
    data = make("OfficeHome", tmp_path, "Art", "Real World")
    assert data.task == "Art->Real World"
    assert data.class_names == ("Alarm_Clock", "TV")
    assert {canonical(entry).split("/")[0] for entry in data._entries["Real World"]} == {"Real World"}


def annotate(root: Path, count: int = 20) -> None:
    """Camera traps as the archive has them: one folder, and annotations in COCO's format."""
    fill(root / "eccv_18_all_images_sm", count)
    places = {0: "38", 1: "43", 2: "7"}
    images = [
        {"id": f"i{index}", "file_name": f"pic_{index:03}.jpg", "location": places[index % 3]} for index in range(count)
    ]
    images[1]["location"] = 43
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "deer"}, {"id": 1, "name": "dog"}]
    seen = [{"image_id": f"i{index}", "category_id": (3, 1, 8)[index // 3 % 3]} for index in range(count)]
    seen += [{"image_id": "i0", "category_id": 3}, {"image_id": "i0", "category_id": 1}]
    content = {"images": images, "categories": categories, "annotations": seen}
    (root / "caltech_images.json").write_text(json.dumps(content))


def test_terra_incognita_in_both_forms(tmp_path: Path) -> None:
    annotate(tmp_path / "archive" / "terra_incognita")
    facts = benchmarks()["TerraIncognita"]
    home = find_home(facts, tmp_path / "archive")
    read = {name: list_domain(facts, home, name) for name in facts.domains}
    assert not read["location_46"]
    assert {entry.label for entry in read["location_38"]} == {"cat", "dog"}
    assert [entry.label for entry in read["location_38"] if entry.path.endswith("pic_000.jpg")] == ["cat", "dog"]
    assert "pic_001.jpg" in {Path(entry.path).name for entry in read["location_43"]}
    for entry in (entry for part in read.values() for entry in part):
        copy = tmp_path / "folders" / entry.domain / entry.label / Path(entry.path).name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((home / entry.path).read_bytes())
    for name, entries in read.items():
        assert list_checksum(list_domain(facts, tmp_path / "folders", name)) == list_checksum(entries)
    data = make("TerraIncognita", tmp_path / "archive", "location_38", "location_43", batch_size=1)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).x.shape == (2, 3, 8, 8)
    assert ids(data, "location_38", "train")


@pytest.mark.parametrize("protocol", ["domainbed", "shares"])
def test_terra_incognita_s_images_of_two_categories_are_in_one_split(tmp_path: Path, protocol: str) -> None:
    home = tmp_path / "archive"
    annotate(home, 120)
    file = home / "caltech_images.json"
    content = json.loads(file.read_text())
    every = [image["id"] for image in content["images"]]
    content["annotations"] = [{"image_id": image, "category_id": label} for image in every for label in (3, 1)]
    file.write_text(json.dumps(content))
    found = {}
    for name in ("archive", "folders"):
        data = make("TerraIncognita", tmp_path / name, "location_38", "location_43", batch_size=1, protocol=protocol)
        for domain in ("location_38", "location_43"):
            if name == "archive":
                for entry in data._entries[domain]:
                    copy = tmp_path / "folders" / domain / entry.label / Path(entry.path).name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes((home / entry.path).read_bytes())
            splits = [[Path(one).name for one in data.load(domain, split).ids] for split in ("train", "val")]
            assert all(images.count(image) == 2 for images in splits for image in images)
            assert all(splits)
            assert not set(splits[0]) & set(splits[1])
            found[name, domain] = [set(images) for images in splits]
    for domain in ("location_38", "location_43"):
        assert found["archive", domain] == found["folders", domain]


def test_terra_incognita_s_annotations_are_checked(tmp_path: Path) -> None:
    annotate(tmp_path)
    (tmp_path / "eccv_18_all_images_sm" / "pic_003.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of location_38's images are not in .*pic_003\.jpg first: see dafw data"):
        make("TerraIncognita", tmp_path, "location_38", "location_43")
    (tmp_path / "caltech_images.json").write_text('{"images": [], "categories": []}')
    with pytest.raises(UserError, match=r"caltech_images\.json must be in COCO's format"):
        make("TerraIncognita", tmp_path, "location_38", "location_43")
    (tmp_path / "caltech_images.json").unlink()
    with pytest.raises(UserError, match=r"holds eccv_18_all_images_sm but no annotation file"):
        make("TerraIncognita", tmp_path, "location_38", "location_43")


def test_domainnet_with_and_without_its_lists(tmp_path: Path) -> None:
    for domain in ("clipart", "real"):
        for label in ("bee", "zebra"):
            fill(tmp_path / "domain_net" / domain / label, 10)
    data = make("DomainNet", tmp_path, "clipart", "real")
    assert data.class_counts()["real"] == {"bee": 10, "zebra": 10}
    home = tmp_path / "domain_net"
    (home / "real_train.txt").write_text("".join(f"real/bee/pic_{i:03}.jpg 0\n" for i in range(7)))
    with pytest.raises(UserError, match=r"real_test\.txt is missing, although the other list of real is there"):
        make("DomainNet", tmp_path, "clipart", "real")
    (home / "real_test.txt").write_text("real/zebra/pic_001.jpg 1\n\nreal/bee/pic_008.jpg 0\n")
    data = make("DomainNet", tmp_path, "clipart", "real")
    assert data.class_counts() == {"clipart": {"bee": 10, "zebra": 10}, "real": {"bee": 8, "zebra": 1}}
    (home / "real" / "bee" / "pic_002.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of real's images are not in .*real/bee/pic_002\.jpg first"):
        make("DomainNet", tmp_path, "clipart", "real")
    (home / "real_test.txt").write_text("pic_001.jpg 1\n")
    with pytest.raises(UserError, match=r'real_test\.txt, line 1: expected "domain/class/file number"'):
        make("DomainNet", tmp_path, "clipart", "real")
