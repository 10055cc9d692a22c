// Test mode (?check=TOKEN): takes jobs from the server that sent this page, and posts what the worker answers.
// A job is its kind and settings in the header x-job, with a float32 tensor or an image file as body.

import { Engine } from "./engine.js";

export async function serve(token, load) {
  const engine = new Engine();
  const post = (head, body) =>
    fetch(`./check/${token}/result`, { method: "POST", headers: { "x-result": JSON.stringify(head) }, body });
  const answer = async (kind, job) => {
    try {
      const { outputs, tensor, ...facts } = await engine.ask(kind, job);
      await post(facts, outputs ?? tensor);
    } catch (error) {
      await post({ error: String(error.message).slice(0, 2000) });
    }
  };
  await answer("load", load);
  for (;;) {
    const response = await fetch(`./check/${token}/job`, { cache: "no-store" });
    if (response.status === 204) continue; // nothing to do yet
    if (!response.ok) return;
    const { kind, ...settings } = JSON.parse(response.headers.get("x-job"));
    const body = await response.arrayBuffer();
    const data = settings.preprocess ? { image: new Blob([body]) } : { tensor: new Float32Array(body) };
    await answer(kind, { ...settings, ...data });
  }
}
