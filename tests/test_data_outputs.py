"""What commands write: by one at a time, whole or not at all, and nothing of others is touched."""

import os
import resource
import threading

import pytest

from tfcam_jax.data.outputs import claimed, only_of, resolve_file, write_folder
from tfcam_jax.errors import OutputError, UserError

OURS = "tfcam_jax: host h, pid 7\n"


def listing(folder):
    """Every file below a folder with its content, links and folders with what they are."""
    found = {}
    for path in folder.rglob("*"):
        content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        found[str(path.relative_to(folder))] = content
    return found


@pytest.fixture
def out(tmp_path):
    return tmp_path / "above" / "out"


def fill(out, text="new", **options):
    with write_folder(out, **options) as partial:
        (partial / "a.txt").write_text(text)
        (partial / "b.txt").write_text(text)


def test_a_folder_appears_whole_and_leaves_nothing_beside_it(tmp_path, out):
    with write_folder(out) as partial:
        (partial / "a.txt").write_text("a")
        assert not out.exists()
    assert listing(tmp_path) == {"above": None, "above/out": None, "above/out/a.txt": "a"}


@pytest.mark.parametrize("keep", [False, True])
def test_work_that_fails_leaves_nothing_but_what_it_is_to_keep(tmp_path, out, keep):
    with pytest.raises(KeyboardInterrupt), write_folder(out, keep=keep) as partial:
        (partial / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert (out.parent / ".out.partial/a.txt").exists() == keep and (tmp_path / "above").exists() == keep
    with write_folder(out, keep=keep) as partial:
        assert (partial / "a.txt").exists() == keep
        (partial / "b.txt").write_text("b")
    assert out.parent.exists() and [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "none", keep=keep):
        raise ZeroDivisionError
    assert not any("none" in name for name in listing(tmp_path))


def test_a_second_one_is_refused_at_once_with_the_firsts_name(out):
    for first in (write_folder, claimed):
        out.parent.mkdir(exist_ok=True)
        with first(out):
            for second in (write_folder, claimed):
                told = rf"another process is writing .*out \(host .*, pid {os.getpid()}\)"
                with pytest.raises(OutputError, match=told), second(out):
                    pass
        assert not list(out.parent.glob(".*"))
        if out.exists():
            out.rmdir()


def test_many_at_once_never_mix(tmp_path):
    """Each writes two files that agree; whoever is refused is told so."""
    out, start, refused = tmp_path / "out", threading.Barrier(6), []

    def write(name):
        for turn in range(15):
            start.wait()
            try:
                fill(out, f"{name} {turn}", check_replaced=only_of("a test", "a.txt", "b.txt"))
            except OutputError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=write, args=[name]) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (out / "a.txt").read_text() == (out / "b.txt").read_text()
    assert len(refused) < 6 * 15 and {each for each in refused if "another process is writing" not in each} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("left", "shown"),
    [
        ({".out.partial/old.txt": "x"}, "new"),  # killed while it filled
        ({}, "new"),  # before that
        ({"out/a.txt": "old", ".out.partial/a.txt": "half"}, "new"),
        ({".out.old/a.txt": "old", ".out.partial/a.txt": "whole"}, "new"),  # between the two renames
        ({".out.old/a.txt": "old", "out/a.txt": "whole"}, "new"),  # after both
    ],
)
def test_what_a_kill_left_is_taken_over(tmp_path, left, shown):
    for name, text in {".out.partial.lock": OURS, **left}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    fill(tmp_path / "out", shown, check_replaced=only_of("a test", "a.txt", "b.txt"))
    assert listing(tmp_path) == {"out": None, "out/a.txt": shown, "out/b.txt": shown}


def test_a_replacement_that_was_cut_off_is_taken_back(tmp_path):
    for name, text in {".out.partial.lock": OURS, ".out.old/a.txt": "old", ".out.partial/a.txt": "whole"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match="exists already"):
        fill(tmp_path / "out")
    assert (tmp_path / "out/a.txt").read_text() == "old"


@pytest.mark.parametrize("name", [".out.partial", ".out.old", ".out.partial.lock"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_not_ours_is_named_and_left(tmp_path, name, kind):
    place, precious = tmp_path / name, tmp_path / "precious"
    precious.write_text("of somebody")
    if kind == "file":
        place.write_text("of somebody")
    elif kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("of somebody")
    else:
        place.symlink_to("precious")
    before = listing(tmp_path)
    for call in (fill, lambda out: claimed(out).__enter__()):
        with pytest.raises(OutputError, match=rf"{name} is "):
            call(tmp_path / "out")
        assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("file", "is a file; give a folder"),
        ("to_file", "is a file; give a folder"),
        ("dangling", "is a link to nowhere, which is not there"),
        ("file/below", "can't be written"),
        ("x" * 300, "a name that is too long for a file"),
        ("x" * 250, "can't be written: File name too long"),
        ("held", "holds notes.txt, which is not of a test"),
        ("foreign", "holds a.txt, which is not of a test"),
        ("", "the folder that you are in"),
    ],
)
def test_places_that_can_not_be_written_are_told_and_left(tmp_path, monkeypatch, name, told):
    (tmp_path / "file").write_text("of somebody")
    (tmp_path / "to_file").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    for other in ("held/record.txt", "held/notes.txt", "foreign/a.txt"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("of somebody")
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    with pytest.raises(UserError, match=told):
        fill(tmp_path / name, check_replaced=only_of("a test", "record.txt", "a.txt"))
    assert listing(tmp_path) == before


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link")
    fill(f"{tmp_path}/link/./", check_replaced=only_of("a test", "a.txt", "b.txt"))
    assert listing(tmp_path) == {"link": "real", "real": None, "real/a.txt": "new", "real/b.txt": "new"}


@pytest.mark.parametrize("room", [100, 10])  # of which the second one does not do for the lock
def test_a_full_disk_is_told_and_the_old_folder_stays(tmp_path, room):
    fill(tmp_path / "out", "old")
    before, limits = listing(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OutputError, match=r"out can't be written: File too large\. Choose another place"):
            fill(tmp_path / "out", "x" * 1000, check_replaced=only_of("a test", "a.txt", "b.txt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before


def test_files_to_write(tmp_path):
    (tmp_path / "real").write_text("")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert resolve_file(tmp_path / "link") == tmp_path / "real"
    assert resolve_file(tmp_path / "new/model") == tmp_path / "new/model"
    for wrong in (tmp_path, tmp_path / "dangling", tmp_path / "real/model", "/dev/null", "", "gs://bucket/model"):
        with pytest.raises(UserError):
            resolve_file(wrong)


def test_what_came_meanwhile_is_not_replaced(tmp_path, out):
    """Somebody else's files, which were not there when the work began."""
    with pytest.raises(OutputError, match=r"config\.json"), write_folder(out, only_of("a test", "a.txt")) as partial:
        (partial / "a.txt").write_text("new")
        out.mkdir()
        (out / "config.json").write_text("theirs")
    assert listing(tmp_path) == {"above": None, "above/out": None, "above/out/config.json": "theirs"}
