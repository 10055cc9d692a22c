// Installs only when every file has the sha256 it was embedded with; then serves them from its cache, offline too, with
// the headers that isolate a page, so that WASM gets threads from any server.

const FILES = @FILES@;
const CACHE = "@CACHE@"; // the hash of FILES
const KEY = "@KEY@"; // public ed25519 key that must have signed the manifest; empty: none
const ISOLATED = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
// Named here, since some servers do not know the newer ones, and a browser takes no module of another type.
const TYPES = {
  css: "text/css", html: "text/html", js: "text/javascript", json: "application/json", mjs: "text/javascript",
  wasm: "application/wasm",
};
const at = (name) => new URL(name, self.registration.scope).href;

async function hex(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (b) => b.toString(16).padStart(2, "0")).join("");
}

async function verify(name) {
  const response = await fetch(at(name), { cache: "no-store" });
  if (!response.ok) throw new Error(`${name} is missing (HTTP ${response.status}); embed it again`);
  const bytes = await response.arrayBuffer();
  if ((await hex(bytes)) !== FILES[name]) {
    throw new Error(`${name} is not the file that was embedded (sha256 differs); embed it again`);
  }
  const type = TYPES[name.split(".").at(-1)] ?? "application/octet-stream";
  return new Response(bytes, { headers: { "Content-Type": type, ...ISOLATED } });
}

/** The signature of the manifest, from the verified cache. */
async function checkSignature(cache) {
  const read = async (name) => (await cache.match(at(name))).arrayBuffer();
  const raw = Uint8Array.from(KEY.match(/../g), (pair) => parseInt(pair, 16));
  const key = await crypto.subtle.importKey("raw", raw, { name: "Ed25519" }, false, ["verify"]);
  const manifest = await read("bundle/manifest.json");
  if (!(await crypto.subtle.verify("Ed25519", key, await read("bundle/manifest.sig"), manifest))) {
    throw new Error("bundle/manifest.sig is not by this app's key, or manifest.json was changed");
  }
}

async function install() {
  const cache = await caches.open(CACHE);
  try {
    for (const name of Object.keys(FILES)) await cache.put(at(name), await verify(name)); // one at a time: memory
    if (KEY) await checkSignature(cache);
  } catch (error) {
    await caches.delete(CACHE);
    for (const client of await self.clients.matchAll({ includeUncontrolled: true })) {
      client.postMessage({ refused: error.message });
    }
    throw error;
  }
  await self.skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) if (name.startsWith("classifier-") && name !== CACHE) await caches.delete(name);
  await self.clients.claim();
}

async function answer(request) {
  const url = new URL(request.url);
  const page = url.href.split(/[?#]/)[0];
  const cache = await caches.open(CACHE);
  const found = await cache.match(page === at("") ? at("index.html") : page);
  return found ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  if (event.request.method === "GET" && event.request.url.startsWith(self.registration.scope)) {
    event.respondWith(answer(event.request));
  }
});
