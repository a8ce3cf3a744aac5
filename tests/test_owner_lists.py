"""The lists of the three tasks' owners, in their own form: the rows that they become, and what is told of them."""

import csv
import time
from collections import Counter, defaultdict

import fake_layouts
import numpy as np
import pytest
from fake_layouts import write_csv, write_map, write_picture

from tfcam_jax.data import LISTINGS
from tfcam_jax.data.builders.chest.collection import Film, check_splits, choose_films, split_films
from tfcam_jax.data.builders.chest_xray import ChestXrayConfig
from tfcam_jax.data.builders.file_search import FileSearch
from tfcam_jax.data.checks.inspection import inspect
from tfcam_jax.data.checks.report import describe_listing, make_report
from tfcam_jax.data.listing import Row
from tfcam_jax.data.source import DataError
from tfcam_jax.errors import ConfigError


def listed(name, folder, **options):
    return LISTINGS[name](manual_dir=str(folder), **options)


def kinds(listing, *columns):
    return Counter(tuple(getattr(row, column) for column in columns) for row in listing.rows)


def row_of(listing, end):
    (row,) = [row for row in listing.rows if row.image.endswith(end)]
    return row


# Files that lists mean.


@pytest.mark.parametrize(
    ("path", "found", "how"),
    [
        ("/train/a/1.png", "images/train/a/1.png", "listed"),
        ("/home/x/data/train/a/1.png", "images/train/a/1.png", "tail"),
        ("C:\\data\\val\\a\\1.png", "images/val/a/1.png", "tail"),
        ("/store/other/2.png", "images/2.png", "name"),
        ("/store/b/3.PNG", "images/b/3.jpg", "spelling"),
        ("1.png", "", ""),  # three files, none nearer
        ("/store/other/1.png", "", ""),
        ("/store/other/4.png", "", ""),
    ],
)
def test_a_file_is_found_by_the_longest_end_of_its_path(tmp_path, path, found, how):
    for name in ("train/a/1.png", "val/a/1.png", "val/b/1.png", "2.png", "b/3.jpg"):
        write_picture(tmp_path / "images" / name, 1)
    write_picture(tmp_path / "maps/4.png", 2)
    sought = FileSearch(tmp_path, without=["maps"]).find(path, "images")
    assert (sought.path if found else "", sought.how) == (found, how)
    assert bool(sought.looked) != bool(found or sought.rivals)
    if sought.looked:
        assert len(sought.looked) == 3


def test_numbers_alone_name_no_face(tmp_path):
    """Every generator has a 000170.png."""
    write_picture(tmp_path / "stylegan/000170.png", 1)
    search = FileSearch(tmp_path)
    assert search.find("/test/progan/000170.png", by_name=False).looked
    assert search.find("/test/stylegan/000170.png", by_name=False).path == "stylegan/000170.png"


def test_two_listed_paths_are_never_one_file(tmp_path):
    write_picture(tmp_path / "images/1.png", 1)
    write_csv(tmp_path / "a.csv", [["train", "Live", "/x/1.png"], ["train", "Spoof", "/y/1.png"]])
    listing = listed("iris_pad", tmp_path)
    assert all(row.looked for row in listing.rows)  # Either could be meant.


# Faces.


