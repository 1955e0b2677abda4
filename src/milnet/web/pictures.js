/* Pictures of photos: made in the browser out of the files, two at a time, those in view first.

   What the browser cannot show (HEIC, RAW, TIFF) the service shows. Photos of the pool come from the service, where
   they are known on its machine. */

import { make } from "./pieces.js";
import { ask } from "./service.js";

const SIDE = 448; // pixels of the long side on a tile
const AT_ONCE = 2;
const LARGE = 6; // photos that are kept as they are
const MISSES = 8; // pool photos that are not there, and none that is: then no more are asked for
const NONE = "No picture: the file cannot be read any more.";

let making = 0, due = false;
const large = new Map(); // entry -> address of a picture as large as it is
const pools = new Map(); // model -> { hits, misses, found: number -> promise of an address or null }

/** A frame for the picture of a photo; beside its name a picture needs no text of its own, alone it has one. */
export function picture(photo, alt = "", whole = false) {
  const { entry } = photo, frame = make("span", { class: "frame" });
  if (whole) showLarge(frame, entry, alt);
  else if (entry.thumb) put(frame, entry.thumb, alt);
  else {
    frame.dataset.picture = photo.key;
    frame.entry = entry;
    frame.words = alt;
    look();
  }
  return frame;
}

function put(frame, address, alt) {
  delete frame.dataset.picture;
  frame.entry = null;
  frame.replaceChildren(address === "none" ? make("span", { class: "none", text: NONE })
    : make("img", { src: address, alt, decoding: "async", draggable: "false" }));
}

/** Make pictures that are in view, or soon will be. */
export function look() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    while (making < AT_ONCE) {
      const entry = nearest();
      if (!entry) return;
      making++;
      entry.making = true;
      thumbOf(entry).catch(() => "none").then((address) => {
        making--;
        entry.making = false;
        entry.thumb = address;
        for (const frame of document.querySelectorAll(`.frame[data-picture="${entry.key}"]`)) {
          if (frame.entry === entry) put(frame, address, frame.words);
        }
        look();
      });
    }
  });
}

/** The photo without a picture that is nearest to what is in view. */
function nearest() {
  let best = null, least = Infinity;
  for (const frame of document.querySelectorAll(".frame[data-picture]")) {
    if (frame.entry.thumb) put(frame, frame.entry.thumb, frame.words); // it was away when the picture was made
    else if (!frame.entry.making) {
      const box = frame.getBoundingClientRect();
      const away = Math.max(0, -box.bottom, box.top - window.innerHeight);
      if (box.height && away < least) [best, least] = [frame.entry, away];
    }
  }
  return best;
}

async function thumbOf(entry) {
  let bitmap;
  try {
    const { width, height } = entry.size || { width: 1, height: 1 };
    const fits = entry.size && Math.max(width, height) <= SIDE;
    const resize = width >= height ? { resizeWidth: SIDE } : { resizeHeight: SIDE };
    bitmap = await createImageBitmap(entry.file, fits ? {} : { ...resize, resizeQuality: "medium" });
  } catch {
    bitmap = await createImageBitmap(await preview(entry));
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale))
  });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const blob = await new Promise((done) => { canvas.toBlob(done, "image/jpeg", 0.85); });
  return URL.createObjectURL(blob);
}

async function preview(entry) {
  const response = await ask("v1/preview", {
    method: "POST", body: entry.file, headers: { "Content-Type": "application/octet-stream" }
  });
  return response.blob();
}

/** First the small picture, if there is one, then the photo itself. */
async function showLarge(frame, entry, alt) {
  if (entry.thumb && entry.thumb !== "none") put(frame, entry.thumb, alt);
  if (!large.has(entry)) large.set(entry, largeOf(entry));
  const address = await large.get(entry);
  put(frame, address, alt);
  for (const [old, made] of large) {
    if (large.size <= LARGE) break;
    large.delete(old);
    made.then((gone) => URL.revokeObjectURL(gone)); // an image that was read stays
  }
}

async function largeOf(entry) {
  const itself = URL.createObjectURL(entry.file);
  try {
    const image = new Image();
    image.src = itself;
    await image.decode();
    return itself;
  } catch {
    URL.revokeObjectURL(itself);
  }
  try {
    return URL.createObjectURL(await preview(entry));
  } catch {
    return "none";
  }
}

/** Forget the pictures of a photo that is gone. */
export function forget(entry) {
  if (entry.thumb && entry.thumb !== "none") URL.revokeObjectURL(entry.thumb);
  entry.thumb = undefined;
}

/** A frame for a photo of the model's pool, hidden until there is a picture; null where there is none. */
export function poolPicture(model, reference, alt) {
  if (!pools.has(model)) pools.set(model, { hits: 0, misses: 0, found: new Map() });
  const pool = pools.get(model), { number } = reference;
  if (pool.found.get(number) === null || (!pool.found.has(number) && !pool.hits && pool.misses >= MISSES)) return null;
  const frame = make("span", { class: "frame", hidden: true });
  if (!pool.found.has(number)) pool.found.set(number, poolAddress(model, pool, number));
  Promise.resolve(pool.found.get(number)).then((address) => {
    if (address === null) return frame.remove();
    frame.hidden = false;
    return put(frame, address, alt);
  });
  return frame;
}

async function poolAddress(model, pool, number) {
  try {
    const response = await ask(`v1/models/${encodeURIComponent(model)}/pool/${number}`);
    const address = URL.createObjectURL(await response.blob());
    pool.hits++;
    return address;
  } catch (error) {
    if (error.status === 404) {
      pool.misses++;
      pool.found.set(number, null);
    } else pool.found.delete(number); // it may be there the next time
    return null;
  }
}
