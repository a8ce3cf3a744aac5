"""Tiny copies of the three tasks' layouts, as their owners give them out, with drawn images."""

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 48


def write_picture(path: Path, seed: int, size=(SIZE, SIZE), mode="RGB", bright=False):
    """Noise that nothing else resembles, brighter for the second class, so that it can be learnt."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 128, (6, 6, 3), np.uint8) + (100 if bright else 0)
    picture = Image.fromarray(coarse.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC).convert(mode)
    picture.save(path)


def write_map(path: Path, seed: int, size=(SIZE, SIZE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    top, left = np.random.default_rng(seed).integers(0, size[1] // 2, 2)
    saliency = np.zeros(size[::-1], np.uint8)
    saliency[top : top + 12, left : left + 12] = 200
    Image.fromarray(saliency).save(path)


def write_csv(path: Path, rows, encoding="utf-8", newline="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, lineterminator=newline).writerows(rows)


def write_cyborg_faces(folder: Path) -> Path:
    """8 training faces with maps, 4 for validation, 4 per test list; paths begin with a slash, as published."""
    number = 0

    def face(split, label, source):
        nonlocal number
        number += 1
        path = f"/{source}/{number // 3:06d}/{number:06d}.png"
        write_picture(folder / path[1:], number, bright=label == "Synthetic")
        if split == "train" or number == 9:  # Maps of other images, as of this validating one, are not for training.
            write_map(folder / f"heatmaps/{number:06d}.png", number)
        return [split, label, path]

    pair = lambda split: [face(split, "Real", "0_real/frgc_subset"), face(split, "Synthetic", "1_fake/SREFI")]
    original = [*(row for _ in range(4) for row in pair("train")), *pair("test"), *pair("test")]
    write_csv(folder / "csvs/original.csv", original)
    tests = folder / "csvs/gan_test_sets"
    write_csv(tests / "stylegan2.csv", [face("test", "Synthetic", "1_fake/stylegan2-0.5_aligned") for _ in "abcd"])
    write_csv(tests / "ada.csv", [face("test", "Synthetic", "1_fake/StyleGAN2-ADA") for _ in "abcd"])
    write_csv(tests / "ffhq.csv", [face("test", "Real", "0_real/ffhq_aligned") for _ in "abcd"])
    return folder


def write_iris_lists(folder: Path) -> Path:
    """Training with three attack types, two annotators for two images, and a test list without splits."""
    number = 0

    def eye(kind):
        nonlocal number
        number += 1
        path = f"{kind}/{number:03d}_L.png"
        write_picture(folder / "images" / path, number, (64, SIZE), "L", bright=kind != "live")
        return path

    rows = []
    for split in ("train", "train", "val"):
        for kind in ("live", "Textured Contacts", "printout", "live", "artificial"):
            rows.append([split, kind, eye(kind), f"person{number}"])
    for row in rows[:2]:
        for annotator in ("anna", "ben"):
            stem = row[2].rsplit(".", 1)[0].rsplit("/", 1)[1]
            write_map(folder / f"maps/{annotator}/{stem}.png", len(annotator), (64, SIZE))
    write_csv(folder / "train_val.csv", rows, encoding="utf-8-sig", newline="\r\n")
    write_csv(folder / "livdet2020.csv", [[eye(kind), kind] for kind in ("live", "cadaver", "display", "live")])
    return folder


def write_iris_folders(folder: Path, count=12) -> Path:
    for kind in ("live", "printout", "textured_contacts"):
        for i in range(count):
            write_picture(folder / f"images/{kind}/{i:03d}.png", hash_seed(kind, i), mode="L", bright=kind != "live")
    return folder


def hash_seed(kind, i):
    return 1000 * len(kind) + i


def write_chest(folder: Path, collections=("nih", "rsna", "egd"), films=16) -> Path:
    for name in collections:
        CHEST[name](folder / name, films)
    return folder


def _write_nih(folder: Path, films: int):
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    entries, boxes, test = [], [], []
    for i in range(films):
        name = f"{i:08d}_000.png"
        abnormal = i % 2 == 1
        write_picture(folder / f"images_{i % 2 + 1:03d}/images/{name}", 5000 + i, mode="L", bright=abnormal)
        finding = "Effusion|Mass" if abnormal else "No Finding"
        entries.append([name, finding, "0", str(i), "58", "M", "PA", "2682", "2749", "0.143", "0.143", ""])
        if abnormal:
            boxes.append([name, "Mass", "4.5", "10.0", "20.0", "12.0", "", "", ""])
        if i >= films - 4:
            test.append(name)
    tail = "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    write_csv(folder / "entries", entries)
    (folder / "Data_Entry_2017_v2020.csv").write_text(
        ",".join(header) + "," + tail + "\n" + (folder / "entries").read_text()
    )
    (folder / "entries").unlink()
    write_csv(folder / "boxes", boxes)
    (folder / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n" + (folder / "boxes").read_text()
    )
    (folder / "boxes").unlink()
    (folder / "test_list.txt").write_text("\n".join(test) + "\n")


def _write_rsna(folder: Path, films: int):
    labels, classes = [["patientId", "x", "y", "width", "height", "Target"]], [["patientId", "class"]]
    for i in range(films):
        name = f"rsna-{i:04d}"
        kind = ("Normal", "Lung Opacity", "No Lung Opacity / Not Normal")[i % 3]
        write_picture(folder / f"stage_2_train_images/{name}.png", 6000 + i, mode="L", bright=i % 3 > 0)
        if i % 3 == 1:
            for x in ("4.0", "30.0"):
                labels.append([name, x, "10.0", "10.0", "20.0", "1"])
                classes.append([name, kind])
        else:
            labels.append([name, "", "", "", "", "0"])
            classes.append([name, kind])
    write_csv(folder / "stage_2_train_labels.csv", labels)
    write_csv(folder / "stage_2_detailed_class_info.csv", classes)


def _write_egd(folder: Path, films: int):
    """The films are another download, as JPEG, in a folder of its own."""
    sheet = [["dicom_id", "path", "patient_id", "Normal", "CHF", "pneumonia"]]
    gaze = [["SESSION_ID", "DICOM_ID", "FPOGX", "FPOGY", "FPOGD", "X_ORIGINAL", "Y_ORIGINAL"]]
    for i in range(films):
        name, path = f"film{i:03d}", f"files/p10/p{i:03d}/s1/film{i:03d}.dcm"
        write_picture(folder.parent / f"mimic/{path.replace('.dcm', '.jpg')}", 7000 + i, (60, 50), "L", i % 2 == 1)
        sheet.append([name, path, str(i // 2 * 2), str(1 - i % 2), str(i % 2), "0"])
        gaze += [["1", name, "0.5", "0.5", "0.4", "30", "20"], ["1", name, "0.1", "0.1", "0.2", "10", "40"]]
        gaze.append(["1", name, "0.0", "0.0", "0.02", "-1", "-1"])
    write_csv(folder / "master_sheet.csv", sheet)
    write_csv(folder / "fixations.csv", gaze)


# Columns of findings, between `image_size_y` and the rest; two of the owner's.
_FINDINGS = ["Consolidation", "Pneumothorax"]


def _write_reflacx(folder: Path, films: int):
    """Film 0 has three readings, of which the last one's gaze was discarded; the others have one."""
    head = ["id", "split", "eye_tracking_data_discarded", "image", "dicom_id", "subject_id"]
    head += ["image_size_x", "image_size_y", *_FINDINGS, "Support devices", "Other"]
    phases = {1: [head], 3: [head]}
    for i in range(films):
        film = f"film{i:03d}"
        image = f"physionet.org/files/mimic-cxr/2.0.0/files/p11/p{i}/s1/{film}.dcm"
        write_picture(folder.parent / f"mimic/files/p11/p{i}/s1/{film}.jpg", 8000 + i, (60, 50), "L", i % 2 == 1)
        for reader in range(3 if i == 0 else 1):
            name, discarded = f"P{1 if i == 0 else 3}00R{reader}{i:03d}", i == 0 and reader == 2
            split = "train" if i < films - 8 else "validate" if i < films - 4 else "test"
            certainty = ["5" if i % 2 else "2", "0", "True", ""]
            phases[1 if i == 0 else 3].append(
                [name, split, str(discarded), image, film, str(i), "120", "100", *certainty]
            )
            ellipses = [["xmin", "ymin", "xmax", "ymax", "certainty", *_FINDINGS]]
            ellipses += [["20", "20", "60", "40", "5", "True", "False"]] if i % 2 else []
            write_csv(folder / f"main_data/{name}/anomaly_location_ellipses.csv", ellipses)
            if not discarded:
                _write_fixations(folder / f"main_data/{name}/fixations.csv", x=40 + 20 * reader)
    for phase, rows in phases.items():
        write_csv(folder / f"main_data/metadata_phase_{phase}.csv", rows)


