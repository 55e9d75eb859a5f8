import errno
import fcntl
import os
import stat
import sys
from collections import namedtuple

import pytest

from glue_cli.foundation import output_files as output_module
from glue_cli.foundation.errors import ResourceError, UsageError
from glue_cli.foundation.output_files import check_output, check_room, reserve, write_once, writing, writing_alone

Usage = namedtuple("Usage", ["total", "used", "free"])


def test_no_room_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(output_module.shutil, "disk_usage", lambda folder: Usage(10_000, 9_000, 1_000))
    check_room(tmp_path / "not" / "there" / "yet.bin", 1_000)
    with pytest.raises(ResourceError) as caught:
        check_room(tmp_path / "yet.bin", 1_001)
    assert caught.value.message == f"'{tmp_path}/yet.bin' takes 1.0 kB, and 1.0 kB are free in '{tmp_path}'"


def test_a_file_appears_whole_in_folders_that_are_made(tmp_path):
    output = tmp_path / "new" / "deep" / "out.bin"
    with writing(output) as descriptor:
        reserve(descriptor, 5)
        os.pwrite(descriptor, b"whole", 0)
        assert not output.exists()
    assert output.read_bytes() == b"whole" and os.listdir(output.parent) == ["out.bin"]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the blocks that are taken")
def test_the_whole_size_is_claimed(tmp_path):
    with writing(tmp_path / "out.bin") as descriptor:
        reserve(descriptor, 1 << 20)
        assert os.fstat(descriptor).st_blocks * 512 >= os.fstat(descriptor).st_size == 1 << 20


@pytest.mark.parametrize("lack", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_claim_a_size_is_written_to_all_the_same(tmp_path, monkeypatch, lack):
    monkeypatch.setattr(output_module, "_fallocate", lambda descriptor, n_bytes: lack)
    with writing(tmp_path / "out.bin") as descriptor:
        reserve(descriptor, 100)
        assert os.fstat(descriptor).st_size == 0  # nothing was written to find it out
        os.pwrite(descriptor, b"whole", 0)
    assert (tmp_path / "out.bin").read_bytes() == b"whole"


@pytest.mark.parametrize("existing", [None, b"precious"])
@pytest.mark.parametrize("fault", [KeyError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_what_was_there(tmp_path, existing, fault):
    output = tmp_path / "out.bin"
    if existing:
        output.write_bytes(existing)
    with pytest.raises(fault), writing(output) as descriptor:
        os.pwrite(descriptor, b"half", 0)
        raise fault
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([existing] if existing else [])


def test_a_full_disk_is_a_matter_of_resources(tmp_path):
    output = tmp_path / "out.bin"
    with pytest.raises(ResourceError, match="out.bin' cannot be written: No space left") as caught:
        with writing(output):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "free some space" in caught.value.hint and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("smaller", "remedy"), [(None, "ulimit -f"), ("--max-shard-size", "--max-shard-size")])
def test_a_file_that_is_too_large_says_how_to_have_smaller_ones(tmp_path, smaller, remedy):
    with (
        pytest.raises(ResourceError, match="cannot be written: File too large") as caught,
        writing(tmp_path / "out.bin", smaller=smaller),
    ):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert remedy in caught.value.hint


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"), writing(tmp_path / "file" / "out.bin"):
        pass


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_are_those_of_the_umask(tmp_path, umask, mode):
    output = tmp_path / "out.bin"
    before = os.umask(umask)
    try:
        for _ in range(2):
            with writing(output):
                pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == mode


# ---- checks before the work


def test_a_free_place_is_fine(tmp_path, monkeypatch):
    (tmp_path / "in").touch()
    check_output(tmp_path / "out", [tmp_path / "in"], force=False)
    check_output(tmp_path / "not" / "yet" / "there", [tmp_path / "gone"], force=False)
    monkeypatch.chdir(tmp_path)
    check_output(type(tmp_path)("out"), [], force=False)


def test_an_existing_file_needs_force(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match="exists"):
        check_output(tmp_path / "out", [], force=False)
    check_output(tmp_path / "out", [], force=True)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("way", ["itself", "relative", "symlink", "hardlink", "input is a symlink", "dotted"])
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, force, way):
    path = tmp_path / "expert"
    path.touch()
    link = tmp_path / "link"
    output, given = path, path
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        output = type(path)("expert")
    elif way == "symlink":
        link.symlink_to(path)
        output = link
    elif way == "hardlink":
        link.hardlink_to(path)
        output = link
    elif way == "input is a symlink":
        link.symlink_to(path)
        given = link
    elif way == "dotted":
        (tmp_path / "sub").mkdir()
        output = tmp_path / "sub" / ".." / "expert"
    with pytest.raises(UsageError, match="is also an input"):
        check_output(output, [tmp_path / "other", given], force=force)


def test_a_folder_is_no_output(tmp_path):
    with pytest.raises(UsageError, match="is a folder"):
        check_output(tmp_path, [], force=True)


def test_a_place_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="nothing can be written in '.*file'"):
        check_output(tmp_path / "file" / "deep" / "out", [], force=False)