def test_faces_as_their_owner_lists_them(tmp_path):
    rows = [
        ["train", "Synthetic", "/train/original_data/1_fake/p1_1_fake.png"],
        ["train", "Real", "/train/original_data/0_real/p1_2_real.png"],
        ["test", "Real", "/val/0_real/02463d256.jpg"],
        ["test", "Synthetic", "/val/1_fake/synth_face_0068.jpg"],
    ]
    write_csv(tmp_path / "csvs/original.csv", rows)
    tests = {
        "ffhq": ["test", "Real", "/test/0_real/ffhq_aligned/01128.png"],
        "celeba-hq": ["test", "Real", "/test/0_real/celeba-hq_real_aligned/24734.jpg"],
        "new": ["test", "synthetic", "/test/1_fake/dalle3_aligned/000001.png"],
        "other": ["test", "Synthetic", "/test/1_fake/000002.png"],
    }
    for name, row in tests.items():
        write_csv(tmp_path / f"csvs/gan_test_sets/{name}.csv", [row])
    for i, (_, _, path) in enumerate([*rows, *tests.values()]):
        write_picture(tmp_path / path[1:], i)
    write_map(tmp_path / "train/heatmaps/p1_1_fake.png", 1)
    listing = listed("cyborg_faces", tmp_path)
    assert not listing.problems
    assert kinds(listing, "split", "label", "domain") == Counter(
        [
            ("train", "Synthetic", "original"),
            ("train", "Real", "original"),
            ("val", "Real", "original"),
            ("val", "Synthetic", "original"),
            ("test", "Real", "ffhq"),
            ("test", "Real", "celeba-hq"),
            ("test", "Synthetic", "dalle3"),
            ("test", "Synthetic", "other"),
        ]
    )
    assert [row.image for row in listing.rows[:4]] == [path[1:] for _, _, path in rows]
    assert row_of(listing, "p1_1_fake.png").map == "train/heatmaps/p1_1_fake.png"
    assert sum(bool(row.map) for row in listing.rows) == 1


# Irises.


def write_eyes(folder, *rows, images="images"):
    for i, (_, kind, path) in enumerate(rows):
        write_picture(folder / images / path.rsplit("/", 1)[1], i, mode="L", bright=kind != "Live")


DNET = [
    *(["train", "Live", f"/home/a/eyes/L{i}.png"] for i in range(6)),
    *(["Train", "SPOOF", f"/home/a/eyes/S{i}.png"] for i in range(6)),
    *(["test", "live", f"/home/a/eyes/L{i}.png"] for i in (7, 8)),
    *(["TEST", "Attack", f"/home/a/eyes/S{i}.png"] for i in (7, 8)),
]


@pytest.mark.parametrize("header", [[], [["Split", "Class", "Image_Location"]]])
def test_one_list_of_irises_validates_on_a_part_of_its_training(tmp_path, header):
    write_csv(tmp_path / "train.csv", header + DNET)
    write_eyes(tmp_path, *DNET)
    write_map(tmp_path / "maps/L0_blended.png", 1)
    listing = listed("iris_pad", tmp_path)
    assert not listing.problems
    assert kinds(listing, "split", "label") == {
        ("", "live"): 6,
        ("", "attack"): 6,
        ("test", "live"): 2,
        ("test", "attack"): 2,
    }
    assert set(listing.draw.shares) == {"train", "val"}
    assert any("train.csv is the only list" in note for note in listing.notes)
    # The folder holds live irises as well: it names no type.
    assert {row.domain for row in listing.rows} == {"live", "attack"}
    assert row_of(listing, "/L0.png").map == "maps/L0_blended.png"
    drawn = inspect(listing, progress=False).listing
    assert kinds(drawn, "split", "label")["val", "live"] >= 1 and kinds(drawn, "split", "label")["val", "attack"] >= 1


def test_test_rows_validate_where_another_list_tests(tmp_path):
    write_csv(tmp_path / "CSVs/Train/Printout_Left_Out_Train.csv", [[a.title(), b, c] for a, b, c in DNET])
    other = [["Image_Location", "Class"], ["/home/a/eyes/P1.png", "Spoof"], ["/home/a/eyes/L9.png", "Live"]]
    write_csv(tmp_path / "CSVs/Test/Printout_Left_Out_Test.csv", other)
    write_eyes(tmp_path, *DNET, ["", "Spoof", "/P1.png"], ["", "Live", "/L9.png"])
    listing = listed("iris_pad", tmp_path)
    assert not listing.problems and listing.draw is None
    assert kinds(listing, "split", "domain") == {
        ("train", "live"): 6,
        ("train", "not_printout"): 6,
        ("val", "live"): 2,
        ("val", "not_printout"): 2,
        ("test", "live"): 1,
        ("test", "printout"): 1,
    }
    assert any("test rows of Printout_Left_Out_Train.csv validate" in note for note in listing.notes)


