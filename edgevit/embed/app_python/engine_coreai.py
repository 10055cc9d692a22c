"""The engine in the CPU runtime of coreai-core: right numbers on any machine; the speed is that of Apple's devices."""

from __future__ import annotations

import asyncio
import atexit
import gc
import re
import time
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.embed.app_python.errors import Refused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TARGET, PACKAGE = "coreai", "coreai-core"
MACHINE_BOUND = False


def version() -> str:
    """Of the installed runtime."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise Refused(f"this app needs {PACKAGE}: pip install -r requirements.txt") from error


def release(built: str) -> str:
    """The runtime's version in the manifest's, which names the converter first."""
    found = re.search(r"coreai-core ([^)]+)", built)
    return found[1] if found else built


class Engine:
    """The asset, compiled for this CPU. shape: of its input, `(1, 3, H, W)`."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], threads: int | None) -> None:
        try:
            from coreai.authoring.asset import AIModelAsset
            from coreai.runtime import NDArray
        except ImportError as error:
            raise Refused(f"{PACKAGE} does not load ({error}): pip install -r requirements.txt") from error
        if threads:
            raise Refused(f"{PACKAGE} takes no number of threads; leave it out")
        path = bundle / manifest["entry"]
        if sha256((path / "main.mlirb").read_bytes()).digest() != (path / "main.hash").read_bytes():
            raise Refused(
                f"{PACKAGE} cannot load {path.name}: main.mlirb is damaged"
            )  # its reader would end the process
        try:
            self._function = asyncio.run(_loaded(AIModelAsset.load(path)))
        except RuntimeError as error:
            raise Refused(f"{PACKAGE} cannot load {path.name}: {error}") from error
        atexit.register(self._end)
        self._array, self._input, self._output = NDArray, manifest["input"]["name"], manifest["output"]["name"]
        self.shape = tuple(manifest["input"]["shape"])

    def run(self, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 `[1, 3, H, W]` → scores `[1, classes]`."""
        feeds = {self._input: self._array(tensor)}
        out: NDArray[np.float32] = asyncio.run(self._function(feeds))[self._output].numpy().copy()
        return out

    def _end(self) -> None:
        """Let the runtime's threads finish: one that still wants Python while it ends would abort the process."""
        del self._function
        gc.collect()
        time.sleep(0.3)


async def _loaded(asset: Any) -> Any:
    """The function, which maps the compiled file: it outlives the folder it was compiled into."""
    async with asset.executable() as model:
        return model.load_function("main")
