/* The page of `milnet serve`: photos go to the service a few at a time, and each appears as its score comes.

   An entry is one photo: { key, file, path, id, scores (model -> score of the service), failure, size, ... }. The list
   shows those that have a score of the model shown; while another model is chosen, that of before stays in view until
   all have one. */

import { byId, chooseTheme, make, tell, whole } from "./pieces.js";
import { gallery } from "./gallery.js";
import { chosen, dropped } from "./gather.js";
import { forget, look, picture, poolPicture } from "./pictures.js";
import { forgetRatings, LEVELS, ratedIds, ratingOf, setRating, showRatings, starButtons } from "./ratings.js";
import { ask, hasToken, lines, Lost, pause, post, Refused, setToken } from "./service.js";
import { csvOf, percentilesAmong, saveAs } from "./table.js";

const CHUNK = { photos: 8, bytes: 32e6, ids: 64 }; // sent at once
const AT_ONCE = 2;
const PAINT = 300; // milliseconds between two changes of the list, at least
const FEWEST = 10; // ratings
const NAMED = 200; // photos without a score that are named
const { version, needsToken } = document.body.dataset;

let entries = [], nextKey = 1;
const taken = new Map(); // what tells a file from others -> its entry
const byDigest = new Map(); // id -> entry
const leftOut = []; // paths of files that are no photos
let twice = 0; // files that were there already
let models = [], limits = { photos: CHUNK.ids, bytes: Infinity }, firstModel = "";
let shown = null, wanted = null; // the model whose scores are shown, and the one that was chosen
const pools = new Map(); // model -> number -> photo of its pool
const bursts = new Map(); // model -> { of: which photos, found: id -> burst }

const count = (n, what) => `${whole(n)} ${what}${n === 1 ? "" : "s"}`;
const modelOf = (name) => models.find((one) => one.name === name);

/** A text as it can be shown: what a screen has no sign for (line breaks, turned text) as an escape. */
const clean = (text) => text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (c) => (
  c === "\u200c" || c === "\u200d" ? c : `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`
));

let lastSaid = 0;
/** Say something to those who do not see it; `soon`: only if nothing was said for a while. */
function say(text, soon = false) {
  if (soon && Date.now() - lastSaid < 5000) return;
  lastSaid = Date.now();
  byId("said").textContent = text;
}

// ---- what is known of a photo, for the list ----

/** Two digits, more where they decide on which side of the limit it is. */
function shareText(x, limit) {
  const digits = [2, 3, 4].find((n) => (Number(x.toFixed(n)) > limit) === (x > limit));
  return digits === undefined ? String(x) : x.toFixed(digits);
}

function restWords(model, score) {
  const others = model.whole ? model.pool - score.references.length : 0;
  if (!model.exact) return "not explained by leaving one out";
  if (!others) return "the other references";
  if (model.kind === "taste") return `your other rated photos (${whole(others)})`;
  return `the rest of the pool (${whole(others)} photos)`;
}

const about = {
  values: [1, 5], coverage: "90\u00a0%", unlike: 0.97, stars: 5, own: false, far: "", pool: {},
  picture, poolPicture: referencePicture,
  file: (photo) => make("bdi", { text: photo.path }),
};

/** Of a taste the references are photos that were dropped here: those the page shows itself. */
function referencePicture(reference, alt) {
  const entry = byDigest.get(reference.photo);
  return entry ? picture({ entry, key: entry.key }, alt) : poolPicture(shown.name, reference, alt);
}

function aboutModel(model) {
  const own = model.kind === "taste";
  if (!pools.has(model.name)) pools.set(model.name, {});
  Object.assign(about, {
    values: model.values, coverage: `${Math.round(100 * model.coverage)}\u00a0%`, unlike: model.unlike_limit,
    stars: model.stars.length + 1, own, pool: pools.get(model.name),
    far: own ? "unlike any photo you rated" : "unlike anything it learned from",
  });
}

const fileName = (path) => path.slice(path.lastIndexOf("/") + 1);
const folderName = (path) => path.slice(0, path.lastIndexOf("/") + 1);

/** The folders that all paths begin with. */
function sharedFolder(paths) {
  return paths.map(folderName).reduce((a, b) => {
    while (!b.startsWith(a)) a = a.slice(0, a.lastIndexOf("/", a.length - 2) + 1);
    return a;
  });
}