def test_lists_of_several_left_out_types_are_a_choice(tmp_path):
    for kind in ("Printout", "Contacts_+_Print"):
        write_csv(tmp_path / f"CSVs/Train/{kind}_Left_Out_Train.csv", DNET)
    write_eyes(tmp_path, *DNET)
    with pytest.raises(DataError, match=r"contacts_print, printout.*\n*.*data.iris_pad.lists="):
        listed("iris_pad", tmp_path)
    chosen = listed("iris_pad", tmp_path, lists=("CSVs/Train/Contacts_*.csv",))
    assert "not_contacts_print" in {row.domain for row in chosen.rows}


@pytest.mark.parametrize(
    ("rows", "options", "domain"),
    [
        ([["train", "Live", "/a/l/1.png"], ["train", "Spoof", "/a/textured contacts/2.png"]], {}, "textured_contacts"),
        ([["train", "Live", "/a/images/1.png"], ["train", "Spoof", "/a/images/spoof/2.png"]], {}, "attack"),
        ([["train", "Live", "1.png"], ["train", "Spoof", "print_2.png"]], {"type_pattern": "^([a-z]+)_"}, "print"),
        ([["train", "Live", "1.png", ""], ["train", "pa", "2.png", "Doll"]], {"type_column": "4"}, "doll"),
        (
            [["split", "label", "path", "species"], ["train", "Live", "1.png", ""], ["train", "pa", "2.png", "Glass"]],
            {"type_column": "species"},
            "glass",
        ),
        ([["split", "class", "path", "PAI"], ["train", "live", "1.png", ""], ["train", "pa", "2.png", "PM"]], {}, "pm"),
        ([["train", "Live", "1.png"], ["train", "Cadaver", "2.png"]], {}, "cadaver"),
    ],
)  # fmt: skip
def test_the_attack_type_is_told_by_class_column_pattern_or_folder(tmp_path, rows, options, domain):
    write_csv(tmp_path / "set.csv", rows)
    for i, name in enumerate(("1.png", "2.png", "print_2.png")):
        write_picture(tmp_path / "images" / name, i)
    listing = listed("iris_pad", tmp_path, **options)
    assert not listing.problems
    assert {row.domain for row in listing.rows if row.label == "attack"} == {domain}


def test_faults_of_iris_lists_are_told_with_the_row(tmp_path):
    rows = [["train", "Live", "1.png"], ["trian", "Live", "2.png"], ["train", "0", "3.png"], ["train", "", "4.png"]]
    write_csv(tmp_path / "a.csv", [*rows, ["1.png"]])
    found = "\n".join(listed("iris_pad", tmp_path).problems)
    assert "a.csv, row 2: unknown split 'trian'; use train, val or test" in found
    assert "a.csv, row 3: class '0'; use live or" in found and "a.csv, row 4: no class given" in found
    assert "a.csv, row 5: 1 cells" in found
    with pytest.raises(ConfigError, match=r"data.iris_pad.type_pattern.*has no group"):
        listed("iris_pad", tmp_path, type_pattern="print")


# Chest films.


def marks_of(listing, row, height=50, width=60):
    return {name: each.values for name, each in listing.reader.annotators(row, height, width).items()}


def test_boxed_patients_train_validate_and_test(tmp_path):
    folder = fake_layouts.write_chest(tmp_path, ("nih", "rsna"), films=60)
    listing = listed("chest_xray", folder)
    assert not listing.problems
    found = kinds(listing, "split", "label", "domain")
    assert {key: count for key, count in found.items() if key[2] == "nih"} == {
        ("train", "normal", "nih"): 21, ("train", "abnormal", "nih"): 21, ("val", "normal", "nih"): 3,
        ("val", "abnormal", "nih"): 3, ("test", "normal", "nih"): 6, ("test", "abnormal", "nih"): 6,
    }  # fmt: skip
    assert all(bool(row.map) == (row.label == "abnormal") for row in listing.rows)
    assert any("rsna: 20 annotated films of 20 patients, 20 normal films" in note for note in listing.notes)
    assert any("left out: 20 abnormal" in note for note in listing.notes)
    assert row_of(listing, "nih/images_002/images/00000015_000.png").group == "nih15"
    other = listed("chest_xray", folder, seed=1)
    assert kinds(other, "split", "label", "domain") == found and other.rows != listing.rows
    assert listed("chest_xray", folder).rows == listing.rows
    few = listed("chest_xray", folder, collections=("nih",), normals=0.5)
    assert kinds(few, "label") == {("abnormal",): 30, ("normal",): 15}
    everything = listed("chest_xray", folder, annotated_only=False, normals=0.0)
    assert len(everything.rows) == 120


