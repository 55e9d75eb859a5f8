import os
import socket

import pytest

from glue_cli.foundation.regular_files import find_irregular, read_bytes, read_text, regular


@pytest.fixture
def odd(tmp_path):
    """A FIFO without a writer, a socket, and a device, by name."""
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        yield [tmp_path / "fifo", tmp_path / "socket", type(tmp_path)("/dev/zero")]


def test_what_is_no_regular_file_is_refused_and_not_waited_for(odd):
    open_before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for path in odd:
        for read in (regular, read_bytes, read_text):
            with pytest.raises(OSError):
                read(path)
    assert not open_before or len(os.listdir("/proc/self/fd")) == open_before


def test_a_folder_and_nothing_keep_their_own_errors(tmp_path):
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "absent")


def test_files_and_links_to_them_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"z\xc3\xbc\n")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"z\xc3\xbc\n" and read_text(tmp_path / "file") == "zü\n"


def test_the_first_odd_one_is_found(odd, tmp_path):
    (tmp_path / "file").touch()
    assert find_irregular([tmp_path / "absent", tmp_path, tmp_path / "file", odd[0], odd[2]]) == odd[0]
    assert find_irregular([tmp_path / "file"]) is None