/** The scored photos as the list takes them, the best first; one that is as it was is the same object. */
function listed() {
  const there = entries.filter((entry) => entry.scores.has(shown.name));
  if (!there.length) return [];
  const shared = sharedFolder(there.map(({ path }) => path)), names = new Map(), sizes = new Map();
  const found = bursts.get(shown.name)?.found || new Map();
  for (const entry of there) {
    const name = fileName(entry.path), burst = found.get(entry.id);
    names.set(name, (names.get(name) || 0) + 1);
    if (burst) sizes.set(burst.group, (sizes.get(burst.group) || 0) + 1);
  }
  const among = shown.stars_of === "folder_percentile"
    ? percentilesAmong(there.map((entry) => entry.scores.get(shown.name).score)) : null;
  const photos = there.map((entry) => {
    const score = entry.scores.get(shown.name), name = fileName(entry.path), burst = found.get(entry.id);
    const folder = names.get(name) > 1 ? clean(folderName(entry.path).slice(shared.length)) : "";
    const stars = among ? starsAmong(among(score.score)) : score.stars;
    const placed = burst ? {
      number: burst.group, rank: burst.rank, size: Math.max(sizes.get(burst.group), burst.rank || 0), keep: burst.keep
    } : null;
    const said = [shown.name, folder, stars, placed && Object.values(placed)].join();
    if (entry.said !== said) {
      entry.said = said;
      entry.photo = {
        key: entry.key, entry, name: clean(name), folder, path: clean(entry.path), score: score.score, low: score.low,
        high: score.high, spread: score.spread, percentile: score.percentile, stars, unlike: score.unlike,
        unlike_text: score.unlike === null ? null : shareText(score.unlike, shown.unlike_limit),
        outside: score.outside, votes: score.distribution, base: score.base, own: score.own,
        references: score.references.map(({ number, similarity, influence }) => [number, similarity, influence]),
        rest: score.rest, rest_text: restWords(shown, score), signals: score.signals, burst: placed,
      };
    }
    entry.photo.rating = ratingOf(entry.id);
    return entry.photo;
  });
  return photos.sort((a, b) => b.score - a.score || (a.path < b.path ? -1 : 1));
}

const starsAmong = (percentile) => (
  percentile === null ? null : 1 + shown.stars.filter((limit) => percentile >= limit).length
);

const list = gallery(about, {
  more: {
    tile: (photo) => (teaching() ? starButtons(photo, (stars) => rate(photo, stars)) : null),
    height: () => (teaching() ? 2.2 : 0),
    face: (photo) => make("p", { class: "yours" }, "Your rating: ", starButtons(photo, (stars) => rate(photo, stars))),
    columns: () => (teaching() ? [{
      label: "Your rating", key: "rating", width: "10rem", least: 560,
      cell: (photo) => starButtons(photo, (stars) => rate(photo, stars))
    }] : []),
    quantities: () => [{ key: "rating", label: "Your rating", digits: 0 }],
    key: rateByKey,
    aside: () => byId("token").open,
    applied: showSaving,
    painted: look,
  }
});

let painting = null;
/** Show what has changed, a few times a second at most. */
function changed() {
  if (painting) return;
  painting = setTimeout(() => {
    painting = null;
    showAll();
  }, PAINT);
}

function showAll() {
  clearTimeout(painting);
  painting = null;
  list.update(listed(), { quiet: Boolean(run) });
  byId("none").hidden = entries.some((entry) => entry.scores.has(shown.name));
  document.body.classList.toggle("empty", !entries.length);
  showFailures();
  showRated();
}

// ---- photos that cannot be scored, and files that are no photos ----

