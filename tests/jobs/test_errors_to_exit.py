"""What a disk refuses, in one line that says how to mend it."""

from __future__ import annotations

import errno
import os

import pytest
from depthscope.jobs.errors_to_exit import exit_codes


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "choose another --out"),
        (errno.EACCES, "ask its owner for the right"),
    ],
)
def test_a_disk_that_refuses(number: int, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    with exit_codes(codes.append):
        raise OSError(number, os.strerror(number), "/some/file")
    assert codes == [1]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"depthscope: /some/file: {os.strerror(number)}: ")
    assert advice in line


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(IsADirectoryError), exit_codes():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", "/some/file")