def test_a_split_that_leaves_training_without_maps_is_refused(tmp_path):
    folder = fake_layouts.write_chest(tmp_path, ("nih",))
    with (folder / "nih/BBox_List_2017.csv").open() as file:
        boxed = [cells[0] for cells in csv.reader(file)][1:]
    (folder / "nih/test_list.txt").write_text("\n".join(boxed))
    (problem,) = listed("chest_xray", folder, owner_splits=("nih",)).problems
    assert "of its 8 annotated films none trains as its owner splits them" in problem
    assert "take nih out of data.chest_xray.owner_splits" in problem
    (folder / "nih/test_list.txt").write_text("\n".join([*boxed[:2], "00000000_000.png"]))
    listing = listed("chest_xray", folder, owner_splits=("nih",))
    assert not listing.problems and {row.split for row in listing.rows} == {"train", "val", "test"}
    with pytest.raises(ConfigError, match="owner of rsna publishes no split"):
        listed("chest_xray", folder, owner_splits=("rsna",))


@pytest.mark.parametrize("seed", range(12))
def test_patients_never_cross_splits_and_every_split_has_both_kinds(seed):
    rng = np.random.default_rng(seed)
    films = []
    for patient in range(rng.integers(30, 80)):
        for _ in range(rng.choice([1, 1, 2, 9])):
            label, marked = [("normal", False), ("abnormal", True), ("abnormal", False)][
                rng.choice(3, p=[0.5, 0.35, 0.15])
            ]
            row = Row(
                "list", len(films), "", label, f"{len(films)}.png", "boxes.csv" if marked else "", "nih", f"p{patient}"
            )
            films.append(Film(row))
    options = ChestXrayConfig(seed=seed, normals=float(rng.choice([0.5, 1.0, 2.0])))
    chosen, note = choose_films(films, "nih", options)
    split = split_films(chosen, {"train": 0.7, "val": 0.1, "test": 0.2}, seed)
    assert not check_splits(split, "nih", own=False)
    of_patient = defaultdict(set)
    for film in split:
        of_patient[film.row.group].add(film.row.split)
    assert max(map(len, of_patient.values())) == 1
    found = Counter((film.row.split, film.annotated) for film in split)
    assert len(found) == 6
    assert all(film.annotated or film.row.label == "normal" for film in split)
    marked = sum(film.annotated for film in split)
    assert marked == sum(film.annotated for film in films) and len(split) - marked <= round(options.normals * marked)
    # Whole patients: of who is used, all normal films are.
    used = {film.row.group for film in split if not film.annotated}
    normal = [film for film in films if film.row.label == "normal" and film.row.group in used]
    assert len(normal) == len(split) - marked and "nih: " in note


def test_too_few_patients_for_every_split_are_told():
    films = [Film(Row("l", i, "", "abnormal", f"{i}.png", "b.csv", "nih", f"p{i}")) for i in range(2)]
    films += [Film(Row("l", i, "", "normal", f"n{i}.png", "", "nih", f"q{i}")) for i in range(9)]
    told = check_splits(split_films(films, {"train": 0.7, "val": 0.1, "test": 0.2}, 0), "nih", own=False)
    assert len(told) == 1 and "nih: no annotated abnormal film is in" in told[0]