let failuresSaid = "";
function showFailures() {
  const failed = entries.filter((entry) => entry.failure);
  const said = [failed.length, failed.at(-1)?.key, leftOut.length, twice].join();
  if (said === failuresSaid) return;
  failuresSaid = said;
  const line = (path, reason) => make("li", {}, make("b", {}, make("bdi", { text: clean(path) })), make("span", {
    text: clean(reason)
  }));
  const rest = (n) => (n > NAMED ? [make("li", { text: `and ${count(n - NAMED, "other")}` })] : []);
  byId("failures").hidden = !failed.length;
  tell(byId("failed-count"), `${count(failed.length, "photo")} could not be scored`);
  byId("failed-list").replaceChildren(
    ...failed.slice(0, NAMED).map((entry) => line(entry.path, entry.failure)), ...rest(failed.length)
  );
  byId("others").hidden = !leftOut.length;
  tell(byId("others-count"), `${count(leftOut.length, "file")} left out: no photos that are known here`);
  byId("others-list").replaceChildren(
    ...leftOut.slice(0, NAMED).map((path) => make("li", {}, make("bdi", { text: clean(path) }))),
    ...rest(leftOut.length)
  );
  byId("twice").hidden = !twice;
  tell(byId("twice"), `${count(twice, "file")} had been there already, and ${twice === 1 ? "is" : "are"} shown once.`);
}

// ---- new photos ----

function take({ photos, others }) {
  let fresh = 0;
  for (const { file, path } of photos) {
    const mark = [path, file.size, file.lastModified].join("|"), before = taken.get(mark);
    if (before && !before.failure) {
      twice++;
      continue;
    }
    if (before) entries = entries.filter((entry) => entry !== before); // it failed: once more
    const entry = { key: nextKey++, mark, file, path, id: null, scores: new Map(), failure: null };
    if (file.size > limits.bytes) {
      entry.failure = `is larger than ${whole(Math.round(limits.bytes / 1e6))} MB, the most the service takes`;
    } else if (!file.size) entry.failure = "is an empty file";
    taken.set(mark, entry);
    entries.push(entry);
    if (!entry.failure) fresh++;
  }
  for (const path of others) if (!leftOut.includes(path)) leftOut.push(path);
  if (!photos.length) say(others.length ? `No photos among ${count(others.length, "file")}` : "No files");
  else if (fresh) say(`${count(fresh, "photo")} added`);
  if (fresh) start();
  showAll();
}

/** Take a photo off the list, as if it had not come. */
function drop(entry) {
  entries = entries.filter((other) => other !== entry);
  taken.delete(entry.mark);
  if (entry.id && byDigest.get(entry.id) === entry) byDigest.delete(entry.id);
  forget(entry);
}

// ---- sending ----

let run = null; // { stop: AbortController, done, total, began, lost } while photos are being scored

const open = (entry) => !entry.failure && !entry.scores.has(wanted.name);
const left = () => entries.filter((entry) => open(entry));

/** The next photos to send: by their ids, where the service has seen them, else a few files. */
function nextChunk() {
  const waiting = left().filter((entry) => entry.away !== run);
  const known = waiting.filter((entry) => entry.id && !entry.unknown);
  if (known.length) return known.slice(0, Math.min(CHUNK.ids, limits.photos));
  const chunk = [];
  let bytes = 0;
  for (const entry of waiting) {
    if (chunk.length && (chunk.length >= CHUNK.photos || chunk.length >= limits.photos || entry.alone
      || chunk[0].alone || bytes + entry.file.size > CHUNK.bytes)) break;
    chunk.push(entry);
    bytes += entry.file.size;
  }
  return chunk;
}

/** Score what has no score yet. */
function start() {
  const waiting = left().length;
  if (!waiting) return finish();
  if (run) {
    run.total = run.done + waiting;
    fillLanes();
    return showProgress();
  }
  run = { stop: new AbortController(), done: 0, total: waiting, began: performance.now(), lanes: 0, words: "" };
  byId("stopped").hidden = true;
  fillLanes();
  return showProgress();
}

function fillLanes() {
  for (let i = run.lanes; i < AT_ONCE; i++) lane(run);
}

