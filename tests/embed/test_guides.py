"""The guides of docs/embed, followed to the letter where this platform can (C++: tests/embed/test_cpp.py)."""

import pytest

from tests.embed.conftest import follow


@pytest.mark.slow
def test_the_python_guide(tmp_path, scenes):
    out = follow("python.md", tmp_path, MODEL="demo", **{"image.jpg": scenes[0].files[0]})
    assert "class " in out
    assert "2 passed" in out


def test_a_guide_that_fails_fails_its_test(tmp_path):
    with pytest.raises(AssertionError):
        follow("python.md", tmp_path, {"PATH": "/usr/bin:/bin"}, MODEL="demo")
