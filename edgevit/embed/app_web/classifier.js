// An image -> its likeliest classes, in a worker of this page.

import { Engine } from "./bundle/engine.js";

const SCHEMA = 1;
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function check(manifest, labels, facts) {
  const again = "export and embed it again";
  const { schema, target, runtime, input, output, preprocess } = manifest;
  if (schema !== SCHEMA) throw new Error(`manifest.json has schema ${schema}; this loader reads schema ${SCHEMA}`);
  if (target !== "web") throw new Error(`the bundle is for ${target}, this app runs web; embed that bundle again`);
  if (facts.version !== runtime.version) {
    throw new Error(`the engine was checked with onnxruntime-web ${runtime.version}, here is ${facts.version}; ${again}`);
  }
  const wanted = [1, 3, ...preprocess.size];
  for (const shape of [input.shape, facts.input.shape]) {
    if (!same(shape, wanted)) throw new Error(`the input is [${shape}], preprocessing makes [${wanted}]; ${again}`);
  }
  if (!same(facts.output.shape, output.shape)) {
    throw new Error(`the engine gives [${facts.output.shape}], the manifest says [${output.shape}]; ${again}`);
  }
  if (output.shape.length !== 2 || output.shape[0] !== 1 || output.shape[1] !== labels.length) {
    throw new Error(`the output is [${output.shape}] and there are ${labels.length} labels; ${again}`);
  }
}

async function read(name) {
  const response = await fetch(`./bundle/${name}`);
  if (!response.ok) throw new Error(`bundle/${name} is missing (HTTP ${response.status})`);
  return response;
}

/** Exactly one line a class; the last line ends, too. */
const lines = (text) => text.replace(/\r?\n$/, "").split(/\r?\n/);

export class Classifier {
  /** backend: auto, wasm, webgpu; threads: 0 lets the worker choose. Throws where something does not fit. */
  static async load({ backend = "auto", threads = 0 } = {}) {
    const found = new Classifier();
    found.manifest = await (await read("manifest.json")).json();
    const { labels, output } = found.manifest;
    const numbered = () => Array.from({ length: output.shape.at(-1) }, (_, i) => `class ${i}`);
    found.labels = labels ? lines(await (await read(labels)).text()) : numbered();
    found.engine = new Engine();
    found.facts = await found.engine.ask("load", { backend, threads });
    check(found.manifest, found.labels, found.facts);
    return found;
  }

  /** An image file or Blob -> {best: [{index, label, score, share}], ms, prepare_ms}; equal scores stand in class order. */
  async run(image, top = 5) {
    const found = await this.engine.ask("classify", { image, preprocess: this.manifest.preprocess });
    return { best: this.#best(found.outputs, top), ms: found.ms, prepare_ms: found.prepare_ms };
  }

  /** The same for an image that is a tensor already, such as `tensor` gives -> {best, ms}. */
  async runTensor(tensor, top = 5) {
    const own = tensor.slice(); // moved to the worker, which takes half the time that a message's own copy does
    const found = await this.engine.ask("run", { tensor: own }, [own.buffer]);
    return { best: this.#best(found.outputs, top), ms: found.ms };
  }

  #best(outputs, top) {
    const scores = Array.from(outputs);
    if (!scores.every(Number.isFinite)) throw new Error("the engine gave NaN or infinite scores");
    const most = scores.reduce((a, b) => Math.max(a, b));
    const sum = scores.reduce((total, s) => total + Math.exp(s - most), 0);
    const order = scores.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
    return order.slice(0, top).map((index) => {
      return { index, label: this.labels[index], score: scores[index], share: Math.exp(scores[index] - most) / sum };
    });
  }

  /** An image -> its input tensor, Float32Array [3, H, W]. */
  async tensor(image) {
    return (await this.engine.ask("prepare", { image, preprocess: this.manifest.preprocess })).tensor;
  }
}
