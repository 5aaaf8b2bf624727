"""The eight CLIP sets, found and read in every layout in which people have them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from evaluators.clip_sets import CLIP_SETS, find_clip_set
from evaluators.clip_sets.layouts import list_images, set_folder
from evaluators.clip_sets.pictures import open_picture, picture_digest
from nan_merge.errors import ConfigError, DataError
from tests.clip_set_folders import (
    drawn,
    folder_names,
    write_class_folders,
    write_original,
    write_parquet,
)

PIL = pytest.importorskip("PIL")


def content(name: str, folder: Path) -> set[tuple[int, str]]:
    """(label, content of the picture) of every image; what all layouts must agree on."""
    listing = list_images(CLIP_SETS[name], folder)
    assert listing.problems == ()
    places = range(len(listing.places))
    return {(listing.labels[i], picture_digest(open_picture(listing.read(i), ""))) for i in places}


def expected(name: str) -> set[tuple[int, str]]:
    classes = range(len(CLIP_SETS[name].class_names))
    return {(label, picture_digest(drawn(name, label))) for label in classes}


def test_published_sizes_are_whole():
    for each in CLIP_SETS.values():
        assert len(set(each.class_names)) == len(each.class_names)
        assert all(template.count("{}") == 1 for template in each.templates)
        if each.num_test_of_class:
            assert len(each.num_test_of_class) == len(each.class_names)
            assert sum(each.num_test_of_class) == each.num_test
    counts = {name: len(each.class_names) for name, each in CLIP_SETS.items()}
    assert counts == {
        "SUN397": 397, "Cars": 196, "RESISC45": 45, "EuroSAT": 10,
        "SVHN": 10, "GTSRB": 43, "MNIST": 10, "DTD": 47,
    }  # fmt: skip
    assert [len(each.templates) for each in CLIP_SETS.values()] == [2, 8, 18, 3, 1, 3, 1, 8]


def test_an_unknown_set_gets_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'EuroSAT'"):
        find_clip_set("EuroSet")


@pytest.mark.parametrize("name", CLIP_SETS)
def test_a_folder_per_class(name, tmp_path):
    write_class_folders(name, tmp_path)
    assert list_images(CLIP_SETS[name], tmp_path).layout == "class folders"
    assert content(name, tmp_path) == expected(name)


@pytest.mark.parametrize("name", CLIP_SETS)
def test_the_authors_layout(name, tmp_path):
    if name in ("SVHN", "Cars"):
        pytest.importorskip("scipy")
    write_original(name, tmp_path)
    assert content(name, tmp_path) == expected(name)


@pytest.mark.parametrize("name", CLIP_SETS)
def test_parquet_as_on_the_hub(name, tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet(name, tmp_path, list(CLIP_SETS[name].class_names))
    assert list_images(CLIP_SETS[name], tmp_path).notes == ()
    assert content(name, tmp_path) == expected(name)


def test_parquet_without_names_takes_numbers_and_says_so(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet("GTSRB", tmp_path)
    assert "labels are numbers without names" in list_images(CLIP_SETS["GTSRB"], tmp_path).notes[0]
    assert content("GTSRB", tmp_path) == expected("GTSRB")


def test_reordered_classes_are_matched_by_name_and_told(tmp_path):
    pytest.importorskip("pyarrow")
    order = [int(each) for each in np.random.default_rng(0).permutation(43)]
    write_parquet("GTSRB", tmp_path, folder_names("GTSRB"), order)
    assert "another order" in list_images(CLIP_SETS["GTSRB"], tmp_path).notes[0]
    assert content("GTSRB", tmp_path) == expected("GTSRB")


def test_folders_that_sort_ten_before_two_mean_the_same_classes(tmp_path):
    write_class_folders("GTSRB", tmp_path)
    for folder in (tmp_path / "test").iterdir():
        folder.rename(folder.with_name(str(int(folder.name))))
    assert content("GTSRB", tmp_path) == expected("GTSRB")


def test_missing_and_unknown_classes_are_named(tmp_path):
    write_class_folders("DTD", tmp_path)
    shutil.rmtree(tmp_path / "test" / "woven")
    (problem,) = list_images(CLIP_SETS["DTD"], tmp_path).problems
    assert "1 of 47 classes have no image woven" in problem
    (tmp_path / "test" / "zebra").mkdir()
    (problem,) = list_images(CLIP_SETS["DTD"], tmp_path).problems
    assert "DTD has no class zebra" in problem


def test_labels_out_of_range_are_a_problem(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet("DTD", tmp_path).rename(tmp_path / "test-00000-of-00001.parquet")
    (problem,) = list_images(CLIP_SETS["MNIST"], tmp_path).problems
    assert "outside of 0 to 9" in problem


def test_files_that_lists_name_but_are_not_there(tmp_path):
    write_original("GTSRB", tmp_path)
    (tmp_path / "GTSRB" / "Final_Test" / "Images" / "00007.ppm").unlink()
    (problem,) = list_images(CLIP_SETS["GTSRB"], tmp_path).problems
    assert "there is no file" in problem and "00007.ppm" in problem


def test_task_vectors_test_images_lie_in_val_but_only_theirs(tmp_path):
    write_class_folders("DTD", tmp_path, split="val")
    assert content("DTD", tmp_path) == expected("DTD")
    write_class_folders("GTSRB", tmp_path / "other", split="val")
    with pytest.raises(DataError, match=r"no test split of GTSRB.*docs/images\.md"):
        list_images(CLIP_SETS["GTSRB"], tmp_path / "other")


def test_sets_are_found_under_the_names_of_their_copies(tmp_path):
    for name in ("SUN397", "stanford_cars", "EuroSAT_splits", "mnist"):
        (tmp_path / name).mkdir()
    for name, folder in (("SUN397", "SUN397"), ("Cars", "stanford_cars")):
        assert set_folder(name, tmp_path) == tmp_path / folder
    assert set_folder("EuroSAT", tmp_path) == tmp_path / "EuroSAT_splits"
    assert set_folder("MNIST", tmp_path) == tmp_path / "mnist"
    assert set_folder("SVHN", tmp_path) is None


@pytest.mark.parametrize("cut", ["raw/t10k-images-idx3-ubyte.gz", "test_32x32.mat"])
def test_a_cut_archive_is_named(cut, tmp_path):
    pytest.importorskip("scipy")
    name = "MNIST" if "t10k" in cut else "SVHN"
    write_original(name, tmp_path)
    path = tmp_path / cut
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=path.name):
        list_images(CLIP_SETS[name], tmp_path)


def test_train_splits(tmp_path):
    write_class_folders("EuroSAT", tmp_path, split="train")
    assert len(list_images(CLIP_SETS["EuroSAT"], tmp_path, "train").places) == 10
    write_original("DTD", tmp_path)
    labels = tmp_path / "dtd" / "labels"
    half = (labels / "test1.txt").read_text().splitlines(keepends=True)
    (labels / "train1.txt").write_text("".join(half[:20]))
    (labels / "val1.txt").write_text("".join(half[20:]))
    assert len(list_images(CLIP_SETS["DTD"], tmp_path, "train").places) == 47