def _write_fixations(path: Path, x: int):
    """One fixation of half a second, where ten pixels along x and twenty along y are a degree."""
    head = ["timestamp_start_fixation", "timestamp_end_fixation", "x_position", "y_position", "pupil_area_normalized"]
    head += ["angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree"]
    write_csv(path, [head, ["1.0", "1.5", str(x), "50", "1.1", "10", "20"]])


def _write_vindr(folder: Path, films: int):
    """Three radiologists; of every fourth film with findings two of them see nothing, and it is normal."""
    head = ["image_id", "rad_id", "class_name", "x_min", "y_min", "x_max", "y_max"]
    tables = {"train": [head], "test": [head]}
    for i in range(films):
        split = "test" if i >= films - 4 else "train"
        film = f"vindr{i:03d}"
        write_picture(folder / f"{split}/{film}.png", 9000 + i, mode="L", bright=i % 2 == 1)
        seen = 0 if i % 2 == 0 else 1 if i % 4 == 3 and split == "train" else 3
        for reader in range(3):
            found = ["Nodule/Mass", "10", "12", "30", "24"] if reader < seen else ["No finding", "", "", "", ""]
            tables[split].append([film, f"R{reader + 1}", *found])
    for split, rows in tables.items():
        write_csv(folder / f"annotations/annotations_{split}.csv", rows)


