// Jobs from the server that sent this page (devices/web_server.py). A job is its kind and settings in the header x-job,
// with a float32 tensor or an image file as body; a result is a line of JSON, then float32 values.

import { Engine } from "./engine.js";

/** Posts what was promised, or its error. */
export async function post(base, promise) {
  let head;
  let values = "";
  try {
    const { outputs, tensor, ...facts } = await promise;
    head = facts;
    values = outputs ?? tensor ?? "";
  } catch (error) {
    head = { error: String(error?.message ?? error).slice(0, 2000) };
  }
  await fetch(`${base}/result`, { method: "POST", body: new Blob([JSON.stringify(head), "\n", values]) });
}

/** Takes jobs and posts their answers, until there is no answer or no server. */
export async function take(base, answer) {
  for (;;) {
    const response = await fetch(`${base}/job`, { cache: "no-store" });
    if (response.status === 204) continue; // nothing to do yet
    if (!response.ok) return;
    const promise = answer(JSON.parse(response.headers.get("x-job")), await response.arrayBuffer());
    if (!promise) return;
    await post(base, promise);
  }
}

/** Test mode of a bundle's page (?check=TOKEN): one worker for all jobs. */
export async function serve(token, load) {
  const engine = new Engine();
  const base = `./check/${token}`;
  await post(base, engine.ask("load", load));
  await take(base, ({ kind, ...settings }, body) => {
    const data = settings.preprocess ? { image: new Blob([body]) } : { tensor: new Float32Array(body) };
    return engine.ask(kind, { ...settings, ...data });
  });
}
