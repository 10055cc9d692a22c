"""One round of the web app in a fresh headless Chromium, through its debugger: two visits, then samples.

Served as `python3 -m http.server` does: a first visit installs the service worker and loads once more to be isolated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.runtimes.devtools import Page

VISIT = """
sessionStorage.setItem("began", sessionStorage.getItem("began") ?? performance.timeOrigin);
{
  const image = fetch("golden/2.png").then((response) => response.blob());
  let classifier;
  Object.defineProperty(window, "classifier", { get: () => classifier, set: async (value) => {
    classifier = value;
    const files = new DataTransfer();
    files.items.add(new File([await image], "a.png"));
    new MutationObserver(() => {
      window.shown ??= performance.timeOrigin + performance.now() - Number(sessionStorage.getItem("began"));
    }).observe(document.getElementById("results"), { childList: true });
    window.dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
  } });
}
"""
"""As soon as the app is ready, an image is dropped; `shown`: milliseconds from the navigation to its classes."""

SAMPLES = """
(async ({ warmup_s, min_seconds, min_samples }) => {
  const image = await (await fetch("golden/7.png")).blob();
  const tensor = await classifier.tensor(image);
  const found = { bare: [], app: [], image: [], threads: classifier.facts.threads };
  const seconds = (since) => (performance.now() - since) / 1000;
  const once = async (run) => {
    const start = performance.now();
    const { ms } = await run();
    return [performance.now() - start, ms];
  };
  const prepared = () => classifier.runTensor(tensor);
  const whole = () => classifier.run(image);
  for (const start = performance.now(); seconds(start) < warmup_s; ) await prepared();
  for (const start = performance.now(); found.app.length < min_samples || seconds(start) < 2 * min_seconds; ) {
    const [app, bare] = await once(prepared);
    found.app.push(app);
    found.bare.push(bare);
  }
  for (const start = performance.now(); found.image.length < min_samples || seconds(start) < min_seconds; ) {
    found.image.push((await once(whole))[0]);
  }
  return found;
})(%s)
"""
"""`bare` is what the app's worker says of the same call: the time around the engine."""


def web_round(site: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Cold starts, samples in milliseconds, and the peak of the renderer, as `edgevit profile` counts it."""
    from edgevit.devices.runner_web import renderer_peak

    query = f"?backend=wasm&threads={job['threads']}"
    with Page(site, query, isolated=False, script=VISIT) as page:
        first = page.wait("window.shown", 120)
        page.again(query, VISIT)
        second = page.wait("window.shown", 120)
        if not page.value("self.crossOriginIsolated"):
            raise RuntimeError("the page is not isolated: its clock would be coarse and it would have one thread")
        found = page.value(SAMPLES % json.dumps({k: job[k] for k in ("warmup_s", "min_seconds", "min_samples")}))
        peak = renderer_peak(page.process.pid)
    return {**found, "cold_ms": first, "second_visit_ms": second, "peak_memory_bytes": peak}