def test_reflacx(tmp_path):
    folder = fake_layouts.write_chest(tmp_path, ("reflacx",))
    listing = listed("chest_xray", folder)
    assert not listing.problems
    assert kinds(listing, "split") == {("train",): 8, ("val",): 4, ("test",): 4}
    row = row_of(listing, "film001.jpg")
    assert (row.label, row.domain, row.group, row.image) == (
        "abnormal",
        "mimic",
        "mimic1",
        "mimic/files/p11/p1/s1/film001.jpg",
    )
    # One degree is 10 pixels along x and 20 along y of a film of 120 x 100, which is 60 x 50 here.
    (saliency,) = marks_of(listing, row).values()
    assert saliency.argmax() % 60 in (19, 20) and saliency.argmax() // 60 in (24, 25)
    drop = lambda ratio: -2 * np.log(ratio)
    assert drop(saliency[24, 30] / saliency[24, 19]) == pytest.approx((10.5**2 - 0.5**2) / 5**2, rel=0.01)
    assert drop(saliency[34, 19] / saliency[24, 19]) == pytest.approx((9.5**2 - 0.5**2) / 10**2, rel=0.01)
    # Two readings of film 0; the third one's gaze was discarded, its ellipses were not.
    first = row_of(listing, "film000.jpg")
    assert first.label == "normal" and set(marks_of(listing, first)) == {"P100R0000", "P100R1000"}
    drawn = listed("chest_xray", folder, reflacx_maps="ellipses")
    (ellipse,) = marks_of(drawn, row_of(drawn, "film001.jpg")).values()
    assert ellipse.sum() == pytest.approx(np.pi * 10 * 5, rel=0.03) and ellipse[15, 20] == 1
    assert not row_of(drawn, "film000.jpg").map  # three looked, nobody drew
    by_patient = listed("chest_xray", folder, owner_splits=())
    assert kinds(by_patient, "split") != kinds(listing, "split") and len(by_patient.rows) == 16


def test_egd_is_split_as_in_its_owners_experiments(tmp_path):
    folder = fake_layouts.write_chest(tmp_path, ("egd",), films=40)
    listing = listed("chest_xray", folder)
    assert not listing.problems
    # random.seed(42); random.shuffle(the 20 patients in the sheet's order); 16, 2 and 2.
    split_of = {row.group: row.split for row in listing.rows}
    assert Counter(split_of.values()) == {"train": 16, "val": 2, "test": 2}
    assert {group for group, split in split_of.items() if split == "test"} == {"mimic6", "mimic0"}
    row = row_of(listing, "film003.jpg")
    assert row.image == "mimic/files/p10/p003/s1/film003.jpg" and row.map == "egd/fixations.csv"


def test_vindr(tmp_path):
    listing = listed("chest_xray", fake_layouts.write_chest(tmp_path, ("vindr",), films=60))
    assert not listing.problems
    (row,) = [row for row in listing.rows if row.image.endswith("vindr001.png")]
    assert row.label == "abnormal" and row.map == "vindr/annotations/annotations_train.csv" and row.domain == "vindr"
    maps = marks_of(listing, row, 48, 48)
    assert set(maps) == {"R1", "R2", "R3"} and maps["R1"].sum() == 20 * 12
    # One of three saw something: normal, and its map counts.
    (row,) = [row for row in listing.rows if row.image.endswith("vindr003.png")]
    assert row.label == "normal" and row.map
    kept = listed("chest_xray", tmp_path, owner_splits=("vindr",))
    assert kinds(kept, "split")["test",] == 4 and all("/test/" in r.image for r in kept.rows if r.split == "test")
    assert kinds(kept, "split")["val",] > 0


def test_siim(tmp_path):
    listing = listed("chest_xray", fake_layouts.write_chest(tmp_path, ("siim",), films=40))
    assert not listing.problems
    row = row_of(listing, "siim003.png")
    assert (
        row.label == "abnormal"
        and row.map == "siim/train-rle.csv"
        and row.image.startswith("siim/dicom-images-train/3/")
    )
    (saliency,) = marks_of(listing, row, 48, 48).values()
    np.testing.assert_array_equal(saliency, np.tile(np.repeat([0, 1, 0, 0], 12), (48, 1)))
    assert all((row.label == "abnormal") == bool(row.map) for row in listing.rows)


