"""Tiny copies of the three tasks' layouts, as their owners give them out, with drawn images."""

import csv
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
        write_picture(folder / f"images{path}", number, bright=label == "Synthetic")
        if split == "train":
            write_map(folder / f"heatmaps/{number:06d}.png", number)
        return [split, label, path]

    pair = lambda split: [face(split, "Real", "0_real/frgc_subset"), face(split, "Synthetic", "1_fake/SREFI")]
    write_csv(folder / "train.csv", [*(row for _ in range(4) for row in pair("train")), *pair("test"), *pair("test")])
    write_csv(
        folder / "test_stylegan2.csv", [face("test", "Synthetic", "1_fake/stylegan2-0.5_aligned") for _ in "abcd"]
    )
    write_csv(folder / "test_ada.csv", [face("test", "Synthetic", "1_fake/StyleGAN2-ADA") for _ in "abcd"])
    write_csv(folder / "test_real.csv", [face("test", "Real", "0_real/FFHQ") for _ in "abcd"])
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


def write_chest(folder: Path, collections=("nih", "rsna", "mimic"), films=16) -> Path:
    for name in collections:
        {"nih": _write_nih, "rsna": _write_rsna, "mimic": _write_mimic}[name](folder / name, films)
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


def _write_mimic(folder: Path, films: int):
    sheet = [["dicom_id", "path", "patient_id", "Normal", "CHF", "pneumonia"]]
    gaze = [["SESSION_ID", "DICOM_ID", "FPOGX", "FPOGY", "FPOGD", "X_ORIGINAL", "Y_ORIGINAL"]]
    for i in range(films):
        name, path = f"film{i:03d}", f"files/p10/p{i:03d}/s1/film{i:03d}.dcm"
        write_picture(folder / path.replace(".dcm", ".jpg"), 7000 + i, (60, 50), "L", bright=i % 2 == 1)
        sheet.append([name, path, str(i // 2 * 2), str(1 - i % 2), str(i % 2), "0"])
        gaze += [["1", name, "0.5", "0.5", "0.4", "30", "20"], ["1", name, "0.1", "0.1", "0.2", "10", "40"]]
        gaze.append(["1", name, "0.0", "0.0", "9.0", "-1", "-1"])
    write_csv(folder / "master_sheet.csv", sheet)
    write_csv(folder / "fixations.csv", gaze)
