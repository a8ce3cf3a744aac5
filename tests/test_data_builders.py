"""The three tasks' builders on tiny copies of their owners' layouts: sound, wrong and incomplete."""

import io
import re
import shutil
import zipfile

import fake_layouts
import numpy as np
import pydicom
import pytest
import tensorflow_datasets as tfds
from fake_layouts import write_csv, write_map, write_picture
from PIL import Image

from tfcam_jax.data import SOURCES
from tfcam_jax.data.builders.chest_xray import ChestXray
from tfcam_jax.data.builders.cyborg_faces import CyborgFaces, domain_of
from tfcam_jax.data.builders.iris_pad import IrisPad
from tfcam_jax.data.builders.owner_files import split_by_share
from tfcam_jax.data.csv_files import read_list
from tfcam_jax.data.decode import decode_image
from tfcam_jax.data.source import DataError

WRITERS = {
    "cyborg_faces": fake_layouts.write_cyborg_faces,
    "iris_pad": fake_layouts.write_iris_lists,
    "chest_xray": fake_layouts.write_chest,
}
FEATURES = {"image", "saliency", "has_map", "label", "domain", "group", "id"}


@pytest.fixture
def open_set(tmp_path):
    def open_it(name, folder, **options):
        return SOURCES[name](manual_dir=str(folder), data_dir=str(tmp_path / "prepared"), **options)

    return open_it


def problems(name, folder, tmp_path, **options):
    with pytest.raises(DataError) as caught:
        SOURCES[name](manual_dir=str(folder), data_dir=str(tmp_path / "prepared"), **options)
    # Nothing half-written is left.
    assert not list((tmp_path / "prepared").glob("**/*.array_record*"))
    return caught.value.problems


def by_id(source):
    return {name.rsplit("/", 1)[1]: i for i, name in enumerate(source.records.ids)}


@pytest.mark.parametrize("name", WRITERS)
def test_a_standard_tfds_builder_with_the_same_features(name, tmp_path):
    folder = WRITERS[name](tmp_path / "owner")
    kind = {"cyborg_faces": CyborgFaces, "iris_pad": IrisPad, "chest_xray": ChestXray}[name]
    builder = kind(data_dir=tmp_path / "prepared", file_format="array_record")
    assert builder.name == name and builder.info.citation.startswith("@")
    for word in ("icence", "domain"):
        assert word in builder.info.description
    assert "launch/prepare.py" in kind.MANUAL_DOWNLOAD_INSTRUCTIONS
    assert set(builder.info.features) == FEATURES
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    record = tfds.builder_from_directory(builder.data_dir).as_data_source(split="train")[0]
    assert set(record) == FEATURES and record["image"].dtype == np.uint8 and record["saliency"].dtype == np.uint8


def test_faces(tmp_path, open_set):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    dataset = open_set("cyborg_faces", folder)
    assert dataset.class_names == ("Real", "Synthetic") and dataset.skipped == ()
    counts = {split: np.bincount(source.records.labels).tolist() for split, source in dataset.splits.items()}
    assert counts == {"train": [4, 4], "val": [2, 2], "test": [4, 8]}
    train, test = dataset.splits["train"].records, dataset.splits["test"].records
    assert train.has_map.all() and not dataset.splits["val"].records.has_map.any() and not test.has_map.any()
    assert set(train.domains) == {"frgc-subset", "srefi"}
    assert set(test.domains) == {"stylegan2", "stylegan2-ada", "ffhq"}
    row = by_id(dataset.splits["train"])["000003.png"]
    example = dataset.splits["train"][row]
    image = Image.open(next(folder.glob("0_real/**/000003.png")))
    np.testing.assert_array_equal(example.image, np.asarray(image))
    heatmap = np.asarray(Image.open(folder / "heatmaps/000003.png")) / 200  # its peak
    np.testing.assert_allclose(example.saliency, heatmap, atol=1 / 255)


