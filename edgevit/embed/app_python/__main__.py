"""`python -m classifier IMAGE...`: the likeliest classes of each image. Exit 1 with one line when refused."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from edgevit.embed.app_python.classifier import BUNDLE, Classifier
from edgevit.embed.app_python.errors import Refused


def main() -> int:
    """Read the command line, classify, print."""
    parser = argparse.ArgumentParser(prog="python -m classifier", description="The likeliest classes of images.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, metavar="DIR", help="default: the one of this app")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="classes an image, default 5")
    parser.add_argument("--threads", type=int, metavar="N", help="default: the runtime's own choice")
    parser.add_argument("--any-version", action="store_true", help="accept another version of the runtime")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    arguments = parser.parse_args()
    try:
        classifier = Classifier(arguments.bundle, arguments.threads, arguments.any_version)
        found = {str(path): classifier.run(path, arguments.top) for path in arguments.images}
    except Refused as error:
        print(f"classifier: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({path: [asdict(p) for p in best] for path, best in found.items()}, indent=2))
        return 0
    for path, best in found.items():
        print(path)
        for prediction in best:
            print(f"  {100 * prediction.share:6.2f} %  {prediction.label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
