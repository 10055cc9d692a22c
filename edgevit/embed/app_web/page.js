// The page: an image by drop, choice, paste or camera; the likeliest classes and what they took.
// ?backend=wasm|webgpu and ?threads=N choose what is otherwise found out.

import { Classifier } from "./classifier.js";
import { verified } from "./verified.js";

const at = (id) => document.getElementById(id);
const query = new URLSearchParams(location.search);
const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

function fail(error) {
  at("error").hidden = false;
  at("error").textContent = error.message;
}

function show({ best, ms: inference, prepare_ms: prepared }) {
  at("results").replaceChildren(
    ...best.map(({ label, share }) => {
      const item = element("li", "");
      const row = element("div", "row");
      row.append(element("span", "label", label), element("span", "share", `${(100 * share).toFixed(1)} %`));
      const bar = element("div", "bar");
      bar.append(element("span", ""));
      bar.firstChild.style.width = `${100 * share}%`;
      item.append(row, bar);
      return item;
    }),
  );
  at("times").textContent = `inference ${ms(inference)}, preparing the image ${ms(prepared)}`;
}

async function classify(classifier, image) {
  at("error").hidden = true;
  const old = at("picture").src;
  at("picture").src = URL.createObjectURL(image);
  if (old) URL.revokeObjectURL(old);
  at("picture").hidden = false;
  at("hint").hidden = true;
  try {
    show(await classifier.run(image));
  } catch (error) {
    at("results").replaceChildren();
    at("times").textContent = "";
    fail(new Error(`This image could not be classified: ${error.message}`));
  }
}

function listen(take) {
  const drop = at("drop");
  at("file").onchange = (event) => event.target.files[0] && take(event.target.files[0]);
  drop.onkeydown = (event) => (event.key === "Enter" || event.key === " ") && at("file").click();
  window.ondragover = (event) => event.preventDefault();
  window.ondrop = (event) => {
    event.preventDefault();
    if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
  };
  window.onpaste = (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]);
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
  document.title = manifest.model.name;
  at("model").textContent = manifest.model.name;
  at("summary").textContent = [manifest.model.arch, manifest.precision, manifest.schedule.text].filter(Boolean).join(", ");
  const where = facts.backend === "webgpu" ? "WebGPU" : `WASM, ${facts.threads} thread${facts.threads > 1 ? "s" : ""}`;
  at("facts").textContent = `${where} (${facts.reason}); verified; works offline; images stay in this page`;
  at("file").disabled = at("camera").disabled = false;
  listen((image) => classify(classifier, image));
  at("camera").onclick = () => film(classifier);
  window.classifier = classifier; // for the console, and for tests
}

start().catch((error) => {
  at("model").textContent = "Not loaded";
  fail(error);
});