async function lane(mine) {
  mine.lanes++;
  try {
    for (;;) {
      const chunk = mine.error || mine !== run ? [] : nextChunk();
      if (!chunk.length) break;
      for (const entry of chunk) entry.away = mine;
      try {
        await send(chunk, mine);
      } finally {
        for (const entry of chunk) if (entry.away === mine) entry.away = null;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") mine.error ||= error;
  }
  mine.lanes--;
  if (mine === run && !mine.lanes) ended(mine);
}

/** Send these photos until the service takes them, and read what it says of each. */
async function send(chunk, mine) {
  const byId_ = Boolean(chunk[0].id && !chunk[0].unknown), { signal } = mine.stop;
  const path = `v1/explain?model=${encodeURIComponent(wanted.name)}`, model = wanted.name;
  const accept = { Accept: "application/x-ndjson" };
  for (;;) {
    try {
      let response;
      if (byId_) response = await post(path, { ids: chunk.map(({ id }) => id) }, { signal, headers: accept });
      else {
        const form = new FormData();
        for (const entry of chunk) form.append("photos", entry.file, entry.path);
        response = await ask(path, { method: "POST", body: form, signal, headers: accept });
      }
      mine.words = "";
      const answered = new Set();
      for await (const line of lines(response)) {
        const said = line.score || line.failure, entry = said && chunk[said.index];
        if (!entry) continue;
        answered.add(entry);
        if (line.score) scored(entry, line.score, model);
        else failed(entry, line.failure);
        if (!open(entry)) mine.done++;
        showProgress();
        changed();
      }
      if (answered.size < chunk.length) throw new Lost("the answer ended early");
      return;
    } catch (error) {
      if (!(error instanceof Refused)) {
        if (error instanceof Lost && !byId_) await readable(chunk, mine);
        throw error;
      }
      if (error.wait !== null) {
        mine.words = `The service is busy: going on in ${count(Math.ceil(error.wait), "second")}`;
        showProgress();
        await pause(error.wait, signal);
      } else if (error.status === 422 && error.problem.failures) {
        for (const failure of error.problem.failures) failed(chunk[failure.index], failure);
        mine.done += chunk.filter((entry) => !open(entry)).length;
        return;
      } else if ([400, 413, 415, 422].includes(error.status)) {
        if (byId_) for (const entry of chunk) entry.unknown = true;
        else if (chunk.length > 1) for (const entry of chunk) entry.alone = true; // which one is it?
        else {
          failed(chunk[0], { reason: error.message });
          mine.done++;
        }
        return;
      } else throw error;
    }
  }
}

/** A request fails as a whole where a file cannot be read any more: find out whether that is why. */
async function readable(chunk, mine) {
  for (const entry of chunk) {
    try {
      await entry.file.slice(0, 1).arrayBuffer();
    } catch {
      failed(entry, { reason: "cannot be read: it was changed, moved or removed since it was dropped here" });
      mine.done++;
    }
  }
  if (chunk.some((entry) => entry.failure) && chunk.some(open)) await send(chunk.filter(open), mine);
}

function scored(entry, score, model) {
  const same = byDigest.get(score.id);
  if (same && same !== entry) { // the same file under two names
    twice++;
    same.scores.set(model, score);
    entries = entries.filter((other) => other !== entry);
    taken.set(entry.mark, same);
    entry.failure = "is there twice"; // so that it is not sent again
    return;
  }
  entry.id = score.id;
  entry.unknown = false;
  byDigest.set(score.id, entry);
  entry.scores.set(model, score);
  if (score.signals) entry.size = { width: score.signals.width, height: score.signals.height };
  if (!pools.has(model)) pools.set(model, {});
  const pool = pools.get(model);
  for (const { id, number, votes, photo } of score.references) {
    const here = photo && byDigest.get(photo);
    pool[number] ||= { name: clean(here ? fileName(here.path) : id), votes, number, photo };
  }
}

function failed(entry, failure) {
  if (failure.unknown) entry.unknown = true; // the service has forgotten it: it is sent again
  else entry.failure = failure.reason;
}

/** All lanes of a run have come to their end. */
function ended(mine) {
  if (mine.stop.signal.aborted) return; // cancel() has said so
  run = null;
  if (mine.error) {
    const { error } = mine, missing = left().length;
    if (error instanceof Refused && error.status === 401) askToken("The service wants its token again.");
    const why = error instanceof Lost ? "The connection to the service was lost." : error.message;
    tell(byId("stopped-words"), `${why} `
      + `${count(missing, "photo")} ${missing === 1 ? "is" : "are"} not scored yet.`);
    byId("stopped").hidden = false;
    say(byId("stopped-words").textContent);
    showProgress();
    return showAll();
  }
  const seconds = (performance.now() - mine.began) / 1000;
  say(`Done: ${count(mine.done, "photo")} in ${Math.max(1, Math.round(seconds))} seconds`);
  return finish();
}

/** Everything that can have a score has one. */
function finish() {
  if (shown !== wanted) {
    shown = wanted;
    aboutModel(shown);
    showModel();
  }
  showProgress();
  showAll();
  findBursts();
}

/** Stop what is under way; whatever has no score yet keeps waiting. */
function halt() {
  const mine = run;
  run = null;
  mine?.stop.abort();
}

function cancel() {
  halt();
  wanted = shown;
  showModels();
  const gone = left();
  for (const entry of gone) if (!entry.scores.size) drop(entry);
  say(`Stopped. ${count(gone.length, "photo")} were not scored.`);
  finish();
}

/** Go on after what stopped it; a service that was started anew may have other models. */
async function again() {
  byId("again").disabled = true;
  try {
    await loadModels();
    byId("stopped").hidden = true;
    start();
  } catch (error) {
    if (error.status === 401) askToken("The service wants its token again.");
    const words = error instanceof Lost ? "The service still does not answer. Is it running?" : error.message;
    tell(byId("stopped-words"), words);
    say(words);
  }
  byId("again").disabled = false;
}

function showProgress() {
  byId("progress").hidden = !run;
  document.title = run ? `${run.done} of ${run.total} \u2013 milnet` : "milnet";
  if (!run) return;
  const { done, total, began, words } = run, seconds = (performance.now() - began) / 1000;
  const rate = seconds > 0.5 && done ? done / seconds : 0, bar = byId("bar");
  const doing = shown !== wanted ? `Scoring with ${wanted.name}: ` : "";
  const speed = rate ? `, ${rate.toFixed(rate < 10 ? 1 : 0)} photos a second, ${timeLeft((total - done) / rate)}` : "";
  tell(byId("progress-words"), words || `${doing}${whole(done)} of ${whole(total)}${speed}`);
  bar.setAttribute("aria-valuenow", String(total ? Math.round((100 * done) / total) : 0));
  bar.setAttribute("aria-valuetext", `${done} of ${total} photos`);
  bar.firstElementChild.style.width = `${total ? (100 * done) / total : 0}%`;
  say(`${done} of ${total} photos`, true);
}

const timeLeft = (seconds) => (
  seconds < 90 ? `${Math.max(1, Math.ceil(seconds))} s left` : `about ${Math.ceil(seconds / 60)} min left`
);

/** Ask which photos were taken right after each other, once all are scored. */
async function findBursts() {
  const model = shown.name, there = entries.filter((entry) => entry.scores.has(model)).map(({ id }) => id);
  const of = there.join();
  if (there.length < 2 || bursts.get(model)?.of === of) return;
  try {
    const answer = await (await post(`v1/bursts?model=${encodeURIComponent(model)}`, { ids: there })).json();
    bursts.set(model, { of, found: new Map(answer.bursts.map((one) => [one.id, one])) });
    changed();
  } catch (error) {
    if (error.name !== "AbortError") say("Bursts could not be found.");
  }
}

// ---- models ----

function showModels() {
  byId("model").replaceChildren(...models.map(({ name, kind }) => make("option", {
    value: name, text: kind === "taste" ? `${name} (your taste)` : name
  })));
  byId("model").value = wanted.name;
  byId("model-field").hidden = models.length < 2;
  showTastes();
}

function showModel() {
  const own = shown.kind === "taste";
  tell(byId("title"), `What ${own ? "you" : "people"} would say about your photos`);
  tell(byId("introduction"), shown.introduction.replaceAll("`", ""));
  byId("model").value = wanted.name;
}

function choose(name) {
  halt();
  byId("stopped").hidden = true;
  wanted = modelOf(name);
  byId("model").value = name;
  showTastes();
  start();
}

async function loadModels() {
  const answer = await (await ask("v1/models")).json();
  ({ models } = answer);
  limits = { ...limits, ...answer.limits };
  firstModel = answer.default;
  wanted = modelOf(wanted?.name) || modelOf(firstModel);
  shown = modelOf(shown?.name) || wanted;
  aboutModel(shown);
  showModels();
  showModel();
}

// ---- the reader's taste ----

const teaching = () => !byId("teach").hidden;
const ratedHere = () => entries.filter((entry) => entry.id && ratingOf(entry.id) !== null);

function rate(photo, stars) {
  setRating(photo.entry.id, stars);
  photo.rating = stars;
  showRatings();
  showRated();
  const given = stars === null ? "no rating" : count(stars, "star");
  say(`${photo.name}: ${given}. ${whole(ratedHere().length)} rated.`);
  changed();
}

function rateByKey(event, photo, letters) {
  if (!letters || !teaching() || !photo) return false;
  const stars = Number(event.key);
  if (event.key === "0" || event.key === "Backspace") rate(photo, null);
  else if (event.key.trim() && LEVELS.includes(stars)) rate(photo, stars);
  else return false;
  return true;
}

function toggleTeach() {
  const now = byId("teach").hidden;
  byId("teach").hidden = !now;
  byId("teach-toggle").setAttribute("aria-expanded", String(now));
  document.body.classList.toggle("teaching", now);
  list.renew();
  showRated();
  if (now) byId("teach-title").focus();
}

function showRated() {
  const here = ratedHere(), away = ratedIds().filter((id) => !byDigest.has(id)).length, n = here.length;
  tell(byId("rated-go"), `${whole(n)} rated`);
  tell(byId("rated"), `${whole(n)} rated; ${FEWEST} are the least, 30 to 100 are good.`);
  byId("rated-bar").value = Math.min(n, 100);
  byId("rated-away").hidden = !away;
  tell(byId("rated-away"), `${count(away, "rating")} of photos that are not here now ${away === 1 ? "is" : "are"} `
    + "kept: drop those photos again to use them.");
  byId("learn").disabled = n < FEWEST || Boolean(learning);
  tell(byId("learn"), learning ? "Learning\u2026" : n < FEWEST ? `Rate ${whole(FEWEST - n)} more`
    : `Learn from ${whole(n)} ratings`);
  byId("save-ratings").disabled = !n;
  byId("forget-ratings").disabled = !n && !away;
}

let learning = null;

async function learn() {
  learning = new AbortController();
  showRated();
  tell(byId("learn-words"), "");
  try {
    await teach(learning.signal);
  } catch (error) {
    if (error.status === 401) askToken("The service wants its token again.");
    const words = error instanceof Lost ? "The connection to the service was lost: try again." : error.message;
    tell(byId("learn-words"), words);
    say(words);
  }
  learning = null;
  showRated();
}

/** Send the ratings, and first the photos that the service has forgotten; show what came of it. */
async function teach(signal) {
  const base = wanted.kind === "model" ? wanted.name : firstModel;
  const name = byId("taste-name").value.trim(), rated = ratedHere();
  const data = {
    ...(name ? { name } : {}), model: base, ratings: rated.map(({ id }) => ({ id, rating: ratingOf(id) }))
  };
  for (let tries = 0; ; tries++) {
    try {
      const taste = await (await post("v1/tastes", data, { signal })).json();
      models = [...models.filter((one) => one.name !== taste.name), taste];
      showModels();
      say(`${taste.name} is ready. ${taste.checked?.verdict || ""}`);
      byId("tastes").querySelector("li:last-child button")?.focus();
      return;
    } catch (error) {
      const missing = error.status === 409 && error.problem.missing;
      if (missing && tries < 5) await sendAgain(missing.map((id) => byDigest.get(id)).filter(Boolean), signal);
      else if (error.wait) {
        tell(byId("learn-words"), "Another taste is being learned: waiting for it.");
        await pause(error.wait, signal);
      } else throw error;
    }
  }
}

async function sendAgain(missing, signal) {
  for (let i = 0; i < missing.length; i += CHUNK.photos) {
    tell(byId("learn-words"), `Sending ${whole(missing.length - i)} photos again`);
    const form = new FormData();
    for (const { file, path } of missing.slice(i, i + CHUNK.photos)) form.append("photos", file, path);
    try {
      await ask("v1/score", { method: "POST", body: form, signal });
    } catch (error) {
      if (!error.wait) throw error;
      await pause(error.wait, signal);
      i -= CHUNK.photos;
    }
  }
  tell(byId("learn-words"), "");
}

const correlation = (x) => (x === null || x === undefined ? "\u2013" : x.toFixed(2).replace("-", "\u2212"));

function showTastes() {
  const tastes = models.filter(({ kind }) => kind === "taste");
  byId("tastes-part").hidden = !tastes.length;
  byId("tastes").replaceChildren(...tastes.map((taste) => {
    const { checked, name } = taste, used = wanted === taste;
    const fact = (what, value) => make("div", {}, make("dt", { text: what }), make("dd", { text: correlation(value) }));
    return make("li", {},
      make("h4", {}, make("bdi", { text: name }), make("span", {
        class: "soft", text: ` from ${whole(taste.pool)} ratings`
      })),
      checked ? make("p", {
        class: checked.beats ? "verdict-of good" : "verdict-of",
        text: `${checked.verdict[0].toUpperCase()}${checked.verdict.slice(1)}.`
      }) : null,
      checked ? make("dl", { class: "details" }, fact("What people say", checked.general),
        fact("Your ratings alone", checked.alone), fact("Both together: this taste", checked.both)) : null,
      make("p", { class: "buttons" },
        make("button", {
          type: "button", class: "primary", text: used ? "In use" : "Use it", disabled: used,
          "aria-label": `${used ? "In use" : "Use it"}: ${name}`, on: { click: () => choose(name) }
        }),
        used ? make("button", {
          type: "button", text: `Back to ${firstModel}`, on: { click: () => choose(firstModel) }
        }) : null,
        make("button", {
          type: "button", text: "Download (zip)", "aria-label": `Download ${name} (zip)`,
          hidden: !taste.removable, on: { click: () => download(name) }
        }),
        make("button", {
          type: "button", text: "Remove", "aria-label": `Remove ${name}`, hidden: !taste.removable,
          on: { click: () => remove(name) }
        })));
  }));
}

async function download(name) {
  try {
    const response = await ask(`v1/tastes/${encodeURIComponent(name)}/download`);
    saveAs(`${name.replace(/[^\p{L}\p{N}._-]+/gu, "-")}.zip`, await response.blob());
  } catch (error) {
    tell(byId("learn-words"), error instanceof Lost ? "The connection to the service was lost." : error.message);
  }
}

async function remove(name) {
  try {
    await ask(`v1/tastes/${encodeURIComponent(name)}`, { method: "DELETE" });
  } catch (error) {
    if (error.status !== 404) return tell(byId("learn-words"), error.message);
  }
  for (const entry of entries) entry.scores.delete(name);
  models = models.filter((one) => one.name !== name);
  pools.delete(name);
  bursts.delete(name);
  if (wanted.name === name || shown.name === name) {
    wanted = modelOf(firstModel);
    if (!left().length) shown = wanted;
    else shown = models.find((one) => entries.some((entry) => entry.scores.has(one.name))) || wanted;
    aboutModel(shown);
    showModel();
  }
  showModels();
  say(`${name} was removed.`);
  byId("teach-title").focus();
  return start();
}

function saveRatings() {
  const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const rows = ratedHere().map(({ id, path }) => `${quoted(path)},${ratingOf(id)}\n`);
  saveAs("ratings.csv", new Blob(["photo,rating\n", ...rows], { type: "text/csv" }));
}

/** Ratings cannot be brought back: it takes two presses. */
function forgetAll() {
  const button = byId("forget-ratings");
  if (!button.dataset.asked) {
    button.dataset.asked = "yes";
    button.textContent = "Press again to forget all";
    button.addEventListener("blur", () => {
      delete button.dataset.asked;
      button.textContent = "Forget all ratings";
    }, { once: true });
    return;
  }
  forgetRatings();
  showRatings();
  showAll();
  say("All ratings are forgotten.");
  byId("teach-title").focus();
}

// ---- scores as a file ----

/** What can be saved: the photos shown, and all where those are not all. */
function showSaving() {
  const photos = list.order().length, all = entries.filter((entry) => entry.scores.has(shown.name)).length;
  byId("csv").disabled = !photos;
  byId("csv-all").hidden = photos === all;
  tell(byId("csv-all"), `Scores of all ${whole(all)} (CSV)`);
}

function saveScores(all) {
  const there = entries.filter((entry) => entry.scores.has(shown.name));
  const among = percentilesAmong(there.map((entry) => entry.scores.get(shown.name).score));
  const rows = (all ? there : list.order().map(({ entry }) => entry)).map((entry) => {
    const score = entry.scores.get(shown.name);
    return {
      path: entry.path, score, stars: entry.photo.stars, folderPercentile: among(score.score), burst: entry.photo.burst
    };
  });
  const { values, digest } = shown;
  saveAs("scores.csv", new Blob([csvOf(rows, { values, digest, version })], { type: "text/csv" }));
}

// ---- the token ----

function askToken(words) {
  tell(byId("token-words"), words);
  byId("token-words").hidden = !words;
  if (!byId("token").open) byId("token").showModal();
  byId("token-field").focus();
}

async function useToken(event) {
  event.preventDefault();
  const text = byId("token-field").value.trim();
  if (!text || /[^\x21-\x7e]/.test(text)) return askToken("A token is one word of plain letters, digits and signs.");
  setToken(text);
  try {
    await loadModels();
  } catch (error) {
    setToken("");
    return askToken(
      error.status === 401 || error.status === 403 ? "This is not the token of this service." : error.message
    );
  }
  byId("token-field").value = "";
  byId("token").close();
  byId("page").hidden = false;
  byId("files").focus();
  return left().length ? again() : undefined;
}

// ---- begin ----

function listen() {
  chooseTheme(byId("theme"));
  document.querySelector(".tools").hidden = false;
  byId("files").addEventListener("click", () => byId("files-input").click());
  byId("folder").addEventListener("click", () => byId("folder-input").click());
  for (const id of ["files-input", "folder-input"]) {
    byId(id).addEventListener("change", (event) => {
      take(chosen(event.target.files));
      event.target.value = ""; // so that the same can be chosen again
    });
  }
  let inside = 0; // elements that a drag has entered and not left
  const over = (now) => {
    inside = now;
    document.body.classList.toggle("dragging", now > 0);
  };
  const files = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  window.addEventListener("dragenter", (event) => { if (files(event)) over(inside + 1); });
  window.addEventListener("dragleave", (event) => { if (files(event)) over(Math.max(0, inside - 1)); });
  window.addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
  window.addEventListener("drop", async (event) => {
    if (!files(event)) return;
    event.preventDefault();
    over(0);
    if (ready()) take(await dropped(event.dataTransfer));
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length && ready()) take(chosen(event.clipboardData.files));
  });
  byId("cancel").addEventListener("click", cancel);
  byId("again").addEventListener("click", again);
  byId("reload").addEventListener("click", begin);
  byId("model").addEventListener("change", (event) => choose(event.target.value));
  byId("teach-toggle").addEventListener("click", toggleTeach);
  byId("teach-close").addEventListener("click", () => {
    toggleTeach();
    byId("teach-toggle").focus();
  });
  byId("rated-go").addEventListener("click", () => {
    byId("teach").scrollIntoView({ block: "center" });
    byId(byId("learn").disabled ? "teach-title" : "learn").focus({ preventScroll: true });
  });
  new IntersectionObserver(([{ isIntersecting }]) => {
    byId("rated-go").hidden = isIntersecting || !teaching();
  }).observe(byId("teach"));
  byId("learn").addEventListener("click", learn);
  byId("save-ratings").addEventListener("click", saveRatings);
  byId("forget-ratings").addEventListener("click", forgetAll);
  byId("csv").addEventListener("click", () => saveScores(false));
  byId("csv-all").addEventListener("click", () => saveScores(true));
  byId("token-form").addEventListener("submit", useToken);
  byId("token").addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without it
  byId("where").textContent = location.host;
  window.addEventListener("beforeunload", (event) => { if (run) event.preventDefault(); });
}

/** Whether photos can be taken: the models are known. */
const ready = () => shown !== null;

async function begin() {
  byId("away").hidden = true;
  if (needsToken === "true" && !hasToken()) return askToken("");
  try {
    await loadModels();
  } catch (error) {
    if (error.status === 401) return askToken(hasToken() ? "This is not the token of this service." : "");
    tell(byId("away-words"), error instanceof Lost ? "The service does not answer. Is `milnet serve` still running?"
      : error.message);
    byId("away").hidden = false;
    return undefined;
  }
  byId("page").hidden = false;
  return undefined;
}

listen();
begin();