@pytest.mark.parametrize(
    ("path", "domain"),
    [
        ("images/test/1_fake/stylegan1-0.5_aligned/000000/000170.png", "stylegan"),
        ("x/StyleGAN2-ADA/1.png", "stylegan2-ada"),
        ("x/StyleGAN_2/1.png", "stylegan2"),
        ("x/stylegan3/1.png", "stylegan3"),
        ("CelebA-HQ/1.png", "celeba-hq"),
        ("x/ProGAN/1.png", "progan"),
        ("diffusion/v1/1.png", "v1"),
    ],
)
def test_domain_of_a_face(path, domain):
    assert domain_of(path) == domain


def test_faults_of_faces_are_told_at_once(tmp_path):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    lines = (folder / "csvs/original.csv").read_text().splitlines()
    lines[0] = lines[0].replace("train", "trein", 1)
    lines[1] = lines[1].replace("Synthetic", "Sinthetic")
    lines.insert(2, "train,Real")
    next(folder.glob("*/**/000004.png")).unlink()
    broken = next(folder.glob("?_*/**/000005.png"))
    broken.write_bytes(broken.read_bytes()[:60])
    (folder / "heatmaps/000006.png").write_bytes(b"nothing")
    (folder / "csvs/original.csv").write_text("\n".join(lines))
    found = "\n".join(problems("cyborg_faces", folder, tmp_path))
    assert "original.csv, row 1: unknown split 'trein'; use train or test" in found
    assert "original.csv, row 2: label 'Sinthetic' is none of Real, Synthetic. Did you mean 'Synthetic'?" in found
    assert "original.csv, row 3: 2 cells; must hold split,class,path" in found
    assert re.search(r"original.csv, row 5: image 1_fake/.*/000004.png does not exist; .* holds none of", found)
    assert re.search(r"original.csv, row 6: image .*000005.png: broken image", found)
    assert re.search(r"original.csv, row 7: map heatmaps/000006.png: not an image", found)


def test_unreadable_faces_are_skipped_only_on_request_and_counted(tmp_path, open_set):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    next(folder.glob("1_fake/**/000004.png")).write_bytes(b"nothing")
    assert len(problems("cyborg_faces", folder, tmp_path)) == 1
    dataset = open_set("cyborg_faces", folder, skip_unreadable=True)
    assert len(dataset.splits["train"]) == 7
    assert len(dataset.skipped) == 1 and "000004.png: not an image" in dataset.skipped[0]
    # Also when the prepared set is opened again.
    assert open_set("cyborg_faces", folder, skip_unreadable=True).skipped == dataset.skipped


def test_two_faces_of_one_name_cannot_share_a_heatmap(tmp_path):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    write_picture(folder / "other/000001.png", 99)
    with (folder / "csvs/original.csv").open("a") as file:
        file.write("train,Real,other/000001.png\n")
    found = problems("cyborg_faces", folder, tmp_path)
    assert len(found) == 1 and "put maps under the images' paths" in found[0]
    assert (
        "map heatmaps/000001.png could be that of 0_real/frgc_subset/000000/000001.png or other/000001.png" in found[0]
    )


@pytest.mark.parametrize("name", WRITERS)
def test_missing_folders_tell_how_to_obtain_the_data(name, tmp_path):
    steps = "how to obtain and unpack the data"
    assert steps in problems(name, tmp_path / "absent", tmp_path)[0]
    (tmp_path / "empty").mkdir()
    assert steps in problems(name, tmp_path / "empty", tmp_path)[0]
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("train.csv", "train,Real,a.png")
    assert problems(name, tmp_path / "data.zip", tmp_path)[0].endswith("a zip archive; unpack it and give the folder")
    shutil.copy(tmp_path / "data.zip", tmp_path / "empty")
    assert "unpack data.zip" in problems(name, tmp_path / "empty", tmp_path)[0]
    with pytest.raises(DataError, match="holds no prepared set"):
        SOURCES[name](data_dir=str(tmp_path / "prepared"))


