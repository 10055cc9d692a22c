"""The ways to a device, on the real programs: a shell, and OpenSSH against an sshd of the test's own."""

import os
import sys
import time

import pytest

from edgevit.devices import config
from edgevit.devices.ssh import Ssh
from edgevit.devices.transport import TRANSPORTS
from edgevit.errors import MeasureError
from edgevit.names import named


@pytest.fixture(params=["local", "ssh"])
def transport(request, tmp_path):
    table = (
        request.getfixturevalue("board").table
        if request.param == "ssh"
        else {"transport": "local", "python": sys.executable, "work": str(tmp_path)}
    )
    found = config.make("d", table, "test").transport
    with found.connect():
        yield found


def test_run_gives_status_and_streams_and_passes_words_unchanged(transport):
    words = ["a b", "$HOME", "'", '"', ";", "*", "ä", ""]
    show = "import sys; sys.stdout.write('|'.join(sys.argv[1:])); sys.stderr.write(sys.stdin.read()); sys.exit(7)"
    done = transport.run([sys.executable, "-c", show, *words], b"from stdin")
    assert (done.status, done.stdout.decode(), done.stderr) == (7, "|".join(words), b"from stdin")


def test_push_and_pull_carry_any_bytes(transport, tmp_path):
    here, there, back = tmp_path / "here", tmp_path / "device" / "new folder" / "it's", tmp_path / "back"
    content = bytes(range(256)) * 2000
    here.write_bytes(content)
    transport.push(here, str(there))
    transport.pull(str(there), back)
    assert back.read_bytes() == content
    assert sorted(p.name for p in there.parent.iterdir()) == ["it's"]


def test_a_push_into_a_file_says_which_step_failed(transport, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "here").write_text("x")
    with pytest.raises(MeasureError, match=r"copying here to .*file/x failed: .*"):
        transport.push(tmp_path / "here", str(tmp_path / "file" / "x"))


def test_a_run_that_does_not_end_is_stopped(transport):
    with pytest.raises(MeasureError, match=r"running sleep: no end after 0.3 s"):
        transport.run(["sleep", "20"], timeout_s=0.3)


def ssh(board, **changes):
    table = {key: value for key, value in board.table.items() if key != "transport"}
    return Ssh(**{**table, **changes})


def refusal(transport):
    with pytest.raises(MeasureError) as caught, transport.connect():
        pass
    return str(caught.value)


def altered(board, tmp_path, **changes):
    """The client's configuration with other values for some of its keys."""
    lines = board.config.read_text().splitlines()
    lines = [f" {line.split()[0]} {changes.pop(line.split()[0], line.split(maxsplit=1)[1])}" for line in lines]
    (tmp_path / "altered").write_text("\n".join([*lines, *(f" {k} {v}" for k, v in changes.items())]) + "\n")
    return ssh(board, config=str(tmp_path / "altered"))


def test_a_wrong_key_says_so(board, tmp_path):
    text = refusal(altered(board, tmp_path, IdentityFile=board.folder / "other"))
    assert text.startswith("ssh board: connecting failed: ")
    assert "Permission denied" in text
    assert "ssh-copy-id" in text


def test_an_unknown_host_key_is_refused(board, tmp_path):
    (tmp_path / "known").write_text("")
    text = refusal(altered(board, tmp_path, UserKnownHostsFile=tmp_path / "known"))
    assert "Host key verification failed" in text
    assert "run `ssh board` once by hand" in text
    assert (tmp_path / "known").read_text() == ""


def test_a_changed_host_key_is_refused(board, tmp_path):
    known = (board.folder / "known").read_text().split()[0]
    other = " ".join((board.folder / "other.pub").read_text().split()[:2])
    (tmp_path / "known").write_text(f"{known} {other}\n")
    text = refusal(altered(board, tmp_path, UserKnownHostsFile=tmp_path / "known"))
    assert "find out why" in text


def test_a_configuration_without_host_key_checks_is_refused(board, tmp_path):
    assert "StrictHostKeyChecking is off" in refusal(altered(board, tmp_path, StrictHostKeyChecking="no"))


def test_nobody_there(board, tmp_path):
    assert "is sshd running" in refusal(altered(board, tmp_path, Port=1))
    assert "no such host" in refusal(altered(board, tmp_path, HostName="nowhere.invalid"))


def test_the_shared_connection_is_used_and_gone_afterwards(board):
    found = ssh(board)
    assert "ControlMaster=no" not in found.command(["true"])
    with found.connect():
        command = found.command(["true"])
        control = next(word for word in command if word.startswith("ControlPath=")).partition("=")[2]
        assert os.path.exists(control)
        assert len(control) < 80
        ports = {found.run(["printenv", "SSH_CONNECTION"]).stdout for _ in range(2)}
        assert len(ports) == 1
    assert not os.path.exists(control)
    assert found.run(["printenv", "SSH_CONNECTION"]).stdout not in ports


def test_without_the_shared_connection_a_new_one_is_made(board):
    found = ssh(board)
    with found.connect():
        board.drop_links()
        time.sleep(0.2)
        assert found.run(["echo", "again"]).stdout == b"again\n"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"host": "-oProxyCommand=id"}, "no host"),
        ({"host": ""}, "no host"),
        ({"work": "~/x"}, "relative to the login's home"),
        ({"connect_timeout_s": 0}, "1 or more"),
    ],
)
def test_values_that_make_no_sense(changes, match):
    with pytest.raises(MeasureError, match=match):
        Ssh(**{"host": "h", "python": "python3", "work": "w", **changes})


def test_every_transport_of_the_table_exists():
    for name, path in TRANSPORTS.items():
        cls = named(path)
        steps = ("hold",) if name == "browser" else ("connect", "command", "run", "push", "pull")
        assert all(hasattr(cls, step) for step in steps)
