"""`edgevit devices`: the user's devices, and what is on them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgevit.commands.terminal import named_value, note, print_json, print_table

if TYPE_CHECKING:
    from edgevit.devices.config import Device
    from edgevit.devices.transport import PageTransport, PhoneTransport


APP = "com.example.runner"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of devices."""
    from edgevit.devices.transport import TRANSPORTS

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="one JSON object on standard output")
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    jobs.add_parser("list", parents=[shared], help="devices of devices.toml")
    add = jobs.add_parser(
        "add", parents=[shared], help="a new device: add board ssh host=me@board python=python3 work=W"
    )
    add.add_argument("name", metavar="NAME")
    add.add_argument("transport", metavar="TRANSPORT", choices=TRANSPORTS, help=", ".join(TRANSPORTS))
    add.add_argument("keys", nargs="*", type=named_value, metavar="KEY=VALUE", help="the transport's keys")
    check = jobs.add_parser("check", parents=[shared], help="connect, find runtimes, say what is missing")
    check.add_argument("name", metavar="NAME")
    app = jobs.add_parser("app", parents=[shared], help="write the runner of a phone, for Xcode or Android's NDK")
    app.add_argument("--platform", choices=("ios", "android"), default="ios", help="of the phone (%(default)s)")
    app.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write it to")
    app.add_argument("--app", metavar="ID", help=f"ios: its bundle identifier ({APP})")
    app.add_argument("--team", metavar="ID", help="ios: your team identifier; without it Xcode asks")


def run(arguments: argparse.Namespace) -> int:
    """One of the four."""
    return {"list": _list, "add": _add, "check": _check, "app": _app}[arguments.job](arguments)


