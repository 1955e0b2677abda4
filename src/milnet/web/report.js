/* The entry of a report.

   All data come from blocks of the same file: `report-data` (JSON), `picture-N` and `pool-N` (addresses of pictures).
   This script stands before the pictures, so it runs while they are still being read. */

import { byId, chooseTheme, make } from "./pieces.js";
import { gallery } from "./gallery.js";

const waiting = new Map(); // frames whose picture has not been read yet -> how to fill them
const reading = () => document.readyState === "loading";

/** Put the picture that the block `source` holds into `frame` once it is read; else `none`, or take the frame away. */
function fill(frame, source, alt, none) {
  const holder = byId(source);
  if (reading() && !(holder && holder.nextElementSibling)) { // the last block may be there in part
    waiting.set(frame, () => fill(frame, source, alt, none));
    if (waiting.size === 1) requestAnimationFrame(again);
  } else if (holder && holder.textContent) {
    frame.replaceChildren(make("img", { src: holder.textContent, alt, decoding: "async", draggable: "false" }));
  } else if (none) frame.replaceChildren(make("span", { class: "none", text: none }));
  else {
    frame.remove();
    return false;
  }
  return true;
}

function again() {
  const fills = [...waiting.values()];
  waiting.clear();
  for (const one of fills) one();
}

/** Beside its name a picture needs no text of its own; alone it has one. */
function picture(photo, alt = "") {
  const frame = make("span", { class: "frame" });
  fill(frame, `picture-${photo.key}`, alt, "No picture: the file cannot be read any more.");
  return frame;
}

function poolPicture(reference, alt) {
  if (reference.picture === null) return null;
  const frame = make("span", { class: "frame" });
  const there = fill(frame, `pool-${reference.picture}`, alt);
  return there ? frame : null;
}

function file(photo) {
  const path = make("bdi", { text: photo.path });
  return photo.file ? make(
    "a", { href: photo.file, target: "_blank", rel: "noopener noreferrer", title: "Open the photo itself" }, path
  ) : path;
}

function beginReport() {
  document.addEventListener("DOMContentLoaded", again);
  const report = JSON.parse(byId("report-data").textContent);
  report.photos.forEach((photo, i) => { photo.key = i + 1; });
  const list = gallery({ ...report, picture, poolPicture, file }, { view: report.view, most: report.full });
  list.update(report.photos);
  list.route();
}

chooseTheme(byId("theme"));
document.querySelector(".tools").hidden = false;
if (byId("app")) beginReport(); // there are photos