def test_chexlocalize(tmp_path):
    listing = listed("chest_xray", fake_layouts.write_chest(tmp_path, ("chexlocalize",), films=40))
    assert not listing.problems and len(listing.rows) == 40
    assert not any("lateral" in row.image for row in listing.rows)
    row = row_of(listing, "patient00003/study1/view1_frontal.jpg")
    assert (row.label, row.domain, row.group) == ("abnormal", "chexpert", "chexpertpatient00003")
    (saliency,) = marks_of(listing, row, 48, 48).values()
    assert saliency[:, :24].all() and not saliency[:, 24:].any()
    assert row_of(listing, "patient00002/study1/view1_frontal.jpg").label == "normal"


def test_lists_of_normal_and_abnormal(tmp_path):
    listing = listed("chest_xray", fake_layouts.write_chest(tmp_path, ("lists",)))
    assert not listing.problems
    assert kinds(listing, "split", "domain") == {("train", "lists"): 8, ("val", "lists"): 4, ("test", "shenzhen"): 4}
    assert row_of(listing, "cxr001.png").map == "maps/cxr001.png" and row_of(listing, "cxr001.png").label == "abnormal"
    assert sum(bool(row.map) for row in listing.rows) == 4


def test_a_collection_that_lies_in_two_places_or_not_at_all_is_told(tmp_path):
    fake_layouts.write_chest(tmp_path, ("rsna",))
    with pytest.raises(DataError, match=r"names what is not there: siim needs stage_2_train.csv"):
        listed("chest_xray", tmp_path, collections=("siim",))
    fake_layouts.write_chest(tmp_path / "copy", ("rsna",))
    with pytest.raises(DataError, match=r"rsna: its lists lie in .* keep one of them"):
        listed("chest_xray", tmp_path)


# What is told.


@pytest.mark.slow
def test_thousands_of_missing_films_are_told_in_a_few_lines_and_seconds(tmp_path):
    """As for the whole of the NIH's list without a film."""
    count = 4000
    head = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID"]
    names = [f"{i:08d}_000.png" for i in range(count)]
    write_csv(
        tmp_path / "Data_Entry_2017_v2020.csv",
        [head, *([name, "Mass" if i % 2 else "No Finding", "0", str(i)] for i, name in enumerate(names))],
    )
    boxes = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + "".join(f"{name},Mass,1,2,3,4\n" for name in names[1::2])
    (tmp_path / "BBox_List_2017.csv").write_text(boxes)
    start = time.monotonic()
    listing = listed("chest_xray", tmp_path)
    understood = describe_listing(listing)
    report = make_report(inspect(listing, progress=False, closely=True))
    assert time.monotonic() - start < 10
    assert f"{tmp_path / 'Data_Entry_2017_v2020.csv'}: 4000 images" in understood
    assert ["test", "abnormal", "400", "400", "400", "nih"] in [line.split() for line in understood.splitlines()]
    assert f"4000 of {count} images do not exist: row 2: images/00000000_000.png" in report.text
    where = report.text.index("the first was looked for at")
    for place in ("images/00000000_000.png", "**/00000000_000.png", "**/00000000_000.*"):
        assert place in report.text[where:]
    assert len(report.text.splitlines()) < 60 and len(report.problems) == 4000


def test_a_map_that_is_nowhere_is_told_with_the_places(tmp_path):
    write_csv(tmp_path / "csvs/original.csv", [["train", "Real", "/a/1.png"], ["train", "Synthetic", "/b/2.png"]])
    for name in ("a/1.png", "b/2.png"):
        write_picture(tmp_path / name, len(name))
    (problem,) = listed("cyborg_faces", tmp_path).problems
    assert "a/1.png would have one at heatmaps/a/1.*, heatmaps/**/1.* or heatmaps/**/1_{map," in problem


def test_nih_films_without_a_normal_one_tell_the_findings(tmp_path):
    folder = fake_layouts.write_chest(tmp_path / "owner", ("nih",))
    entries = folder / "nih/Data_Entry_2017_v2020.csv"
    entries.write_text(entries.read_text().replace("No Finding", "Healthy"))
    (told,) = [each for each in listed("chest_xray", folder).problems if "Finding Labels" in each]
    assert told.endswith(
        "no row's Finding Labels is 'No Finding', which makes a film normal; found Effusion|Mass, Healthy"
    )
