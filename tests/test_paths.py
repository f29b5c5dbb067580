import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clearclip.errors import UserError
from clearclip.paths import atomic_write, cache_dir, check_writable, data_root, safe_component


def write(path, text="new"):
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# names


@pytest.mark.parametrize("text", ["voc20", "ViT-B-16", "coco_stuff164k", "NACLIP+PAMR", "a=1,b=0.5", "猫", "x" * 150])
def test_a_plain_name_is_kept(text):
    assert safe_component(text) == text


def test_a_colon_becomes_a_hyphen_and_nothing_more():
    assert safe_component("ClearCLIP:attention=kk,residual=1") == "ClearCLIP-attention=kk,residual=1"


HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "a\0b",
    "a\nb",
    "~",
    ".hidden",
    "-rf",
    "\ud800",
]


def test_hostile_names_are_safe_and_differ():
    names = [
        safe_component(text) for text in [*HOSTILE, "x", "a-b", "etc-passwd", "hidden", "rf", "a" * 151, "a" * 152]
    ]
    assert len(set(names)) == len(names)


def test_the_example_of_the_docstring():
    assert f"`{safe_component('../x')}`" in safe_component.__doc__


@given(st.text(st.characters(codec=None)) | st.sampled_from(HOSTILE))
def test_any_text_is_one_component_below_its_folder(text):
    name = safe_component(text)
    assert name == Path(name).name
    assert name[0] not in ".-"
    assert not name.endswith(".")
    assert 0 < len(os.fsencode(name)) < 200
    assert os.path.dirname(os.path.normpath(f"/work/{name}")) == "/work"


def test_cache_and_data_follow_the_environment(monkeypatch):
    monkeypatch.setenv("CLEARCLIP_CACHE", "~/mine")
    monkeypatch.setenv("CLEARCLIP_DATA", "/data sets")
    assert cache_dir() == Path.home() / "mine"
    assert data_root() == Path("/data sets")
    monkeypatch.delenv("CLEARCLIP_CACHE")
    monkeypatch.setenv("CLEARCLIP_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/clearclip")
    assert data_root() == Path("data")


# check_writable


def test_places_that_can_be_written(tmp_path):
    (tmp_path / "old").touch()
    (tmp_path / "link").symlink_to("new/target")
    for name in ("old", "new/folder/file", "link", "x" * 255):
        check_writable(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/x", "file is no folder to write to"),
        ("file/new/x", "file is no folder to write to"),
        ("folder", "it exists and is not a file"),
        ("pipe", "it exists and is not a file"),
        ("read-only", "is read-only"),
        ("link", "link is read-only"),
        ("x" * 256, "more than 255 bytes"),
        ("猫" * 86, "more than 255 bytes"),
        ("a\0b", "holds a NUL"),
    ],
)
def test_places_that_cannot_be_written_are_user_errors(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "read-only").touch(0o444)
    (tmp_path / "link").symlink_to("read-only")
    with pytest.raises(UserError, match=reason):
        check_writable(tmp_path / name)


# atomic_write


def test_a_new_file_has_the_usual_mode_and_folders_are_made(tmp_path):
    old = os.umask(0o027)
    try:
        write(tmp_path / "a" / "b" / "file.txt")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "b" / "file.txt").read_text() == "new"
    assert mode(tmp_path / "a" / "b" / "file.txt") == 0o640
    assert len(list((tmp_path / "a" / "b").iterdir())) == 1


@pytest.mark.parametrize("bits", [0o600, 0o664, 0o755, 0o2664])
def test_a_replaced_file_hands_down_its_mode(tmp_path, bits):
    path = tmp_path / "file"
    path.touch()
    path.chmod(bits)
    write(path)
    assert path.read_text() == "new"
    assert mode(path) == bits


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_replaced_file_hands_down_its_owner(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.chown(path, 1234, 4321)
    path.chmod(0o664)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid, mode(path)) == (1234, 4321, 0o664)


def test_an_owner_that_cannot_be_kept_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)

    def refuse(*args):
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)
    write(path)
    assert path.read_text() == "new"


def test_links_stay_and_their_targets_are_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "target").write_text("old")
    (tmp_path / "first").symlink_to("store/target")
    (tmp_path / "second").symlink_to("first")
    write(tmp_path / "second")
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "store" / "target").read_text() == "new"
    (tmp_path / "dangling").symlink_to("later/target")
    write(tmp_path / "dangling")
    assert (tmp_path / "later" / "target").read_text() == "new"


def test_a_read_only_file_is_not_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="read-only"):
        write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def fill_the_disk(path):
    with atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="No space"):
        fill_the_disk(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_as_long_as_can_be(tmp_path):
    write(tmp_path / ("x" * 251 + ".txt"))
    write(tmp_path / ("猫" * 85))
    assert len(list(tmp_path.iterdir())) == 2


def test_sigterm_leaves_nothing(tmp_path):
    program = f"""
        import time
        from clearclip.paths import atomic_write
        with atomic_write({str(tmp_path / "file")!r}) as temporary:
            temporary.write_text("half")
            print("ready", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert list(tmp_path.iterdir()) == []


def test_sigterm_stays_with_a_program_that_handles_it(tmp_path):
    seen = []
    old = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with atomic_write(tmp_path / "file") as temporary:
            os.kill(os.getpid(), signal.SIGTERM)
            temporary.write_text("new")
    finally:
        signal.signal(signal.SIGTERM, old)
    assert seen == [signal.SIGTERM]
    assert (tmp_path / "file").read_text() == "new"


def test_the_handler_is_removed(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    write(tmp_path / "file")
    assert signal.getsignal(signal.SIGTERM) is before
