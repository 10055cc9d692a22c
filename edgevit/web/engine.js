// The worker, as promises.

export class Engine {
  #worker;
  #waiting = new Map();
  #next = 0;

  /** place: the worker's script; none is the one beside this file. */
  constructor(place = new URL("./worker.js", import.meta.url)) {
    this.#worker = new Worker(place, { type: "module" });
    this.#worker.onmessage = ({ data: { id, ok, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      error === undefined ? resolve(ok) : reject(new Error(error));
    };
    this.#worker.onerror = (event) => {
      const error = new Error(event.message || "the worker did not start");
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
  }

  /** kind: load, run, prepare, classify, bench (worker.js). transfer: buffers of the job that the worker keeps. */
  ask(kind, job = {}, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, kind, ...job }, transfer);
    });
  }

  close() {
    this.#worker.terminate();
  }
}
