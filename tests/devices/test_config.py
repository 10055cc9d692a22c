"""devices.toml: what is taken, what is refused and with which words."""

import pytest

from edgevit.devices import config
from edgevit.errors import MeasureError

BOARD = {"transport": "ssh", "host": "me@board", "python": "/usr/bin/python3", "work": ".cache/edgevit"}


def test_a_device_added_is_found_again(tmp_path):
    path = tmp_path / "new" / "devices.toml"
    config.add("one", BOARD, path)
    config.add("two", {**BOARD, "host": "two", "connect_timeout_s": 3, "work": 'a "b" \\ ä'}, path)
    found = config.find("two", path)
    assert (found.name, found.kind) == ("two", "ssh")
    assert (found.transport.host, found.transport.connect_timeout_s, found.transport.work) == ("two", 3, 'a "b" \\ ä')
    assert config.find("one", path).transport.host == "me@board"
    assert [p.name for p in path.parent.iterdir()] == ["devices.toml"]


def test_the_users_own_lines_stay(tmp_path):
    path = tmp_path / "devices.toml"
    path.write_text('# mine\n[a]\ntransport = "local" # yes')
    config.add("b", BOARD, path)
    assert path.read_text().startswith('# mine\n[a]\ntransport = "local" # yes\n\n[b]\n')
    assert list(config.read(path)) == ["a", "b"]


def test_the_file_is_in_the_configuration_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config.config_path() == tmp_path / "edgevit" / "devices.toml"
    assert config.read() == {}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"no device 'board' in .*; `edgevit devices add board` makes one"),
        ('[boart]\ntransport = "ssh"', r"did you mean boart\?"),
        ("[board", "correct it"),
        ("board = 3", "outside a table"),
        ("[board]", "transport None; give one of local, ssh"),
        ('[board]\ntransport = "shh"', "give one of local, ssh"),
        ('[board]\ntransport = "ssh"', "lacks host, python, work; transport ssh needs them"),
        ('[board]\ntransport = "ssh"\nhots = "x"', r"key 'hots' \(did you mean host\?\); ssh has host, python"),
        ('[board]\ntransport = "ssh"\nhost = ["x"]', "give a text or a whole number"),
        ('[board]\ntransport = "ssh"\nhost = "-x"\npython = "p"\nwork = "w"', "device 'board': host='-x' is no host"),
    ],
)
def test_refusals(tmp_path, text, match):
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(MeasureError, match=match):
        config.find("board", path)


@pytest.mark.parametrize(
    ("name", "table", "match"),
    [
        ("local", BOARD, "cannot be a device's name"),
        ("a b", BOARD, "cannot be a device's name"),
        ("old", BOARD, "already"),
        ("new", {"transport": "ssh"}, "these keys: device 'new' lacks"),
        ("new", {**BOARD, "work": "a\nb"}, "control character"),
    ],
)
def test_what_cannot_be_added(tmp_path, name, table, match):
    path = tmp_path / "devices.toml"
    config.add("old", BOARD, path)
    before = path.read_text()
    with pytest.raises(MeasureError, match=match):
        config.add(name, table, path)
    assert path.read_text() == before
