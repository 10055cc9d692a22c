// The page: an image by drop, choice, paste or camera; the likeliest classes and what they took.
// ?backend=wasm|webgpu and ?threads=N choose what is otherwise found out.

import { at, classifying, fail, item, listen, showTimes } from "./bundle/parts.js";
import { Classifier } from "./classifier.js";
import { verified } from "./verified.js";

const query = new URLSearchParams(location.search);

function show(found) {
  const items = found.best.map(({ label, share }) => item(label, `${(100 * share).toFixed(1)} %`, share));
  at("results").replaceChildren(...items);
  showTimes(found);
}

/** Frames one after the other while the camera is on: a frame is taken when the one before it is done. */
async function film(classifier) {
  const video = at("video");
  if (video.srcObject) {
    for (const track of video.srcObject.getTracks()) track.stop();
    [video.srcObject, video.hidden] = [null, true];
    at("camera").textContent = "Use the camera";
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.hidden = false;
    at("camera").textContent = "Stop the camera";
    await video.play();
    while (video.srcObject) {
      const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      canvas.getContext("2d").drawImage(video, 0, 0);
      show(await classifier.run(await canvas.convertToBlob({ type: "image/png" })));
    }
  } catch (error) {
    fail(new Error(`The camera cannot be used: ${error.message}`));
  }
}

async function start() {
  await verified();
  const classifier = await Classifier.load({ backend: query.get("backend") ?? "auto", threads: Number(query.get("threads") ?? 0) });
  const { manifest, facts } = classifier;
  const schedule = manifest.schedule.text;
  document.title = manifest.model.name;
  at("model").textContent = manifest.model.name;
  at("summary").textContent = [manifest.model.arch, manifest.precision, schedule === "none" ? "" : schedule].filter(Boolean).join(", ");
  const where = facts.backend === "webgpu" ? "WebGPU" : `WASM, ${facts.threads} thread${facts.threads > 1 ? "s" : ""}`;
  at("facts").textContent = `${where} (${facts.reason}); verified; works offline; images stay in this page`;
  at("file").disabled = at("camera").disabled = false;
  listen((image) => classifying(image, async () => show(await classifier.run(image))));
  at("camera").onclick = () => film(classifier);
  window.classifier = classifier; // for the console, and for tests
}

start().catch((error) => {
  at("model").textContent = "Not loaded";
  fail(error);
});
