import numpy as np
import pytest
import torch
from PIL import Image

from superself.data import Labelled, open_images
from superself.data.labels import number_labels

NAMES = ("a.png", "b.png", "sub/a.png", "sub/c.png")


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), place, np.uint8)).save(path)
    return tmp_path / "photos"


def found(folder, labels, **options):
    """The label of each file, by its name below the folder."""
    images = open_images(Labelled(folder, labels, **options))
    names = [path.relative_to(folder).as_posix() for path in images.paths]
    values = images.targets.tolist()
    return dict(
        zip(names, values if images.classes is None else [images.classes[value] for value in values], strict=True)
    )


def table(folder, text, name="labels.csv", encoding="utf-8"):
    path = folder.parent / name
    path.write_bytes(text.encode(encoding))
    return path


EXPECTED = {"a.png": "cat", "b.png": "dog", "sub/a.png": "owl", "sub/c.png": "cat"}


def test_names_below_the_common_folder_are_found(folder):
    assert found(folder, EXPECTED) == EXPECTED
    images = open_images(Labelled(folder, EXPECTED))
    assert images.classes == ["cat", "dog", "owl"] and images.labels.tolist() == [0, 1, 2, 0]
    assert [image.flatten()[0].item() for image, _ in images] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "written", [lambda path: path, lambda path: str(path), lambda path: f"{path.parent}/../photos/x"]
)
def test_full_paths_are_found(folder, written):
    labels = {written(folder / name): label for name, label in EXPECTED.items()}
    if "x" in str(list(labels)[0])[-1]:
        labels = {f"{folder}/../photos/{name}": label for name, label in EXPECTED.items()}
    assert found(folder, labels) == EXPECTED


def test_unique_names_and_ends_of_paths_and_names_without_extension_are_found(folder):
    labels = {"photos/a.png": "cat", "b": "dog", "photos\\sub\\a.png": "owl", "c.png": "cat"}
    assert found(folder, labels) == EXPECTED


def test_a_name_at_the_top_wins_over_one_below(folder):
    assert found(folder, {"a.png": "top", "sub/a.png": "below", "b.png": "b", "c.png": "c"})["a.png"] == "top"


def test_a_name_that_fits_several_files_is_an_error(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
        Image.new("L", (4, 4)).save(folder / name / "d.png")
    with pytest.raises(
        ValueError, match=r"'d.png' in the dictionary fits 2 images: .*one.*two.*below the common folder"
    ):
        open_images(Labelled(folder, {**EXPECTED, "d.png": "cat"}))


def test_a_file_without_a_label_is_an_error_or_left_out_and_counted(folder):
    labels = {"a.png": "cat", "b.png": None, "sub/c.png": "dog"}
    with pytest.raises(ValueError, match=r"2 of 4 images have no label: '.*b.png', '.*a.png'; name each file"):
        open_images(Labelled(folder, labels))
    images = open_images(Labelled(folder, labels, unlabelled="omit"))
    assert [path.name for path in images.paths] == ["a.png", "c.png"] and images.labels.tolist() == [0, 1]
    assert list(images.skipped.values()) == ["no label in the table"] * 2
    assert "2 left out" in images.describe()


def test_names_without_a_file_are_ignored_unless_none_fits(folder):
    assert found(folder, {**EXPECTED, "elsewhere/z.png": "cow"}) == EXPECTED
    with pytest.raises(
        ValueError, match=r"none of the 1 names in the dictionary fits one of the images.*'z.png'.*a.png"
    ):
        open_images(Labelled(folder, {"z.png": "cow"}))


def test_two_labels_for_a_file_are_an_error(folder):
    with pytest.raises(ValueError, match=r"has the labels 'cat' and 'dog' for .*a.png; keep one"):
        open_images(Labelled(folder, {**EXPECTED, "photos/a.png": "dog"}))
    assert found(folder, {**EXPECTED, "photos/a.png": "cat"}) == EXPECTED


def test_csv_with_header_and_quotes_is_read(folder):
    (folder / "a.png").rename(folder / "a, b.png")
    path = table(
        folder, 'split,file,class\ntrain,"a, b.png","big ""cat"""\ntest,b.png,dog\ntest,sub/a.png,owl\nx,c.png,cat\n'
    )
    assert found(folder, path) == {"a, b.png": 'big "cat"', "b.png": "dog", "sub/a.png": "owl", "sub/c.png": "cat"}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_without_header_in_any_order_and_with_any_delimiter_is_read(folder, mark):
    path = table(folder, "".join(f"{label}{mark}{name}\r\n" for name, label in EXPECTED.items()))
    assert found(folder, str(path)) == EXPECTED


def test_a_mark_at_the_start_of_a_csv_file_is_no_part_of_its_first_column(folder):
    text = "\ufefffile,label\n" + "".join(f"{name},{label}\n" for name, label in EXPECTED.items())
    assert found(folder, table(folder, text), image_column="file") == EXPECTED


def test_columns_can_be_chosen_by_name_and_number(folder):
    path = table(folder, "file,colour,kind\n" + "".join(f"{name},red,{label}\n" for name, label in EXPECTED.items()))
    assert found(folder, path, label_column="kind") == EXPECTED
    assert found(folder, path, image_column=0, label_column=2) == EXPECTED
    with pytest.raises(ValueError, match="has the columns file, colour, kind; pass label_column="):
        open_images(Labelled(folder, path))
    with pytest.raises(
        ValueError, match="label_column='size' is not a column of .*; its columns are file, colour, kind"
    ):
        open_images(Labelled(folder, path, label_column="size"))
    with pytest.raises(ValueError, match="image_column=3 is not a column"):
        open_images(Labelled(folder, path, image_column=3))


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("", "utf-8", "is empty"),
        ("a.png,cat\nb.png,very, big\n", "utf-8", "2 columns in its first row and 3 in row 2; quote"),
        ("a.png,Käse\n", "latin-1", "is not UTF-8"),
    ],
)
def test_files_that_are_no_tables_are_explained(folder, text, encoding, message):
    with pytest.raises(ValueError, match=message):
        open_images(Labelled(folder, table(folder, text, encoding=encoding)))


