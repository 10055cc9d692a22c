"""From the start of a process to the first prediction on its terminal: `python apps_cold.py FOLDER COMMAND...`.

Prints one JSON object: milliseconds, and the peak of its resident memory. Standard library alone: what the kernel
counts as a child's peak begins with the size of its parent, so this process stays small.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time


def main() -> int:
    """Start it on a terminal of its own, where a line is written when it is printed."""
    ours, theirs = os.openpty()
    start = time.monotonic()
    process = subprocess.Popen(sys.argv[2:], cwd=sys.argv[1], stdin=subprocess.DEVNULL, stdout=theirs)
    os.close(theirs)
    seen, shown = b"", None
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # how the end of the other side shows here
            break
        if not part:
            break
        seen += part
        if shown is None and re.search(rb"\d %", seen):
            shown = time.monotonic()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or shown is None:
        print(f"{sys.argv[2:]} printed no prediction: {seen.decode('utf-8', 'replace')[-300:]}", file=sys.stderr)
        return 1
    print(json.dumps({"cold_ms": (shown - start) * 1e3, "peak_memory_bytes": usage.ru_maxrss * 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
