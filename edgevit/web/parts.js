// Pieces of a page that classifies an image; an app's own page (edgevit embed) uses them too.

export const at = (id) => document.getElementById(id);
export const ms = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;

export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

export function fail(error) {
  at("error").hidden = false;
  at("error").textContent = error.message;
}

/** A class in the list of results: its name, its share as text and as a bar. */
export function item(label, text, share) {
  const made = element("li", "");
  const row = element("div", "row");
  row.append(element("span", "label", label), element("span", "share", text));
  const bar = element("div", "bar");
  bar.append(element("span", ""));
  bar.firstChild.style.width = `${100 * share}%`;
  made.append(row, bar);
  return made;
}

/** What an inference and preparing its image took. */
export function showTimes({ ms: inference, prepare_ms: prepared }) {
  at("times").textContent = `inference ${ms(inference)}, preparing the image ${ms(prepared)}`;
}

/** Show an image file, then what `answer` makes of it; an image that fails leaves no answer of another. */
export async function classifying(image, answer) {
  at("error").hidden = true;
  const old = at("picture").src;
  at("picture").src = URL.createObjectURL(image);
  if (old) URL.revokeObjectURL(old);
  at("picture").hidden = false;
  at("hint").hidden = true;
  at("drop").classList.add("full");
  try {
    await answer();
  } catch (error) {
    at("results").replaceChildren();
    at("times").textContent = "";
    fail(new Error(`This image could not be classified: ${error.message}`));
  }
}

/** Images by drop, choice, keyboard or paste. */
export function listen(take) {
  const drop = at("drop");
  at("file").onchange = (event) => event.target.files[0] && take(event.target.files[0]);
  drop.onkeydown = (event) => (event.key === "Enter" || event.key === " ") && at("file").click();
  window.ondragover = (event) => (event.preventDefault(), drop.classList.add("over"));
  window.ondragleave = () => drop.classList.remove("over");
  window.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) take(file);
  };
  window.onpaste = (event) => event.clipboardData.files[0] && take(event.clipboardData.files[0]);
}
