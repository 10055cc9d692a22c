// Everything this app uses is served by its service worker (sw.js) from a cache that holds verified files only.

/** Resolves when this page is under the service worker's control; reloads once to get there. Throws what it refused. */
export async function verified() {
  if (!navigator.serviceWorker) throw new Error("this app verifies its files, which needs https or localhost");
  const registration = await navigator.serviceWorker.register("./sw.js", { updateViaCache: "none" });
  await installed(registration.installing ?? registration.waiting);
  if (navigator.serviceWorker.controller && self.crossOriginIsolated) return;
  if (sessionStorage.getItem("reloaded")) {
    if (navigator.serviceWorker.controller) return; // a browser that isolates no page: one thread
    throw new Error("the service worker does not take this page; close its other tabs and load it again");
  }
  sessionStorage.setItem("reloaded", "1"); // the reloaded page comes from the cache, isolated: WASM gets threads
  location.reload();
  await new Promise(() => {});
}

function installed(worker) {
  if (!worker || worker.state === "activated") return Promise.resolve();
  return new Promise((resolve, reject) => {
    let why = "its files could not be read";
    navigator.serviceWorker.addEventListener("message", ({ data }) => data?.refused && (why = data.refused));
    const look = () => {
      if (worker.state === "activated") resolve();
      // the reason may come behind the change of state
      if (worker.state === "redundant") setTimeout(() => reject(new Error(`The app was refused: ${why}`)), 200);
    };
    worker.addEventListener("statechange", look);
    look();
  });
}
