// Measures for `edgevit profile --device` (devices/browser.py): each job on a fresh worker of the bundle it names.

import { take } from "./check.js";
import { Engine } from "./engine.js";
import { at, element, fail } from "./parts.js";

// A module with one instruction on 128 bits.
const SIMD = Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11);
const TRIES = 8; // a page that was reloaded comes before its forerunner is known to be gone
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const say = (text) => (at("state").textContent = text);
let timesHidden = 0;
let over = false;

/** What the browser tells of itself and its device. */
async function about() {
  const agent = navigator.userAgentData;
  const more = (await agent?.getHighEntropyValues(["model", "platformVersion", "architecture"]).catch(() => {})) ?? {};
  return {
    user_agent: navigator.userAgent,
    model: more.model || null,
    os: agent ? `${agent.platform} ${more.platformVersion ?? ""}`.trim() : null,
    arch: more.architecture || null,
    cores: navigator.hardwareConcurrency,
    isolated: self.crossOriginIsolated ?? false,
    simd: WebAssembly.validate(SIMD),
    webgpu: Boolean(await navigator.gpu?.requestAdapter().catch(() => {})),
  };
}

/** The address of this page's jobs. */
async function admitted(facts) {
  for (let tries = 1; ; tries++) {
    const response = await fetch("./hello", { method: "POST", body: JSON.stringify(facts) });
    const text = await response.text();
    if (response.ok) return `./page/${text}`;
    if (response.status !== 409 || tries === TRIES) throw new Error(text);
    await pause(1000);
  }
}

/** Keeps a request open, by whose end the server knows at once that the page is gone; no traffic while it measures. */
async function stay(base) {
  for (; !over; await pause(500)) await fetch(`${base}/alive`).then((response) => response.text()).catch(() => {});
}

const awake = () => document.hidden || navigator.wakeLock?.request("screen").catch(() => {});

async function shown() {
  while (document.hidden) await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

async function fresh({ bundle, backend, threads }, use) {
  const engine = new Engine(new URL(`./bundle/${bundle}/worker.js`, location.href));
  try {
    return { ...(await engine.ask("load", { backend, threads })), ...(await use(engine)) };
  } finally {
    engine.close();
  }
}

/** Outputs for `count` inputs, one after another. */
function check({ count, ...job }, values) {
  const size = values.length / count;
  return fresh(job, async (engine) => {
    const found = [];
    for (let i = 0; i < count; i++) {
      found.push((await engine.ask("run", { tensor: values.slice(i * size, (i + 1) * size) })).outputs);
    }
    return { outputs: new Blob(found) };
  });
}

/** One round; hidden: whether the page was, at any time of it. */
async function round({ bundle, backend, threads, ...plan }, tensor) {
  const before = timesHidden;
  const found = await fresh({ bundle, backend, threads }, (engine) => engine.ask("bench", { tensor, ...plan }));
  return { ...found, hidden: timesHidden > before };
}

const KINDS = { check, round };

function answer({ kind, text, ...job }, body) {
  say(text);
  if (kind === "end") return null;
  return shown().then(() => KINDS[kind](job, new Float32Array(body)));
}

async function start() {
  document.addEventListener("visibilitychange", () => {
    timesHidden += document.hidden;
    awake();
  });
  const facts = await about();
  const rows = { Browser: facts.user_agent, Cores: facts.cores, Isolated: facts.isolated ? "yes" : "no: one thread, a coarse clock" };
  rows.WebGPU = facts.webgpu ? "yes" : "no";
  at("facts").replaceChildren(...Object.entries(rows).flatMap(([k, v]) => [element("dt", "", k), element("dd", "", v)]));
  const base = await admitted(facts);
  say("Waiting for work…");
  awake();
  stay(base);
  for (let tries = 0; !over && tries < TRIES; tries++) {
    await take(base, answer).then(() => (over = true), () => pause(1000)); // a link that was down for a moment
  }
  if (!over) say("edgevit has ended; this page can be closed.");
  over = true;
}

start().catch((error) => (say("Not measuring."), fail(error)));