def _list(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from edgevit.devices import config

    tables = config.read()
    if arguments.json:
        print_json({"file": str(config.config_path()), "devices": tables})
        return 0
    shown = Table(title=str(config.config_path()))
    for column in ("device", "transport", "keys"):
        shown.add_column(column)
    shown.add_row(config.LOCAL, "", "this machine")
    for name, table in tables.items():
        keys = ", ".join(f"{key}={value}" for key, value in table.items() if key != "transport")
        shown.add_row(name, str(table.get("transport")), keys)
    print_table(shown)
    return 0


def _add(arguments: argparse.Namespace) -> int:
    from edgevit.devices import config

    table: dict[str, str | int] = {"transport": arguments.transport}
    for key, value in arguments.keys:
        table[key] = int(value) if value.isdigit() else value
    path = config.add(arguments.name, table)
    if arguments.json:
        print_json({"file": str(path), "device": arguments.name})
    else:
        print(f"{arguments.name} is in {path}; next: edgevit devices check {arguments.name}")
    return 0


def _app(arguments: argparse.Namespace) -> int:
    from edgevit.devices.app_project import write_app, write_program
    from edgevit.errors import MeasureError

    if arguments.platform == "android":
        if arguments.app is not None or arguments.team is not None:
            raise MeasureError("--app and --team are of an iPhone's app: leave them out with --platform android")
        project = write_program(arguments.out)
        if arguments.json:
            print_json({"project": str(project)})
        else:
            print(f"{project}: build it once with the NDK (docs/devices/android.md), then runner=DIR of the device")
        return 0
    app = APP if arguments.app is None else arguments.app
    project = write_app(arguments.out, app, arguments.team or "")
    if arguments.json:
        print_json({"project": str(project), "app": app})
    else:
        print(
            f"{project}: open it in Xcode on a Mac, choose your team, run it on the phone once (docs/devices/iphone.md)"
        )
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """Exit 0 when the session runs there: what is missing is a finding, not a failure."""
    from edgevit.devices.config import find
    from edgevit.devices.remote import there

    device = find(arguments.name)
    if hasattr(device.transport, "hold"):
        return _look(device, arguments)
    if getattr(device.transport, "runner", None) == "":
        return _reach(device, arguments)
    if hasattr(device.transport, "launcher"):
        return _ask_app(device, arguments)
    with there(device) as session:
        found = {"device": session.device(), "state": session.state(), **session.ask({"do": "probe"})}
        session.end()
    found["findings"] = findings(found)
    if arguments.json:
        print_json(found)
        return 0
    about = found["device"]
    print(f"{about['name']}: {about['model']}, {about['cpu']}, {about['os']}, Python {found['python']}")
    for what in ("runtimes", "programs"):
        print(f"{what:9} {', '.join(f'{name} {value}' for name, value in found[what].items() if value) or 'none'}")
    listed = (f"{name} ({why})" if why else name for name, why in found["collectors"].items())
    print(f"collectors {', '.join(listed)}")
    for text in found["findings"]:
        print(f"finding   {text}")
    return 0


def _reach(device: Device, arguments: argparse.Namespace) -> int:
    """An Android phone without a runner: see that it is there."""
    with device.transport.connect():
        fake = cast("PhoneTransport", device.transport).stand_in()
    text = "it has no runner: `edgevit devices app --platform android`, build it, runner=DIR (docs/devices/android.md)"
    if arguments.json:
        about = {"name": device.name, "transport": device.kind}
        print_json({"device": about, "fake": fake, "findings": [text]})
        return 0
    print(f"{device.name}: reached by {device.kind}{'; FAKE: by a stand-in' if fake else ''}")
    print(f"finding   {text}")
    return 0


def _ask_app(device: Device, arguments: argparse.Namespace) -> int:
    """A phone: what its runner says, and on Android the system."""
    from edgevit.devices.in_app import HOT, held

    with held(device, ()) as session:
        about, facts, fake = session.device(), session.facts, session.fake
    texts = [f"it is {facts['thermal']}: let it cool"] if facts.get("thermal") in HOT else []
    if arguments.json:
        print_json({"device": about, "app": facts, "fake": fake, "findings": texts})
        return 0
    print(f"{device.name}: {about['model']}, {about['os']}{'; FAKE: by a stand-in' if fake else ''}")
    for text in texts:
        print(f"finding   {text}")
    return 0


def _look(device: Device, arguments: argparse.Namespace) -> int:
    """A browser: what it says of itself once its page is open."""
    with cast("PageTransport", device.transport).hold(device.name, (), note) as session:
        about, facts = session.device(), session.facts
    texts = browser_findings(facts)
    if arguments.json:
        print_json({"device": about, "browser": facts, "findings": texts})
        return 0
    print(f"{device.name}: {about['browser']}")
    for what in ("model", "os", "arch", "cores"):
        print(f"{what:9} {about[what]}")
    for what in ("isolated", "simd", "webgpu"):
        print(f"{what:9} {'yes' if facts[what] else 'no'}")
    for text in texts:
        print(f"finding   {text}")
    return 0


def browser_findings(facts: dict[str, Any]) -> list[str]:
    """What a browser lacks, and what to do about it."""
    texts = []
    if not facts["isolated"]:
        texts.append(
            "the page is not isolated, so it has one thread and a coarse clock: give the device cert and key for "
            "https, or reach it as localhost (adb reverse)"
        )
    if not facts["simd"]:
        texts.append("this browser has no WASM SIMD, which onnxruntime-web needs: update it")
    return texts


def findings(found: dict[str, Any]) -> list[str]:
    """What is missing on a device, and what to do about it."""
    runtimes, python = found["runtimes"], found["executable"]
    texts = []
    if (
        not any(runtimes[name] for name in ("onnxruntime", "openvino", "executorch"))
        and not found["programs"]["trtexec"]
    ):
        texts.append(f"no runtime is installed: {python} -m pip install onnxruntime, there")
    if not runtimes["numpy"]:
        texts.append(f"numpy is missing, which every runner but trtexec needs: {python} -m pip install numpy, there")
    if found["state"]["governor"] not in ("performance", "unknown"):
        texts.append(f"its CPU governor is {found['state']['governor']}: latencies will scatter")
    return texts
