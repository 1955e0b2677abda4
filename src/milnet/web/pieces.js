/* Pieces that show what is known of a photo: numbers, bars, tables, words.

   `about` is what is known of the model: `values` of its scale, `coverage` of the interval in words, limit `unlike`,
   how many `stars` there can be, `own`: whether it is one person's taste, `far`: words for a photo outside its pool,
   `pool`: number -> { name, votes } of a rated photo. It also makes pictures: `picture(photo, alt, large)` is a frame,
   `poolPicture(reference, alt)` a frame or null. Every text is set as text, never as markup. */

export const byId = (id) => document.getElementById(id);
const MINUS = "\u2212";

// ---- elements ----

/** An element; of the properties `class`, `text` and `on` (events) are special, the rest are attributes. */
export function make(tag, properties = {}, ...children) {
  return dress(document.createElement(tag), properties, children);
}

export function draw(tag, properties = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function dress(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set a text, where it is another: so nothing is read aloud or laid out twice. */
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A photo's name; where others have the same, behind the folders in which they differ. */
export const nameOf = (photo) => [
  ...(photo.folder ? [make("span", { class: "within" }, make("bdi", { text: photo.folder }))] : []),
  make("bdi", { text: photo.name })
];

/** Numbers as they are written everywhere. */
export const fixed = (x, digits) => (x === null ? "\u2013" : x.toFixed(digits).replace("-", MINUS));
export const whole = (x) => x.toLocaleString("en");
export function signed(x, digits = 3) {
  const text = Math.abs(x).toFixed(digits);
  return Number(text) === 0 ? text : (x > 0 ? "+" : MINUS) + text;
}

/** A percentile; more digits where it would look like all or none of the pool: "100" means all. */
export function percentileText(x) {
  const digits = [0, 1, 2].find(
    (n) => (Number(x.toFixed(n)) === 100) === (x === 100) && (Number(x.toFixed(n)) === 0) === (x === 0)
  );
  return digits === undefined ? (x > 50 ? "99.99" : "0.01") : x.toFixed(digits);
}

/** What the reader chose is kept where the browser allows it. */
export function remembered(key, value) {
  try {
    if (value === undefined) return localStorage.getItem(key);
    localStorage.setItem(key, value);
  } catch { /* a browser that keeps nothing: the choice holds until the page is closed */ }
  return null;
}

// ---- light or dark ----

const THEMES = { auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" };

/** Make `button` turn between the system's colours, light and dark ones; the choice is kept. */
export function chooseTheme(button) {
  const key = "milnet-report-theme", kept = remembered(key), names = Object.keys(THEMES);
  const set = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = THEMES[theme];
    button.dataset.now = theme;
  };
  set(kept in THEMES ? kept : "auto");
  button.addEventListener("click", () => {
    const next = names[(names.indexOf(button.dataset.now) + 1) % names.length];
    set(next);
    remembered(key, next);
  });
}

// ---- words for the model's pool, and the scale ----

export const poolOf = ({ own }) => (own ? "the photos you rated" : "the pool\u2019s photos");
const ownOf = ({ own }) => (own ? "what people in general say of it, on your scale" : "what the photo itself adds");
const endsOf = ({ values }) => [values[0], values[values.length - 1]];

// ---- pieces of a photo ----

export const starSigns = (about, n) => "\u2605".repeat(n) + "\u2606".repeat(about.stars - n);
export const starWords = (about, n) => `${n} of ${about.stars} stars`;
export const burstWords = ({ number, rank, size, keep }) =>
  `burst ${number}: ${rank === null ? size + " photos" : `${rank} of ${size}`}${keep ? ", keep" : ""}`;
export const farWhy = (about) =>
  `Hardly one of ${poolOf(about)} is so far from the others: trust neither score nor interval`;

export function rankWords(about, { percentile }) {
  const text = percentileText(percentile);
  const part = percentile === 100 ? "all" : percentile === 0 ? "none" : `${text}\u00a0%`;
  return `Percentile ${text}: scores higher than ${part} of ${poolOf(about)}.`;
}

/** Score and interval on the scale of the values, as a line with a band and a dot. */
export function strip(about, photo) {
  const [first, last] = endsOf(about);
  const at = (x) => `${Math.min(100, Math.max(0, (100 * (x - first)) / (last - first))).toFixed(2)}%`;
  const line = make("span", {
    class: "strip", "aria-hidden": "true",
    title: `Dot: score ${fixed(photo.score, 2)} on a scale of ${first} to ${last}.` + (photo.width === null ? ""
      : ` Band: ${about.coverage} interval, ${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}.`)
  });
  if (photo.width !== null) {
    const band = make("i");
    band.style.left = at(photo.low);
    band.style.width = `calc(${at(photo.high)} - ${at(photo.low)})`;
    line.append(band);
  }
  const dot = make("i", { class: "dot" });
  dot.style.left = at(photo.score);
  line.append(dot);
  return line;
}

/** What marks a photo. `press(number)`: shows a burst alone, where that can be done. */
export function badges(about, photo, press) {
  const found = [];
  if (photo.burst) {
    const words = burstWords(photo.burst);
    found.push(press
      ? make("button", {
        type: "button", class: `badge${photo.burst.keep ? " keep" : ""}`, text: words,
        title: "Show this burst alone", on: { click: () => press(photo.burst.number) }
      })
      : make("span", { class: `badge${photo.burst.keep ? " keep" : ""}`, text: words }));
  }
  if (photo.outside) found.push(make("span", { class: "badge warn", title: farWhy(about), text: about.far }));
  return found;
}

const inWords = ({ values }, numbers) => values.map((value, i) => `${value}: ${numbers[i]}`).join(", ");
const units = (x) => x.toFixed(1).replace(/\.0$/, "");

/** The predicted distribution as bars, the values below, and the score with its interval on the same axis. */
export function chart(about, photo) {
  const { values } = about, first = values[0];
  const WIDTH = 360, TOP = 20, BASE = 112, LINE = 146; // its own units; y grows downwards
  const count = values.length, slot = WIDTH / count, most = Math.max(...photo.votes, 1e-9);
  const every = Math.ceil(count / 12); // so that the numbers below do not touch each other
  const at = (x) => slot * (0.5 + (x - first) / (values[1] - first));
  const shares = photo.votes.map((share) => `${(100 * share).toFixed(0)} %`);
  const svg = draw("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${LINE + 10}`, role: "img",
    "aria-label": `Predicted ${about.own ? "ratings" : "votes"} by value: ${inWords(about, shares)}`
  });
  photo.votes.forEach((share, i) => {
    const height = ((BASE - TOP) * share) / most, middle = units(slot * (i + 0.5));
    svg.append(draw("rect", {
      class: "bar-of", x: units(slot * (i + 0.14)), y: units(BASE - height),
      width: units(slot * 0.72), height: units(height), rx: 2
    }));
    if (count <= 12) svg.append(draw("text", {
      x: middle, y: units(BASE - height - 6), text: (100 * share).toFixed(0) + (i ? "" : "%")
    }));
    if (i % every === 0) svg.append(draw("text", { class: "value", x: middle, y: BASE + 18, text: values[i] }));
  });
  svg.append(draw("line", { class: "axis-line", x1: 0, x2: WIDTH, y1: BASE, y2: BASE }));
  svg.append(draw("line", {
    class: "axis-line", x1: units(slot / 2), x2: units(WIDTH - slot / 2), y1: LINE, y2: LINE
  }));
  if (photo.width !== null) svg.append(draw("rect", {
    class: "band", x: units(at(photo.low)), y: LINE - 4,
    width: units(at(photo.high) - at(photo.low)), height: 8, rx: 4
  }));
  svg.append(draw("circle", { class: "dot", cx: units(at(photo.score)), cy: LINE, r: 6.5 }));
  return make(
    "figure", {}, svg,
    make("figcaption", {
      text: `Predicted ${about.own ? "ratings" : "votes"} in\u00a0%. Dot: score.`
        + (photo.width === null ? "" : " Band: interval.")
    })
  );
}

export function votesOf(about, reference) {
  const { values } = about;
  const WIDTH = 72, HEIGHT = 28, slot = WIDTH / values.length, most = Math.max(...reference.votes, 1e-9);
  const svg = draw("svg", {
    class: "votes", viewBox: `0 0 ${WIDTH} ${HEIGHT + 1}`, role: "img",
    "aria-label": `Votes by value: ${inWords(about, reference.votes.map((n) => Number(n.toFixed(1))))}`
  });
  reference.votes.forEach((n, i) => {
    const height = (HEIGHT * n) / most;
    svg.append(draw("rect", {
      x: units(slot * (i + 0.12)), y: units(HEIGHT - height), width: units(slot * 0.76),
      height: units(height)
    }));
  });
  svg.append(draw("line", { x1: 0, x2: WIDTH, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5 }));
  return svg;
}

export function signedBar(x, largest) {
  const length = largest ? (48 * Math.abs(x)) / largest : 0;
  return draw("svg",
    {
      class: "signed", viewBox: "-50 0 100 12", preserveAspectRatio: "none",
      "aria-hidden": "true", focusable: "false"
    },
    draw("rect", {
      class: x >= 0 ? "up" : "down", x: units(x >= 0 ? 0 : -length), y: 1, width: units(length),
      height: 10
    }),
    draw("line", { class: "zero", x1: 0, x2: 0, y1: 0, y2: 12 }));
}

const meanVote = ({ values }, reference) => {
  const total = reference.votes.reduce((sum, n) => sum + n, 0);
  return total ? reference.votes.reduce((sum, n, i) => sum + n * values[i], 0) / total : null;
};

/** Of people the mean vote; of one person the rating, as it was given. */
function ratingOf(about, reference) {
  const mean = meanVote(about, reference), text = fixed(mean, 2);
  return about.own && mean !== null ? text.replace(/\.?0+$/, "") : text;
}

/** A photo of the pool: its picture, where there is one, and its name. */
export function referenceCell(about, reference, aside) {
  return make(
    "div", { class: "reference" },
    about.poolPicture(reference, `${about.own ? "Your" : "The pool\u2019s"} photo ${reference.name}`),
    make(
      "div", {}, make("bdi", { text: reference.name }),
      aside ? make("span", { class: "aside" }, ...aside) : null
    )
  );
}

/** base + own + references + rest = score, each with its signed bar. One person's votes are one number: a rating. */
export function partsTable(about, photo) {
  const many = photo.references.length > 0, rated = about.own ? "Your rating" : "Mean vote";
  const largest = Math.max(...[photo.own, photo.rest, ...photo.references.map(([, , adds]) => adds)].map(Math.abs));
  const blanks = () => (
    many ? [
      ...(about.own ? [] : [make("td", { class: "people" })]), make("td", { class: "likeness" }),
      make("td", { class: "likeness" })
    ] : []
  );
  const head = make("tr", {}, make("th", { scope: "col", text: "Part" }),
    ...(
      many ? [
        ...(about.own ? [] : [make("th", { scope: "col", class: "people", text: "Votes" })]),
        make("th", { scope: "col", class: "likeness", text: rated }),
        make("th", { scope: "col", class: "likeness", text: "Likeness" })
      ] : []
    ),
    make("th", { scope: "col", class: "direction" }, make("span", { class: "only-read", text: "Direction" })),
    make("th", { scope: "col", class: "number", text: "Adds" }));
  const plain = (name, what, number, bar) => make("tr", {},
    make("th", { scope: "row" }, `${name} `, what ? make("span", { class: "soft", text: what }) : null), ...blanks(),
    make("td", { class: "direction" }, bar), make("td", { class: "number", text: number }));
  const rows = [
    plain(
      "Base",
      about.own ? "the mean of your ratings" : "the mean vote of the photos it learned from",
      photo.base.toFixed(3), null
    ),
    plain("Own", ownOf(about), signed(photo.own), signedBar(photo.own, largest)),
    ...photo.references.map(([number, likeness, adds]) => {
      const reference = about.pool[number], mean = ratingOf(about, reference);
      return make("tr", {},
        make(
          "th", { scope: "row" },
          referenceCell(about, reference, [
            `likeness\u00a0${likeness.toFixed(2)}`, make("br"),
            `${rated.toLowerCase().replace(" ", "\u00a0")}\u00a0${mean}`
          ])
        ),
        ...(about.own ? [] : [make("td", { class: "people" }, votesOf(about, reference))]),
        make("td", { class: "likeness", text: mean }),
        make("td", { class: "likeness", text: likeness.toFixed(2) }),
        make("td", { class: "direction" }, signedBar(adds, largest)),
        make("td", { class: "number", text: signed(adds) }));
    }),
  ];
  if (many || Math.abs(photo.rest) >= 5e-4) rows.push(plain(
    "Rest", photo.rest_text, signed(photo.rest), signedBar(photo.rest, largest)
  ));
  return make(
    "table", { class: "parts" }, make("thead", {}, head), make("tbody", {}, ...rows),
    make("tfoot", {}, plain("Score", "", photo.score.toFixed(3), null))
  );
}

export function fact(name, value, soft) {
  return make(
    "div", {}, make("dt", { text: name }),
    make("dd", { text: value }, soft ? make("span", { class: "soft", text: ` ${soft}` }) : null)
  );
}

function warning(about, words) {
  return make("div", { class: "warning", role: "note" },
    draw(
      "svg", { class: "sign", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
      draw("path", { d: "M12 3.5 22 20.5H2Z M12 10v4.5 M12 17.6v.1" })
    ),
    make("p", {}, make("b", { text: `${about.far[0].toUpperCase()}${about.far.slice(1)}.` }), ` ${words}`));
}

/**
 * The picture, and beside it all that is said of a photo; the name goes into `heading`.
 *
 * `place`: with its place among the photos. `link`: the name leads to the photo's page. `tool`: an element beside the
 * name. `press`: as for badges. `more`: an element below the score. `large`: the picture is shown as large as it is.
 */
export function face(about, photo, heading, { place, link, tool, press, more, large } = {}) {
  const name = make("span", {}, ...nameOf(photo));
  if (place) heading.append(make("span", { class: "place", text: photo.place }), " ");
  heading.append(link ? make("a", { href: `#photo-${photo.key}` }, name) : name);
  const head = make("div", { class: "face-head" }, heading, tool);
  const pills = badges(about, photo, press).filter((badge) => !badge.classList.contains("warn"));
  const [first, last] = endsOf(about);
  const interval = photo.width === null ? null : `${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}`;
  const facts = make("div", { class: "facts" }, head,
    photo.outside ? warning(
      about,
      `Unlike is ${photo.unlike_text}: hardly one of ${poolOf(about)} is so far from the others. `
        + "Trust neither its score nor its interval."
    ) : null,
    make("div", { class: "body" },
      make("div", {},
        make(
          "p", { class: "score" }, make("b", { text: photo.score.toFixed(2) }), " ",
          make("span", { text: `on a scale of ${first} to ${last}` })
        ),
        photo.stars === null ? null : make("p", {
          class: "stars", role: "img", "aria-label": starWords(about, photo.stars),
          text: starSigns(about, photo.stars)
        }),
        photo.percentile === null ? null : make("p", {
          class: "rank", text: rankWords(about, photo)
        }),
        pills.length ? make("p", { class: "labels" }, ...pills) : null,
        more),
      chart(about, photo)),
    make("dl", { class: "details" },
      interval ? fact(`${about.coverage} interval`, interval) : null,
      photo.spread === null ? null : fact("Spread of the votes", photo.spread.toFixed(2)),
      photo.unlike === null ? null : fact("Unlike", photo.unlike_text, `limit ${about.unlike}`)));
  return make("div", { class: "face" }, about.picture(photo, `The photo ${photo.label}`, large), facts);
}

const percent = (x) => `${(100 * x).toFixed(x > 0 && x < 0.01 ? 2 : 1)}\u00a0%`;
/** The technical measurements of a photo. */
export function technical({ width, height, sharpness, highlights, shadows, noise }) {
  return make("section", { class: "block" }, make("h3", { text: "Technical" }),
    make("dl", { class: "details" },
      fact("Size", `${whole(width)} × ${whole(height)}`, `${((width * height) / 1e6).toFixed(1)} megapixels`),
      fact("Sharpness", sharpness.toFixed(0), "of 100, in the sharpest part"),
      fact("Clipped highlights", percent(highlights)), fact("Clipped shadows", percent(shadows)),
      fact("Noise", noise.toFixed(1), "of 255")),
    make("p", { class: "note", text: "Measured from the pixels. They take no part in the score." }));
}

/** What the two scores say, and what they do not. */
export function verdict(about, a, b) {
  const said = [], who = about.own ? "you" : "a large panel";
  const gap = Number(a.score.toFixed(2)) - Number(b.score.toFixed(2)), [high, low] = gap >= 0 ? [a, b] : [b, a];
  const name = (photo) => make("span", {}, ...nameOf(photo));
  if (Math.abs(gap) < 0.005) said.push(make("p", {}, "Both have the same score."));
  else said.push(make("p", {}, name(high), ` scores ${Math.abs(gap).toFixed(2)} higher than `, name(low), "."));
  if (a.width === null || b.width === null) said.push(make("p", {
    text: "There are no intervals for both, so nothing is known of how sure that is."
  }));
  else {
    const from = Math.max(a.low, b.low), to = Math.min(a.high, b.high), narrower = Math.min(a.width, b.width);
    if (to < from) said.push(make("p", {
      text: `Their ${about.coverage} intervals do not overlap: ${who} would most likely put them in this order too.`
    }));
    else {
      // Below a fifth: of normal, independent errors and intervals of 90 % the order is right for 95 of 100 or more.
      const within = low.high >= high.score || high.low <= low.score, hardly = to - from < narrower / 5;
      said.push(make("p", {
        text: `Their ${about.coverage} intervals overlap${hardly && !within ? " a little" : ""}, `
          + `from ${from.toFixed(2)} to ${to.toFixed(2)}: ` + (
          within ? `${who} could well prefer either.`
            : hardly ? `${who} would most likely put them in this order too.`
            : "this order is likely, but not sure."
        )
      }));
    }
  }
  for (const photo of [a, b]) if (photo.outside) said.push(make(
    "p", {}, name(photo), ` is ${about.far}: trust no comparison with it.`
  ));
  if (a.burst && b.burst && a.burst.number === b.burst.number) said.push(make("p", {
    text: `Both are of burst ${a.burst.number}.`
  }));
  return make("div", { class: "verdict" }, ...said);
}

/** The parts of both scores in one table, and what each adds to the difference. */
export function partsOfBoth(about, a, b) {
  const of = (photo) => new Map(photo.references.map(([number, , adds]) => [number, adds]));
  const [ofA, ofB] = [of(a), of(b)], gap = (number) => (ofA.get(number) ?? 0) - (ofB.get(number) ?? 0);
  const numbers = [...new Set([...ofA.keys(), ...ofB.keys()])].sort((x, y) => Math.abs(gap(y)) - Math.abs(gap(x)));
  const largest = Math.max(...[a.own - b.own, a.rest - b.rest, ...numbers.map(gap)].map(Math.abs));
  const line = (head, x, y, difference, bar = true) => make("tr", {}, make("th", { scope: "row" }, ...head),
    make("td", { class: "number", text: x }), make("td", { class: "number", text: y }),
    make("td", { class: "direction" }, difference === null || !bar ? null : signedBar(difference, largest)),
    make("td", { class: "number", text: difference === null ? "" : signed(difference) }));
  const adds = (map, number) => (map.has(number) ? signed(map.get(number)) : "\u2013");
  const soft = (text) => make("span", { class: "soft", text });
  return make("section", { class: "block" },
    make("h3", { text: "What makes the difference" }),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "What makes the difference" },
    make("table", { class: "parts" },
      make("thead", {},
        make("tr", {},
          make("th", { scope: "col", text: "Part" }),
          make("th", { scope: "col", class: "number", text: "Left" }),
          make("th", { scope: "col", class: "number", text: "Right" }),
          make("th", { scope: "col", class: "direction" }, make("span", { class: "only-read", text: "Direction" })),
          make("th", { scope: "col", class: "number", text: "Left \u2212 right" }))),
      make("tbody", {}, line(["Base"], a.base.toFixed(3), b.base.toFixed(3), null),
        line(["Own ", soft(ownOf(about))], signed(a.own), signed(b.own), a.own - b.own),
        ...numbers.map((number) => line(
          [referenceCell(about, about.pool[number], null)], adds(ofA, number), adds(ofB, number),
          gap(number)
        )),
        ...(
          numbers.length || Math.abs(a.rest) >= 5e-4 || Math.abs(b.rest) >= 5e-4 ? [
            line(["Rest"], signed(a.rest), signed(b.rest), a.rest - b.rest)
          ] : []
        )),
      make("tfoot", {}, line(["Score"], a.score.toFixed(3), b.score.toFixed(3), a.score - b.score, false)))),
    numbers.length ? make("p", {
      class: "note",
      text: "\u2013: not among the references listed for that photo; what it adds there is part of the rest."
    }) : null);
}
