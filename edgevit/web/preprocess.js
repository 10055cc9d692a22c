// Image -> input tensor, number by number as edgevit/preprocess.py does it with Pillow.
//
// A browser's own drawImage resizes with an unnamed filter that differs between browsers and from what accuracy was
// measured with. So the resize is written out here: Pillow's separable, antialiased filters with its 8-bit rounding
// after each pass, exact to the last bit (checked against Pillow 13).

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));

function cubic(x) {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

// name -> [support, weight of a distance in output pixels]
const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 22; // fraction bits of a weight: 8 bits of pixel and 2 of overshoot fill the 32

/** Integer weights of each output position: [{first, weights}]. */
function taps(from, to, [support, weight]) {
  const scale = from / to;
  const stretch = Math.max(scale, 1); // shrinking widens the filter, so that no input pixel is skipped
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * stretch + 0.5));
    const last = Math.min(from, Math.trunc(centre + support * stretch + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => weight((k + first - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    const weights = Int32Array.from(raw, (w) => Math.trunc((w / sum) * 2 ** BITS + (w < 0 ? -0.5 : 0.5)));
    return { first, weights };
  });
}

/** One pass along an axis whose neighbours lie `step` bytes apart; `lines` lines that start `stride` bytes apart. */
function pass(source, target, plan, lines, step, stride, outStep, outStride) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < plan.length; i++) {
      const { first, weights } = plan[i];
      let at = line * stride + first * step;
      let r = 1 << (BITS - 1);
      let g = r;
      let b = r;
      for (let k = 0; k < weights.length; k++, at += step) {
        r += source[at] * weights[k];
        g += source[at + 1] * weights[k];
        b += source[at + 2] * weights[k];
      }
      const to = line * outStride + i * outStep;
      target[to] = r >> BITS; // a clamped array: below 0 and above 255 are cut, as Pillow cuts them
      target[to + 1] = g >> BITS;
      target[to + 2] = b >> BITS;
    }
  }
}

/** RGBA pixels -> RGBA pixels of another size (alpha is not kept). */
export function resize({ data, width, height }, toWidth, toHeight, interpolation) {
  if (interpolation === "nearest") return nearest(data, width, height, toWidth, toHeight);
  const filter = FILTERS[interpolation];
  if (!filter) throw new Error(`unknown interpolation ${interpolation}`);
  const across = () => {
    const out = new Uint8ClampedArray(toWidth * height * 4);
    pass(data, out, taps(width, toWidth, filter), height, 4, width * 4, 4, toWidth * 4);
    [data, width] = [out, toWidth];
  };
  const down = () => {
    const out = new Uint8ClampedArray(width * toHeight * 4);
    pass(data, out, taps(height, toHeight, filter), width, width * 4, 4, width * 4, 4);
    [data, height] = [out, toHeight];
  };
  // Pillow 13's order (older ones go across first always); it decides what is rounded first.
  const downFirst = toHeight < height && height - toHeight > 2 * (width - toWidth);
  for (const step of downFirst ? [down, across] : [across, down]) {
    if (step === across ? width !== toWidth : height !== toHeight) step();
  }
  return { data, width: toWidth, height: toHeight };
}

/** Which input position each output position takes; steps are added up, as Pillow adds them, for the same rounding. */
function picks(from, to) {
  const step = from / to;
  let at = step / 2;
  return Int32Array.from({ length: to }, () => {
    const found = Math.floor(at);
    at += step;
    return found;
  });
}

function nearest(data, width, height, toWidth, toHeight) {
  const source = new Uint32Array(data.buffer, data.byteOffset, width * height);
  const [columns, rows] = [picks(width, toWidth), picks(height, toHeight)];
  const target = new Uint32Array(toWidth * toHeight);
  rows.forEach((row, y) => columns.forEach((column, x) => (target[y * toWidth + x] = source[row * width + column])));
  return { data: new Uint8ClampedArray(target.buffer), width: toWidth, height: toHeight };
}

const halfEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** Resize and crop to spec.size: "squash", "shortest" or "squash_crop", as the manifest says. */
export function fit(pixels, spec) {
  const [height, width] = spec.size;
  if (spec.resize === "squash") return { ...resize(pixels, width, height, spec.interpolation), left: 0, top: 0 };
  let tall = Math.floor(height / spec.crop_pct);
  let wide = Math.floor(width / spec.crop_pct);
  if (spec.resize === "shortest") {
    if (tall * pixels.width >= wide * pixels.height) wide = Math.floor((tall * pixels.width) / pixels.height);
    else tall = Math.floor((wide * pixels.height) / pixels.width);
  } else if (spec.resize !== "squash_crop") throw new Error(`unknown resize ${spec.resize}`);
  const left = halfEven((wide - width) / 2);
  const top = halfEven((tall - height) / 2);
  return { ...resize(pixels, wide, tall, spec.interpolation), left, top };
}

/** RGBA pixels -> Float32Array [3, H, W]: (value / 255 - mean) / std in float32. */
export function toTensor(pixels, spec) {
  const [height, width] = spec.size;
  const fitted = fit(pixels, spec);
  const tensor = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    const [mean, std] = [Math.fround(spec.mean[c]), Math.fround(spec.std[c])];
    const value = Float32Array.from({ length: 256 }, (_, v) => Math.fround(Math.fround(v / 255) - mean) / std);
    for (let y = 0; y < height; y++) {
      let from = ((y + fitted.top) * fitted.width + fitted.left) * 4 + c;
      for (let x = 0; x < width; x++, from += 4) tensor[(c * height + y) * width + x] = value[fitted.data[from]];
    }
  }
  return tensor;
}

/** An image file -> its RGBA pixels, colours as stored, turned as the camera says. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
