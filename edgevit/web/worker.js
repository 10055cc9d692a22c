// Loads the model and runs it, off the page's thread. Messages: {id, kind, ...} in, {id, ok | error} out.

import { decode, toTensor } from "./preprocess.js";

const ENTRIES = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };
let ort;
let session;

/** {backend, reason}: WebGPU where the model and the machine can, else WASM; the reason is shown to the user. */
async function choose(wanted, engine) {
  if (wanted === "wasm") return { backend: "wasm", reason: "asked for" };
  let reason;
  if (!engine.backends.includes("webgpu")) reason = "the bundle was built without WebGPU";
  else if (engine.precision.startsWith("int8")) reason = "8-bit operators run on WASM";
  else if (!navigator.gpu) reason = "this browser offers no WebGPU";
  else {
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) reason = "this machine offers no WebGPU adapter";
    else if (engine.precision === "fp16" && !adapter.features.has("shader-f16")) reason = "this GPU has no 16-bit floats";
    else return { backend: "webgpu", reason: `${adapter.info?.vendor || "a"} GPU through WebGPU` };
  }
  if (wanted === "webgpu") throw new Error(`WebGPU was asked for: ${reason}`);
  return { backend: "wasm", reason };
}

/** Threads need a page that is isolated (COOP and COEP headers); two of three cores leave the browser its own. */
function threadCount(asked) {
  if (!self.crossOriginIsolated) return 1;
  return asked || Math.max(1, Math.min(4, Math.ceil((navigator.hardwareConcurrency * 2) / 3)));
}

async function create(backend, engine, threads) {
  ort = await import(ENTRIES[backend]);
  ort.env.wasm.wasmPaths = new URL("./ort/", self.location.href).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(new URL(engine.model, self.location.href).href, {
    executionProviders: [backend],
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
    extra: engine.session_config,
  });
}

async function load({ backend = "auto", threads = 0 }) {
  const engine = await (await fetch("./engine.json")).json();
  const start = performance.now();
  const count = threadCount(threads);
  let choice = await choose(backend, engine);
  try {
    await create(choice.backend, engine, count);
  } catch (error) {
    if (backend !== "auto" || choice.backend === "wasm") throw error;
    choice = { backend: "wasm", reason: `WebGPU failed: ${error.message}` };
    await create("wasm", engine, count);
  }
  return {
    ...choice,
    precision: engine.precision,
    threads: count,
    isolated: self.crossOriginIsolated,
    cores: navigator.hardwareConcurrency,
    version: ort.env.versions.web ?? ort.env.versions.common,
    input: { name: session.inputNames[0], shape: session.inputMetadata[0].shape },
    output: { name: session.outputNames[0], shape: session.outputMetadata[0].shape },
    load_ms: performance.now() - start,
  };
}

async function infer(tensor) {
  const shape = session.inputMetadata[0].shape;
  const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", tensor, shape) };
  const results = await session.run(feeds);
  return results[session.outputNames[0]];
}

/** A tensor -> outputs and milliseconds. */
async function run({ tensor }) {
  const start = performance.now();
  const output = await infer(tensor);
  return { outputs: output.data, dims: output.dims, ms: performance.now() - start };
}

/** An image file -> its tensor, by the manifest's preprocessing. */
async function prepare({ image, preprocess }) {
  return { tensor: toTensor(await decode(image), preprocess) };
}

/** An image file -> outputs, with the time of both parts. */
async function classify(job) {
  const start = performance.now();
  const { tensor } = await prepare(job);
  const prepared = performance.now() - start;
  return { ...(await run({ tensor })), prepare_ms: prepared };
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/** Warm up until two successive window medians agree within 2 %, then raw milliseconds: devices/runner_ort.py's loop. */
async function bench({ tensor, warmup_s, min_samples, min_seconds, max_seconds }) {
  const once = async () => {
    const start = performance.now();
    await infer(tensor);
    return performance.now() - start;
  };
  const seconds = (since) => (performance.now() - since) / 1000;
  const first_ms = await once();
  const began = performance.now();
  const medians = [];
  const warmup = { samples: 0, stable: false };
  while (warmup_s > 0 && !warmup.stable && seconds(began) < max_seconds) {
    const window = [];
    const opened = performance.now();
    while ((window.length < 5 || seconds(opened) < warmup_s / 4) && seconds(began) < max_seconds) window.push(await once());
    warmup.samples += window.length;
    medians.push(median(window));
    const settled = medians.length > 1 && Math.abs(medians.at(-1) / medians.at(-2) - 1) <= 0.02;
    warmup.stable = settled && seconds(began) >= warmup_s;
  }
  warmup.seconds = seconds(began);
  const samples_ms = [];
  const start = performance.now();
  do samples_ms.push(await once());
  while (seconds(start) < max_seconds && (samples_ms.length < min_samples || seconds(start) < min_seconds));
  return { first_ms, warmup, samples_ms, median_ms: median(samples_ms), tick_ms: tick() };
}

/** The clock's step: the smallest difference it shows. */
function tick() {
  const steps = [];
  for (let i = 0; i < 20; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    steps.push(now - start);
  }
  return Math.min(...steps);
}

const KINDS = { load, run, prepare, classify, bench };

self.onmessage = async ({ data: { id, kind, ...job } }) => {
  try {
    self.postMessage({ id, ok: await KINDS[kind](job) });
  } catch (error) {
    self.postMessage({ id, error: String(error?.message ?? error) });
  }
};