def test_prepared_sets_follow_the_files_and_open_without_them(tmp_path, open_set, monkeypatch):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    first = open_set("cyborg_faces", folder)
    monkeypatch.setattr(CyborgFaces, "_split_generators", lambda *_: pytest.fail("prepared again"))
    again = open_set("cyborg_faces", folder)
    assert again.splits["train"].records.ids == first.splits["train"].records.ids
    alone = SOURCES["cyborg_faces"](data_dir=str(tmp_path / "prepared"))
    np.testing.assert_array_equal(alone.splits["train"][2].image, first.splits["train"][2].image)
    monkeypatch.undo()
    write_map(folder / "heatmaps/000003.png", 77)
    changed = open_set("cyborg_faces", folder)
    row = by_id(changed.splits["train"])["000003.png"]
    expected = np.asarray(Image.open(folder / "heatmaps/000003.png")) / 200
    np.testing.assert_allclose(changed.splits["train"][row].saliency, expected, atol=1 / 255)
    with pytest.raises(DataError, match="holds 2 prepared sets"):
        SOURCES["cyborg_faces"](data_dir=str(tmp_path / "prepared"))


def test_columns_beside_a_prepared_set_say_what_its_records_say(tmp_path, open_set):
    folder = fake_layouts.write_iris_lists(tmp_path / "owner")
    source = open_set("iris_pad", folder).splits["train"]
    for column in (tmp_path / "prepared").glob("**/*.columns.json"):
        column.unlink()
    slow = SOURCES["iris_pad"](data_dir=str(tmp_path / "prepared")).splits["train"]
    for name in ("ids", "domains", "groups"):
        assert getattr(slow.records, name) == getattr(source.records, name)
    np.testing.assert_array_equal(slow.records.labels, source.records.labels)
    np.testing.assert_array_equal(slow.records.has_map, source.records.has_map)