def test_a_place_without_the_right_to_write(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ResourceError, match="nothing can be written"):
        check_output(tmp_path / "locked" / "out", [], force=False)


def test_folders_made_for_a_failed_output_are_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "new" / "deep" / "out.safetensors"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_stay(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "old" / "out.safetensors"):
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_an_output_that_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no regular file"):
        check_output(tmp_path / "pipe", [], force=True)


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    output = tmp_path / ("x" * 255)
    with writing(output) as descriptor:
        os.write(descriptor, b"whole")
    assert output.read_bytes() == b"whole"


def test_the_first_that_writes_once_has_written(tmp_path):
    path = tmp_path / "new" / "choice.json"
    assert write_once(path, b"first") and not write_once(path, b"second")
    assert path.read_bytes() == b"first" and os.listdir(path.parent) == ["choice.json"]


def test_what_cannot_be_written_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_once(tmp_path / "file" / "choice.json", b"")

    def refuse(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as a file system without links does
    assert write_once(tmp_path / "choice.json", b"mine") and not write_once(tmp_path / "choice.json", b"yours")
    assert (tmp_path / "choice.json").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["choice.json", "file"]


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_runs_with_one_output_the_second_finds_it_taken(tmp_path, monkeypatch, has_links):
    if not has_links:

        def refuse(source, target):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(os, "link", refuse)
    output = tmp_path / "out.bin"
    with pytest.raises(UsageError, match="out.bin' exists|another run has written the output") as caught:
        with writing(output, replace=False) as late:
            os.pwrite(late, b"late", 0)
            with writing(output, replace=False) as early:
                os.pwrite(early, b"early", 0)
    assert "--force" in caught.value.hint
    assert output.read_bytes() == b"early" and os.listdir(tmp_path) == ["out.bin"]
    with writing(output) as forced:
        os.pwrite(forced, b"forced", 0)
    assert output.read_bytes() == b"forced" and os.stat(output).st_nlink == 1


def test_two_runs_do_not_write_into_one_folder_at_once(tmp_path):
    folder = tmp_path / "new" / "model"
    with writing_alone(folder, replace=False):
        for replace in (False, True):
            with pytest.raises(UsageError, match="another run is writing into '.*model'"):
                with writing_alone(folder, replace=replace):
                    raise AssertionError("not reached")
        with writing(folder / "model.safetensors", replace=False) as descriptor:
            os.write(descriptor, b"first")
    with pytest.raises(UsageError, match="another run has written the output"):
        with writing_alone(folder, replace=False):
            raise AssertionError("not reached")
    with writing_alone(folder):
        pass
    assert os.listdir(folder) == ["model.safetensors"]


def test_a_folder_that_stays_empty_goes(tmp_path):
    with pytest.raises(ZeroDivisionError), writing_alone(tmp_path / "new" / "model"):
        raise ZeroDivisionError
    assert not os.listdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"), writing_alone(tmp_path / "file" / "model"):
        raise AssertionError("not reached")


def test_a_folder_with_what_a_killed_run_left_is_not_taken(tmp_path):
    (tmp_path / ".glue-0123456789abcdef.tmp").touch()
    with writing_alone(tmp_path, replace=False), writing(tmp_path / "out", replace=False):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_where_there_are_no_locks_the_files_are_looked_at(tmp_path, monkeypatch):
    def refuse(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with writing_alone(tmp_path, replace=False), writing(tmp_path / "out", replace=False):
        pass
    with pytest.raises(UsageError, match="another run has written"), writing_alone(tmp_path, replace=False):
        raise AssertionError("not reached")


def test_a_link_to_nothing_is_refused_before_the_work(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone/file")
    with pytest.raises(UsageError, match="is a link to nothing"):
        check_output(tmp_path / "out", [], force=True)
