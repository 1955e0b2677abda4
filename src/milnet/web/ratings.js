/* The reader's own ratings, 1 to 5 stars, kept by the browser under the digest of a photo's file. */

import { make, remembered } from "./pieces.js";

const KEY = "milnet-ratings";
export const LEVELS = [1, 2, 3, 4, 5];

function kept() {
  try {
    const found = Object.entries(JSON.parse(remembered(KEY) || "{}"));
    return new Map(found.filter(([, stars]) => LEVELS.includes(stars)));
  } catch {
    return new Map();
  }
}
const ratings = kept();

export const ratingOf = (id) => ratings.get(id) ?? null;
export const ratedIds = () => [...ratings.keys()];

/** Set the rating of the photo `id`; null takes it off. */
export function setRating(id, stars) {
  for (const [other, given] of kept()) if (other !== id) ratings.set(other, given); // those of another tab, too
  if (stars === null) ratings.delete(id);
  else ratings.set(id, stars);
  remembered(KEY, JSON.stringify(Object.fromEntries(ratings)));
}

export function forgetRatings() {
  ratings.clear();
  remembered(KEY, "{}");
}

/** Five stars to press. `rate(stars)`: a rating, or null where the one that is set was pressed. */
export function starButtons(photo, rate) {
  const group = make("span", { class: "rating", role: "group", "aria-label": `Your rating of ${photo.name}` });
  for (const n of LEVELS) {
    group.append(make("button", {
      type: "button", class: "give", "aria-label": `${n} star${n === 1 ? "" : "s"}`, "data-stars-given": n,
      title: `Rate it ${n} of 5 (key ${n})`,
      on: { click: (event) => { event.stopPropagation(); rate(ratingOf(photo.entry.id) === n ? null : n); } }
    }));
  }
  group.append(make("span", { class: "whose", "aria-hidden": "true", text: "yours" }));
  group.dataset.rate = photo.entry.id;
  showRating(group);
  return group;
}

function showRating(group) {
  const stars = ratingOf(group.dataset.rate);
  for (const button of group.querySelectorAll("button")) {
    const n = Number(button.dataset.starsGiven);
    button.setAttribute("aria-pressed", String(n === stars));
    button.classList.toggle("on", stars !== null && n <= stars);
    button.textContent = stars !== null && n <= stars ? "\u2605" : "\u2606";
  }
}

/** Show what is set now, wherever stars are. */
export function showRatings() {
  for (const group of document.querySelectorAll("[data-rate]")) showRating(group);
}
