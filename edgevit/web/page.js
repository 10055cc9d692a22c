// The page: reads the manifest, shows what it classifies, how long that took, and on what it ran.
// ?backend=wasm|webgpu and ?threads=N choose what is otherwise found out; ?image=FILE classifies at once.

import { serve } from "./check.js";
import { Engine } from "./engine.js";
import { at, classifying, element, fail, item, listen, ms, showTimes } from "./parts.js";

const SHOWN = 5;
const query = new URLSearchParams(location.search);
const wanted = { backend: query.get("backend") ?? "auto", threads: Number(query.get("threads") ?? 0) };
at("unserved").hidden = true; // this script runs: the page was served
const percent = (share) => (share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

async function read(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`${file} is missing beside this page (HTTP ${response.status})`);
  return response;
}

async function readBundle() {
  const manifest = await (await read("manifest.json")).json();
  const labels = manifest.labels ? (await (await read(manifest.labels)).text()).split(/\r?\n/) : [];
  return { manifest, labels };
}

function softmax(values) {
  const most = values.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(values, (v) => Math.exp(v - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((p) => p / sum);
}

function showResults(outputs, labels) {
  const shares = softmax(outputs);
  const order = shares.map((_, i) => i).sort((a, b) => shares[b] - shares[a] || a - b);
  const items = order.slice(0, SHOWN).map((index) => {
    return item(labels[index] || `class ${index}`, percent(shares[index]), shares[index]);
  });
  at("results").replaceChildren(...items);
}

function showFacts(facts, manifest) {
  const backend = facts.backend === "webgpu" ? "WebGPU" : `WASM with SIMD, ${facts.threads} thread${facts.threads > 1 ? "s" : ""}`;
  const alone = facts.backend === "wasm" && !facts.isolated;
  const hint = alone ? "; threads need the headers Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy" : "";
  const { resize, size, interpolation } = manifest.preprocess;
  const rows = {
    "Runs on": `${backend} (${facts.reason}${hint})`,
    Runtime: `onnxruntime-web ${facts.version}, loaded in ${ms(facts.load_ms)}`,
    Input: `${size[1]} × ${size[0]} pixels, ${resize}, ${interpolation}: to the bit as accuracy was measured`,
    Checked: `${manifest.check.sqnr_db.toFixed(0)} dB against eager float32 on ${manifest.check.images} images`,
    Privacy: "images stay in this page; it works offline",
  };
  at("facts").replaceChildren(...Object.entries(rows).flatMap(([k, v]) => [element("dt", "", k), element("dd", "", v)]));
}

function showModel(manifest) {
  const { model, precision, schedule } = manifest;
  const share = schedule.macs.reduced / schedule.macs.dense;
  const less = share < 1 ? `, tokens reduced by ${schedule.text} (${Math.round(100 * share)} % of the dense MACs)` : "";
  document.title = model.name;
  at("model").textContent = model.name;
  at("summary").textContent = [model.arch, precision].filter(Boolean).join(", ") + less;
}

function classify(engine, { manifest, labels }, image) {
  return classifying(image, async () => {
    const found = await engine.ask("classify", { image, preprocess: manifest.preprocess });
    showResults(found.outputs, labels);
    showTimes(found);
  });
}

async function measure(engine, shape) {
  at("measure").disabled = true;
  at("measured").textContent = "measuring, a few seconds…";
  try {
    const tensor = Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => 2 * Math.random() - 1);
    const plan = { warmup_s: 0.5, min_samples: 30, min_seconds: 2, max_seconds: 20 };
    const { samples_ms, median_ms } = await engine.ask("bench", { tensor, ...plan });
    const p90 = samples_ms.sort((a, b) => a - b)[Math.ceil(0.9 * samples_ms.length) - 1];
    at("measured").textContent = `median ${ms(median_ms)}, 90 % within ${ms(p90)} (${samples_ms.length} runs)`;
  } catch (error) {
    fail(error);
  }
  at("measure").disabled = false;
}

async function start() {
  const bundle = await readBundle();
  showModel(bundle.manifest);
  at("results").append(element("li", "empty", "loading the model…"));
  const engine = new Engine();
  const facts = await engine.ask("load", wanted);
  showFacts(facts, bundle.manifest);
  at("results").replaceChildren(element("li", "empty", "What the model sees appears here."));
  at("measure").disabled = false;
  at("measure").onclick = () => measure(engine, facts.input.shape);
  const take = (image) => classify(engine, bundle, image);
  listen(take);
  if (query.has("image")) await take(await (await read(query.get("image"))).blob());
}

if (query.has("check")) serve(query.get("check"), wanted);
else start().catch((error) => (at("model").textContent ||= "edgevit", at("results").replaceChildren(), fail(error)));