def test_every_kind_of_image_is_stored_as_it_is_seen(tmp_path, open_set):
    folder = fake_layouts.write_cyborg_faces(tmp_path / "owner")
    deep = np.random.default_rng(0).integers(0, 65536, (8, 9), np.uint16)
    ink = np.random.default_rng(1).integers(0, 256, (8, 9, 4), np.uint8)
    (folder / "more").mkdir()
    Image.fromarray(deep).save(folder / "more/deep.png")
    Image.fromarray(ink, "CMYK").save(folder / "more/ink.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ink[..., :3]).save(folder / "more/turned.jpg", exif=exif)
    with (folder / "csvs/original.csv").open("a") as file:
        file.write("train,Real,more/deep.png\ntrain,Real,more/ink.jpg\ntrain,Real,more/turned.jpg\n")
    source = open_set("cyborg_faces", folder).splits["train"]
    rows = by_id(source)
    np.testing.assert_allclose(source[rows["deep.png"]].image[..., 1], deep / 257, atol=0.51)
    seen = np.asarray(Image.open(folder / "more/ink.jpg").convert("RGB"))
    np.testing.assert_array_equal(source[rows["ink.jpg"]].image, seen)
    assert source[rows["turned.jpg"]].image.shape == (9, 8, 3)
    record = source.encoded[rows["ink.jpg"]]
    assert Image.open(io.BytesIO(record["image"])).mode == "RGB"


def test_irises_from_lists(tmp_path, open_set):
    dataset = open_set("iris_pad", fake_layouts.write_iris_lists(tmp_path / "owner"), channels=1)
    assert dataset.class_names == ("live", "attack")
    train, test = dataset.splits["train"].records, dataset.splits["test"].records
    assert len(train) == 10 and len(dataset.splits["val"]) == 5 and len(test) == 4
    assert set(train.domains) == {"live", "textured_contacts", "printout", "artificial"}
    assert set(test.domains) == {"live", "cadaver", "display"}
    assert (train.labels == [domain != "live" for domain in train.domains]).all()
    assert train.groups[0] == "person1" and test.groups[0] == ""
    # Two annotators, whose maps are in folders of their own, were averaged.
    assert train.has_map.sum() == 2
    anna, ben = (np.asarray(Image.open(tmp_path / f"owner/maps/{name}/001_L.png")) / 255 for name in ("anna", "ben"))
    mean = (anna + ben) / 2
    np.testing.assert_allclose(dataset.splits["train"][0].saliency, mean / mean.max(), atol=1 / 255)


def test_irises_from_folders(tmp_path, open_set):
    folder = fake_layouts.write_iris_folders(tmp_path / "owner", 30)
    dataset = open_set("iris_pad", folder)
    ids = {split: source.records.ids for split, source in dataset.splits.items()}
    assert sum(map(len, ids.values())) == 90
    assert all(split_by_share(name.removeprefix("images/")) == split for split in ids for name in ids[split])
    assert set(dataset.splits["train"].records.domains) == {"live", "printout", "textured_contacts"}
    for kind in ("live", "printout"):
        (folder / f"images/test/{kind}").mkdir(parents=True)
        (folder / f"images/{kind}/000.png").rename(folder / f"images/test/{kind}/000.png")
    moved = open_set("iris_pad", folder)
    assert {"images/test/live/000.png", "images/test/printout/000.png"} <= set(moved.splits["test"].records.ids)


def test_the_eye_can_be_read_off_the_path(tmp_path):
    folder = fake_layouts.write_iris_folders(tmp_path / "owner", 30)
    with pytest.raises(DataError, match="group 00 is also in split"):
        # One "person" for all files that begin alike, in every type: then the split is by person, but types differ.
        write_csv(folder / "list.csv", [["train", "live", "live/000.png"], ["val", "live", "live/001.png"]])
        SOURCES["iris_pad"](manual_dir=str(folder), data_dir=str(tmp_path / "p"), group_pattern=r"/(\d\d)\d\.png")


def test_maps_of_eyes_of_one_file_name_need_paths(tmp_path):
    folder = fake_layouts.write_iris_folders(tmp_path / "owner")
    write_map(folder / "maps/000.png", 1)
    found = problems("iris_pad", folder, tmp_path)
    assert len(found) == 1 and all("put maps under the images' paths" in problem for problem in found)


def test_films(tmp_path, open_set):
    folder = fake_layouts.write_chest(tmp_path / "owner")
    dataset = open_set("chest_xray", folder, sigma=6.0, annotated_only=False, normals=0.0)
    assert dataset.class_names == ("normal", "abnormal")
    everything = [(s, i) for s, source in dataset.splits.items() for i in range(len(source))]
    assert len(everything) == 48
    record = {dataset.splits[s].records.ids[i]: (s, i) for s, i in everything}
    records = {name: dataset.splits[s].records for name, (s, _) in record.items()}
    column = lambda name, key: getattr(records[name], key)[record[name][1]]
    # NIH: boxes, the patient.
    name = "nih/images_002/images/00000015_000.png"
    assert column(name, "labels") == 1 and column(name, "groups") == "nih15"
    split, i = record[name]
    expected = np.zeros((48, 48))
    expected[10:22, 5:24], expected[10:22, 4] = 1, 0.5
    expected[10:22, 24] = 0.5
    np.testing.assert_allclose(dataset.splits[split][i].saliency, expected, atol=1 / 255)
    # RSNA: two boxes on an opacity, none on the third class, which is abnormal too.
    split, i = record["rsna/stage_2_train_images/rsna-0001.png"]
    np.testing.assert_allclose(dataset.splits[split][i].saliency.sum(), 2 * 200, rtol=1e-3)
    assert column("rsna/stage_2_train_images/rsna-0002.png", "labels") == 1
    assert not column("rsna/stage_2_train_images/rsna-0002.png", "has_map")
    # MIMIC: the film is found by its name whatever its kind; fixations off the film are left out.
    name = "mimic/files/p10/p003/s1/film003.jpg"
    assert column(name, "groups") == "mimic2" and column(name, "labels") == 1
    split, i = record[name]
    saliency = dataset.splits[split][i].saliency
    assert saliency.shape == (50, 60) and saliency[20, 30] > 0.95 and 0.45 < saliency[40, 10] < 0.55
    assert saliency[0, 0] < 0.1


def test_collections_can_be_chosen_and_cut_to_what_is_annotated(tmp_path, open_set):
    folder = fake_layouts.write_chest(tmp_path / "owner", ("rsna",), films=120)
    dataset = open_set("chest_xray", folder, collections=("rsna",), annotated_only=True)
    for source in dataset.splits.values():
        assert set(source.records.domains) == {"rsna"}
        np.testing.assert_array_equal(source.records.has_map, source.records.labels == 1)
    with pytest.raises(DataError, match="no collection 'nhi'; known are nih, rsna, egd, reflacx"):
        open_set("chest_xray", folder, collections=("nhi",))


def test_faults_of_films_are_told_at_once(tmp_path):
    folder = fake_layouts.write_chest(tmp_path / "owner")
    (folder / "nih/test_list.txt").unlink()  # nobody asked for the owner's split
    (folder / "rsna/stage_2_detailed_class_info.csv").unlink()
    (folder / "mimic/files/p10/p003/s1/film003.jpg").unlink()
    text = (folder / "nih/BBox_List_2017.csv").read_text()
    (folder / "nih/BBox_List_2017.csv").write_text(text.replace("20.0,12.0", "99.0,12.0", 1))
    sheet = (folder / "egd/master_sheet.csv").read_text()
    (folder / "egd/master_sheet.csv").write_text(sheet.replace("patient_id", "patient"))
    found = "\n".join(problems("chest_xray", folder, tmp_path))
    assert "test_list.txt" not in found
    assert "stage_2_detailed_class_info.csv: no such file" in found
    assert "master_sheet.csv, row 1: no column patient_id" in found
    assert re.search(
        r"row \d+: map nih/BBox_List_2017.csv: .*box 4.5, 10, 99, 12 reaches outside the image's 48 x 48", found
    )
    (folder / "egd/master_sheet.csv").write_text(sheet)
    found = "\n".join(problems("chest_xray", folder, tmp_path))
    assert "image egd/files/p10/p003/s1/film003.dcm does not exist" in found


def test_dicom(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (6, 7), np.uint8)
    file = pydicom.dataset.FileDataset("x.dcm", {}, preamble=b"\0" * 128, file_meta=pydicom.dataset.FileMetaDataset())
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PixelRepresentation = 6, 7, 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.PhotometricInterpretation, file.PixelData = "MONOCHROME2", grey.tobytes()
    file.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(decode_image((tmp_path / "a.dcm").read_bytes(), 1)[..., 0], grey)
    file.PhotometricInterpretation = "MONOCHROME1"
    file.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(decode_image((tmp_path / "a.dcm").read_bytes(), 1)[..., 0], 255 - grey)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '\ufefftrain,Real,"a, b.png"\r\n\r\ntest , Real, c.png'.encode(),
            [("train", "Real", "a, b.png"), ("test", "Real", "c.png")],
        ),
        ("train,Real,ä.png".encode("latin-1"), "not UTF-8"),
        (b'train,Real,"never closed', "row 1: not CSV"),
    ],
)
def test_list_files_of_other_programs(tmp_path, content, expected):
    (tmp_path / "list.csv").write_bytes(content)
    lines, wrong = read_list(tmp_path / "list.csv", (3,), "split,class,path")
    if isinstance(expected, list):
        assert [tuple(cells) for _, cells in lines] == expected and not wrong
        assert [number for number, _ in lines] == [1, 3]
    else:
        assert len(wrong) == 1 and expected in wrong[0]


def test_shares_are_even_and_stay():
    splits = [split_by_share(f"patient{i}") for i in range(4000)]
    assert splits[:3] == [split_by_share(f"patient{i}") for i in range(3)]
    for split, share in {"train": 0.7, "val": 0.1, "test": 0.2}.items():
        assert splits.count(split) / 4000 == pytest.approx(share, abs=0.02)
