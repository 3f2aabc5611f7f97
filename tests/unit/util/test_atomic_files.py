"""Files are replaced whole; what is no file is written to."""

import os
import stat

import pytest

from mobilebert.util.files import write_atomically


def test_a_pipe_stays_a_pipe(tmp_path):
    """A rename by root over /dev/null would replace it for every program of the machine."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", b"content")


def test_a_file_is_replaced_whole_and_leaves_no_part(tmp_path):
    (tmp_path / "file").write_bytes(b"old and longer")
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