def test_a_table_that_is_missing_is_explained(folder):
    with pytest.raises(FileNotFoundError, match="nowhere.csv cannot be read"):
        open_images(Labelled(folder, "nowhere.csv"))


def test_data_frames_and_series_are_read(folder):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"file": list(EXPECTED), "label": list(EXPECTED.values())})
    assert found(folder, frame) == EXPECTED
    assert found(folder, frame.set_index("file")) == EXPECTED
    assert found(folder, frame.set_index("file")["label"]) == EXPECTED
    assert found(folder, frame, image_column=0, label_column=1) == EXPECTED
    assert found(folder, frame.rename(columns={"label": "kind"})) == EXPECTED  # the index is not a label
    frame["label"] = [1.0, None, 0.0, 1.0]  # a gap makes floats of whole numbers
    assert found(folder, frame, unlabelled="omit") == {"a.png": 1, "sub/a.png": 0, "sub/c.png": 1}
    assert open_images(Labelled(folder, frame, unlabelled="omit")).labels is not None


@pytest.mark.parametrize("labels", [[3, 0, 1, 3], np.array([3, 0, 1, 3]), torch.tensor([3, 0, 1, 3])])
def test_one_label_per_image_goes_by_the_order_of_the_paths(folder, labels):
    assert list(found(folder, labels).values()) == [3, 0, 1, 3]


def test_folders_are_classes_when_asked_for(folder):
    assert list(found(folder, "folders").values()) == ["photos", "photos", "sub", "sub"]


def test_images_in_memory_and_items_take_one_label_per_image():
    pixels = np.zeros((3, 4, 4), np.uint8)
    for source in (pixels, [pixels[0], pixels[1], pixels[2]]):
        images = open_images(Labelled(source, ["b", "a", "b"]))
        assert images.labels.tolist() == [1, 0, 1] and images.classes == ["a", "b"]
        assert images.batch([0, 1]).target.tolist() == [1, 0]


def test_a_wrong_number_or_kind_of_labels_is_explained(folder):
    with pytest.raises(ValueError, match="3 labels for 4 images; pass one label per image"):
        open_images(Labelled(folder, [0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels have the shape \(4, 2\); pass one class per image, \(4,\)"):
        open_images(Labelled(folder, torch.zeros(4, 2)))
    with pytest.raises(TypeError, match="labels are a int; pass a dictionary"):
        open_images(Labelled(folder, 7))
    with pytest.raises(ValueError, match="unlabelled='keep' is unknown"):
        Labelled(folder, {}, unlabelled="keep")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "2", "10"], ([10, 2, 10], None)),
        ([True, False], ([1, 0], None)),
        (["0.5", "2"], ([0.5, 2.0], None)),
        (["01", "1"], ([0, 1], ["01", "1"])),
        (["1_0", "10"], ([1, 0], ["10", "1_0"])),
        (["b", "10", "b"], ([1, 0, 1], ["10", "b"])),
    ],
)
def test_numbers_stay_and_words_become_classes(labels, expected):
    assert number_labels(labels) == expected


def test_the_image_size_is_chosen_when_the_data_set_is_opened(folder):
    assert open_images(Labelled(folder, EXPECTED), image_size=2).shape == (1, 2, 2)


@pytest.mark.parametrize("missing", ["NaN", "nan", "N/A", "NA", ""])
def test_texts_for_a_missing_label_are_no_class(folder, missing):
    labels = {"a.png": "3", "b.png": missing, "sub/a.png": "5", "sub/c.png": "3"}
    assert found(folder, labels, unlabelled="omit") == {"a.png": 3, "sub/a.png": 5, "sub/c.png": 3}


def test_a_csv_file_that_cannot_be_parsed_is_named(folder):
    path = table(folder, "file,label\na.png," + "x" * 200_000)
    with pytest.raises(ValueError, match=r"labels\.csv is not a table"):
        found(folder, path)


def test_integers_that_no_number_keeps_are_names():
    names = ["1234567890123456789", "1234567890123456788"]
    numbers, classes = number_labels(names)
    assert numbers == [1, 0] and classes == sorted(names)