def _write_siim(folder: Path, films: int):
    """Every other film has pneumothorax: columns 256 to 511 of 1024 as one run, given in two parts."""
    rows = [["ImageId", " EncodedPixels"]]
    for i in range(films):
        write_picture(folder / f"dicom-images-train/{i}/siim{i:03d}.png", 9500 + i, mode="L", bright=i % 2 == 1)
        half = 128 * 1024
        rows += [[f"siim{i:03d}", f" {256 * 1024} {half} 0 {half}"]] if i % 2 else [[f"siim{i:03d}", " -1"]]
    write_csv(folder / "train-rle.csv", rows)


def _write_chexlocalize(folder: Path, films: int):
    """Two views of each patient; the left half of the frontal film of every other one is consolidated."""
    findings = ["No Finding", "Cardiomegaly", "Consolidation", "Support Devices"]
    labels = [["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *findings]]
    masks = {}
    for i in range(films):
        for view in ("view1_frontal", "view2_lateral"):
            path = f"CheXpert-v1.0/valid/patient{i:05d}/study1/{view}.jpg"
            write_picture(
                folder / path.replace("-v1.0", ""), 9700 + i + 200 * (view[4] == "2"), mode="L", bright=i % 2 == 1
            )
            labels.append(
                [
                    path,
                    "Male",
                    "70",
                    view[6:].title(),
                    "AP",
                    *(["0.0", "0.0", "1.0", "1.0"] if i % 2 else ["1.0", "0.0", "0.0", "1.0"]),
                ]
            )
        if i % 2:
            half = {"size": [SIZE, SIZE], "counts": [0, SIZE * SIZE // 2, SIZE * SIZE // 2]}
            empty = {"size": [SIZE, SIZE], "counts": [SIZE * SIZE]}
            masks[f"patient{i:05d}_study1_view1_frontal"] = {"Consolidation": half, "Cardiomegaly": empty}
    write_csv(folder / "CheXpert/val_labels.csv", labels)
    (folder / "CheXlocalize").mkdir()
    (folder / "CheXlocalize/gt_segmentations_val.json").write_text(json.dumps(masks))


def _write_lists(folder: Path, films: int):
    """Training and its test in one list, another hospital in a second one, maps of training's abnormal films."""
    rows = {"chest_train": [], "shenzhen": []}
    for i in range(films):
        name, label = f"cxr{i:03d}.png", "abnormal" if i % 2 else "normal"
        write_picture(folder / f"pictures/{name}", 9900 + i, mode="L", bright=i % 2 == 1)
        listed = "shenzhen" if i >= films - 4 else "chest_train"
        split = "train" if i < films - 8 else "test"
        rows[listed].append([split, label, f"/{name}"])
        if split == "train" and i % 2:
            write_map(folder.parent / f"maps/{name}", i)
    for name, own in rows.items():
        write_csv(folder / f"{name}.csv", own)


CHEST = {
    "nih": _write_nih,
    "rsna": _write_rsna,
    "egd": _write_egd,
    "reflacx": _write_reflacx,
    "vindr": _write_vindr,
    "siim": _write_siim,
    "chexlocalize": _write_chexlocalize,
    "lists": _write_lists,
}
