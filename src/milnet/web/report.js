/* What a reader can do with a report: sort, filter, open a photo's page, compare two.

   All data come from blocks of this file: `report-data` (JSON), `picture-N` and `pool-N` (addresses of pictures). This
   script stands before the pictures, so it runs while they are still being read. Of many photos only those in view
   have elements. Every text is set as text, never as markup. */
(() => {
  "use strict";

  const byId = (id) => document.getElementById(id);
  const MINUS = "\u2212";
  const reading = () => document.readyState === "loading";

  // ---- elements ----

  /** An element; of the properties `class`, `text` and `on` (events) are special, the rest are attributes. */
  function make(tag, properties = {}, ...children) {
    return dress(document.createElement(tag), properties, children);
  }

  function draw(tag, properties = {}, ...children) {
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

  /** A photo's name; where others have the same, behind the folders in which they differ. */
  const nameOf = (photo) => [
    ...(photo.folder ? [make("span", { class: "within" }, make("bdi", { text: photo.folder }))] : []),
    make("bdi", { text: photo.name })
  ];

  /** Numbers as they are written everywhere in the report. */
  const fixed = (x, digits) => (x === null ? "\u2013" : x.toFixed(digits).replace("-", MINUS));
  const whole = (x) => x.toLocaleString("en");
  function signed(x, digits = 3) {
    const text = Math.abs(x).toFixed(digits);
    return Number(text) === 0 ? text : (x > 0 ? "+" : MINUS) + text;
  }

  /** A percentile; more digits where it would look like all or none of the pool: "100" means all. */
  function percentileText(x) {
    const digits = [0, 1, 2].find(
      (n) => (Number(x.toFixed(n)) === 100) === (x === 100) && (Number(x.toFixed(n)) === 0) === (x === 0)
    );
    return digits === undefined ? (x > 50 ? "99.99" : "0.01") : x.toFixed(digits);
  }

  /** What the reader chose is kept where the browser allows it. */
  function remembered(key, value) {
    try {
      if (value === undefined) return localStorage.getItem(key);
      localStorage.setItem(key, value);
    } catch { /* a browser that keeps nothing: the choice holds until the page is closed */ }
    return null;
  }

  // ---- light or dark ----

  const THEMES = { auto: "Colours: system", light: "Colours: light", dark: "Colours: dark" };
  function setTheme(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = THEMES[theme];
    byId("theme").dataset.now = theme;
  }
  const kept = remembered("milnet-report-theme");
  setTheme(kept in THEMES ? kept : "auto");
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(byId("theme").dataset.now) + 1) % names.length];
    setTheme(next);
    remembered("milnet-report-theme", next);
  });
  document.querySelector(".tools").hidden = false;

  if (!byId("app")) return; // a report without photos

  // ---- the photos ----

  const report = JSON.parse(byId("report-data").textContent);
  const { photos, values } = report;
  const first = values[0], last = values[values.length - 1];
  const POOL = report.own ? "the photos you rated" : "the pool\u2019s photos";
  const OWN = report.own ? "what people in general say of it, on your scale" : "what the photo itself adds";
  photos.forEach((photo, index) => {
    photo.index = index;
    photo.label = photo.folder + photo.name;
    photo.place = index + 1; // 1 = the highest score; also the number in the address
    photo.width = photo.low === null || photo.high === null ? null : photo.high - photo.low;
    photo.sharpness = photo.signals ? photo.signals.sharpness : null;
  });
  // A search looks at names, and at folders as far as they differ.
  const folderOf = (path) => path.slice(0, path.length - path.split(/[\\/]/).pop().length);
  const shared = photos.map(({ path }) => folderOf(path)).reduce((a, b) => {
    let end = 0;
    while (end < a.length && a[end] === b[end]) end++;
    return a.slice(0, Math.max(a.lastIndexOf("/", end - 1), a.lastIndexOf("\\", end - 1)) + 1);
  });
  for (const photo of photos) photo.text = photo.path.slice(shared.length).toLocaleLowerCase();
  const bursts = new Map();
  for (const photo of photos) {
    if (!photo.burst) continue;
    if (!bursts.has(photo.burst.number)) bursts.set(photo.burst.number, []);
    bursts.get(photo.burst.number).push(photo);
  }
  for (const members of bursts.values()) members.sort((a, b) => (a.burst.rank ?? 0) - (b.burst.rank ?? 0));

  /** Quantities that photos are sorted and filtered by; `digits` as they are shown, and as a filter compares them. */
  const QUANTITIES = [
    { key: "score", label: "Score", digits: 2 },
    { key: "percentile", label: "Percentile", digits: 0 },
    { key: "width", label: "Width of the interval (doubt)", short: "Interval width", digits: 2 },
    { key: "spread", label: "Spread of the votes", short: "Spread", digits: 2 },
    { key: "unlike", label: `Unlike ${POOL} (doubt)`, short: "Unlike", digits: 2 },
    { key: "sharpness", label: "Sharpness", digits: 0 },
  ].filter(({ key }) => photos.some((photo) => photo[key] !== null));
  const rounded = (x, digits) => Number(x.toFixed(digits));

  const view = {
    sort: "score", descending: true, layout: photos.length > 1 ? report.view : "full", size: 230,
    search: "", ranges: {}, stars: null, burst: "all", outside: "all",
    order: photos, // the photos that are shown, in their order
    active: photos[0], // the photo that keys act on
    marks: [], // up to two photos to compare
  };

  // ---- pictures ----

  const waiting = new Map(); // frames whose picture has not been read yet -> how to fill them

  /** Put the picture that the block `source` holds into `frame`, as soon as it is read; else `none`, if given. */
  function fill(frame, source, alt, none) {
    const holder = byId(source);
    if (reading() && !(holder && holder.nextElementSibling)) { // the last block may be there in part
      waiting.set(frame, () => fill(frame, source, alt, none));
      if (waiting.size === 1) requestAnimationFrame(again);
    } else if (holder && holder.textContent) {
      frame.replaceChildren(make("img", { src: holder.textContent, alt, decoding: "async", draggable: "false" }));
    } else if (none) frame.replaceChildren(make("span", { class: "none", text: none }));
    else frame.remove();
  }

  function again() {
    const fills = [...waiting.values()];
    waiting.clear();
    for (const one of fills) one();
  }
  document.addEventListener("DOMContentLoaded", again);

  /** Beside its name a picture needs no text of its own; alone it has one. */
  function picture(photo, alt = "") {
    const frame = make("span", { class: "frame" });
    fill(frame, `picture-${photo.place}`, alt, "No picture: the file cannot be read any more.");
    return frame;
  }

  // ---- pieces of a photo ----

  const starSigns = (n) => "\u2605".repeat(n) + "\u2606".repeat(report.stars - n);
  const starWords = (n) => `${n} of ${report.stars} stars`;
  const burstWords = ({ number, rank, size, keep }) =>
    `burst ${number}: ${rank === null ? size + " photos" : `${rank} of ${size}`}${keep ? ", keep" : ""}`;
  const farWhy = `Hardly one of ${POOL} is so far from the others: trust neither score nor interval`;

  function rankWords({ percentile }) {
    const text = percentileText(percentile);
    const part = percentile === 100 ? "all" : percentile === 0 ? "none" : `${text}\u00a0%`;
    return `Percentile ${text}: scores higher than ${part} of ${POOL}.`;
  }

  /** Score and interval on the scale of the values, as a line with a band and a dot. */
  function strip(photo) {
    const at = (x) => `${Math.min(100, Math.max(0, (100 * (x - first)) / (last - first))).toFixed(2)}%`;
    const line = make("span", {
      class: "strip", "aria-hidden": "true",
      title: `Dot: score ${fixed(photo.score, 2)} on a scale of ${first} to ${last}.` + (photo.width === null ? ""
        : ` Band: ${report.coverage} interval, ${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}.`)
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

  function badges(photo, press) {
    const found = [];
    if (photo.burst) {
      const words = burstWords(photo.burst);
      found.push(press
        ? make("button", {
          type: "button", class: `badge${photo.burst.keep ? " keep" : ""}`, text: words,
          title: "Show this burst alone", on: { click: () => showBurst(photo.burst.number) }
        })
        : make("span", { class: `badge${photo.burst.keep ? " keep" : ""}`, text: words }));
    }
    if (photo.outside) found.push(make("span", { class: "badge warn", title: farWhy, text: report.far }));
    return found;
  }

  const markButton = (photo) => make("button", {
    type: "button", class: "tick", "aria-pressed": String(view.marks.includes(photo)),
    "aria-label": `Mark ${photo.label} to compare`,
    title: "Mark this photo, to compare it with another (key c)", "data-mark": photo.index, on: { click: () => toggleMark(photo) },
  });

  const inWords = (numbers) => values.map((value, i) => `${value}: ${numbers[i]}`).join(", ");
  const units = (x) => x.toFixed(1).replace(/\.0$/, "");

  /** The predicted distribution as bars, the values below, and the score with its interval on the same axis. */
  function chart(photo) {
    const WIDTH = 360, TOP = 20, BASE = 112, LINE = 146; // its own units; y grows downwards
    const count = values.length, slot = WIDTH / count, most = Math.max(...photo.votes, 1e-9);
    const every = Math.ceil(count / 12); // so that the numbers below do not touch each other
    const at = (x) => slot * (0.5 + (x - first) / (values[1] - first));
    const shares = photo.votes.map((share) => `${(100 * share).toFixed(0)} %`);
    const svg = draw("svg", {
      class: "chart", viewBox: `0 0 ${WIDTH} ${LINE + 10}`, role: "img",
      "aria-label": `Predicted ${report.own ? "ratings" : "votes"} by value: ${inWords(shares)}`
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
        text: `Predicted ${report.own ? "ratings" : "votes"} in\u00a0%. Dot: score.`
          + (photo.width === null ? "" : " Band: interval.")
      })
    );
  }

  function votesOf(reference) {
    const WIDTH = 72, HEIGHT = 28, slot = WIDTH / values.length, most = Math.max(...reference.votes, 1e-9);
    const svg = draw("svg", {
      class: "votes", viewBox: `0 0 ${WIDTH} ${HEIGHT + 1}`, role: "img",
      "aria-label": `Votes by value: ${inWords(reference.votes.map((n) => Number(n.toFixed(1))))}`
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

  function signedBar(x, largest) {
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

  const meanVote = (reference) => {
    const total = reference.votes.reduce((sum, n) => sum + n, 0);
    return total ? reference.votes.reduce((sum, n, i) => sum + n * values[i], 0) / total : null;
  };

  /** Of people the mean vote; of one person the rating, as it was given. */
  function ratingOf(reference) {
    const mean = meanVote(reference), text = fixed(mean, 2);
    return report.own && mean !== null ? text.replace(/\.?0+$/, "") : text;
  }

  function referenceCell(reference, aside) {
    const cell = make("div", { class: "reference" });
    if (reference.picture !== null) {
      const frame = make("span", { class: "frame" });
      cell.append(frame);
      fill(frame, `pool-${reference.picture}`, `${report.own ? "Your" : "The pool\u2019s"} photo ${reference.name}`);
    }
    cell.append(make(
      "div", {}, make("bdi", { text: reference.name }),
      aside ? make("span", { class: "aside" }, ...aside) : null
    ));
    return cell;
  }

  /** base + own + references + rest = score, each with its signed bar. One person's votes are one number: a rating. */
  function partsTable(photo) {
    const many = photo.references.length > 0, rated = report.own ? "Your rating" : "Mean vote";
    const largest = Math.max(...[photo.own, photo.rest, ...photo.references.map(([, , adds]) => adds)].map(Math.abs));
    const blanks = () => (
      many ? [
        ...(report.own ? [] : [make("td", { class: "people" })]), make("td", { class: "likeness" }),
        make("td", { class: "likeness" })
      ] : []
    );
    const head = make("tr", {}, make("th", { scope: "col", text: "Part" }),
      ...(
        many ? [
          ...(report.own ? [] : [make("th", { scope: "col", class: "people", text: "Votes" })]),
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
        report.own ? "the mean of your ratings" : "the mean vote of the photos it learned from",
        photo.base.toFixed(3), null
      ),
      plain("Own", OWN, signed(photo.own), signedBar(photo.own, largest)),
      ...photo.references.map(([number, likeness, adds]) => {
        const reference = report.pool[number], mean = ratingOf(reference);
        return make("tr", {},
          make(
            "th", { scope: "row" },
            referenceCell(reference, [
              `likeness\u00a0${likeness.toFixed(2)}`, make("br"), `${rated.toLowerCase().replace(" ", "\u00a0")}\u00a0${mean}`
            ])
          ),
          ...(report.own ? [] : [make("td", { class: "people" }, votesOf(reference))]),
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

  function fact(name, value, soft) {
    return make(
      "div", {}, make("dt", { text: name }),
      make("dd", { text: value }, soft ? make("span", { class: "soft", text: ` ${soft}` }) : null)
    );
  }

  function warning(words) {
    return make("div", { class: "warning", role: "note" },
      draw(
        "svg", { class: "sign", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
        draw("path", { d: "M12 3.5 22 20.5H2Z M12 10v4.5 M12 17.6v.1" })
      ),
      make("p", {}, make("b", { text: `${report.far[0].toUpperCase()}${report.far.slice(1)}.` }), ` ${words}`));
  }

  /** The picture, and beside it all that is said of it. `link`: whether the name in `heading` leads to its page. */
  function face(photo, heading, link) {
    const name = make("span", {}, ...nameOf(photo));
    if (photos.length > 1 || heading.id) heading.append(make("span", { class: "place", text: photo.place }), " ");
    heading.append(link ? make("a", { href: `#photo-${photo.place}` }, name) : name);
    const head = make("div", { class: "face-head" }, heading, link && photos.length > 1 ? markButton(photo) : null);
    const pills = badges(photo, photos.length > 1).filter((badge) => !badge.classList.contains("warn"));
    const interval = photo.width === null ? null : `${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}`;
    const facts = make("div", { class: "facts" }, head,
      photo.outside ? warning(
        `Unlike is ${photo.unlike_text}: hardly one of ${POOL} is so far from the others. `
          + "Trust neither its score nor its interval."
      ) : null,
      make("div", { class: "body" },
        make("div", {},
          make(
            "p", { class: "score" }, make("b", { text: photo.score.toFixed(2) }), " ",
            make("span", { text: `on a scale of ${first} to ${last}` })
          ),
          photo.stars === null ? null : make("p", {
            class: "stars", role: "img", "aria-label": starWords(photo.stars),
            text: starSigns(photo.stars)
          }),
          photo.percentile === null ? null : make("p", {
            class: "rank", text: rankWords(photo)
          }),
          pills.length ? make("p", { class: "labels" }, ...pills) : null),
        chart(photo)),
      make("dl", { class: "details" },
        interval ? fact(`${report.coverage} interval`, interval) : null,
        photo.spread === null ? null : fact("Spread of the votes", photo.spread.toFixed(2)),
        photo.unlike === null ? null : fact("Unlike", photo.unlike_text, `limit ${report.unlike}`)));
    return make("div", { class: "face" }, picture(photo, `The photo ${photo.label}`), facts);
  }

  const percent = (x) => `${(100 * x).toFixed(x > 0 && x < 0.01 ? 2 : 1)}\u00a0%`;
  function technical({ width, height, sharpness, highlights, shadows, noise }) {
    return make("section", { class: "block" }, make("h3", { text: "Technical" }),
      make("dl", { class: "details" },
        fact("Size", `${whole(width)} × ${whole(height)}`, `${((width * height) / 1e6).toFixed(1)} megapixels`),
        fact("Sharpness", sharpness.toFixed(0), "of 100, in the sharpest part"),
        fact("Clipped highlights", percent(highlights)), fact("Clipped shadows", percent(shadows)),
        fact("Noise", noise.toFixed(1), "of 255")),
      make("p", { class: "note", text: "Measured from the pixels. They take no part in the score." }));
  }

  // ---- which photos are shown, and in which order ----

  const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const byName = new Map(
    [...photos].sort(
      (a, b) => names.compare(a.name, b.name) || names.compare(a.path, b.path)
    ).map((photo, i) => [photo, i])
  );
  const SORTS = [
    ...QUANTITIES.slice(0, 1), { key: "name", label: "Name", of: (photo) => byName.get(photo) }, ...QUANTITIES.slice(1),
    ...(
      bursts.size ? [{ key: "burst", label: "Burst", of: (photo) => (photo.burst ? photo.burst.number : null) }] : []
    ),
  ];

  function passes(photo) {
    if (view.search && !photo.text.includes(view.search)) return false;
    for (const { key, digits } of QUANTITIES) {
      const range = view.ranges[key];
      if (!range) continue;
      if (photo[key] === null) return false;
      const x = rounded(photo[key], digits);
      if ((range.from !== null && x < range.from) || (range.to !== null && x > range.to)) return false;
    }
    if (view.stars && !view.stars.has(photo.stars)) return false;
    if (view.outside !== "all" && photo.outside !== (view.outside === "outside")) return false;
    const { burst } = photo;
    switch (view.burst) {
      case "all": return true;
      case "best": return !burst || burst.rank === 1;
      case "keep": return !burst || burst.keep === true;
      case "in": return Boolean(burst);
      case "alone": return !burst;
      default: return Boolean(burst) && burst.number === view.burst;
    }
  }

  function apply() {
    const sort = SORTS.find(({ key }) => key === view.sort), of = sort.of || ((photo) => photo[sort.key]);
    const way = view.descending ? -1 : 1;
    view.order = photos.filter(passes).sort((a, b) => {
      const x = of(a), y = of(b);
      // what is not known comes last
      if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
      if (x !== y) return way * (x - y);
      return (sort.key === "burst" && (a.burst.rank ?? 0) - (b.burst.rank ?? 0)) || a.index - b.index;
    });
    if (!view.order.includes(view.active)) view.active = view.order[0] || photos[0];
    tellFound(sort);
    showChips();
    for (const histogram of histograms) histogram.update();
    byId("nothing").hidden = view.order.length > 0;
    paint(true);
  }

  function tellFound(sort) {
    if (!byId("found")) return;
    const count = view.order.length, all = photos.length;
    const [down, up] = sort.key === "name" ? ["z to a", "a to z"] : ["highest first", "lowest first"];
    const direction = view.descending ? down : up;
    const counted = count === all ? whole(all) : `${whole(count)} of ${whole(all)}`;
    const by = (sort.short || sort.label).toLowerCase();
    byId("found").textContent = `${counted} photos, by ${by}, ${direction}`;
    byId("direction").textContent = view.descending ? "↓" : "↑";
    byId("direction").setAttribute(
      "aria-label", `${direction[0].toUpperCase() + direction.slice(1)}: turn the order round`
    );
    byId("direction").title = "Turn the order round";
    byId("sort").value = view.sort;
    byId("filter").textContent = filterCount() ? `Filter (${filterCount()})` : "Filter";
    for (const id of ["copy", "save"]) byId(id).disabled = count === 0;
  }

  const filterCount = () => [
    ...Object.values(view.ranges), view.stars, view.burst !== "all", view.outside !== "all", view.search
  ].filter(Boolean).length;

  function setSort(key, descending) {
    view.sort = key;
    view.descending = descending;
    apply();
  }

  function setRange(key, from, to) {
    view.ranges[key] = from === null && to === null ? null : { from, to };
    showFilters();
    apply();
  }

  function clearFilters() {
    Object.assign(view, { search: "", ranges: {}, stars: null, burst: "all", outside: "all" });
    byId("search").value = "";
    showFilters();
    apply();
  }

  function showBurst(number) {
    Object.assign(view, {
      search: "", ranges: {}, stars: null, burst: number, outside: "all", sort: "burst",
      descending: false
    });
    byId("search").value = "";
    showFilters();
    leave(true);
    apply();
    toList();
  }

  const BURSTS = {
    all: "All photos", best: "Best of each burst only", keep: "Only what is worth keeping",
    in: "Photos in bursts", alone: "Photos that stand alone"
  };
  const OUTSIDES = { all: "All photos", inside: "Only photos like those", outside: `Only ${report.far}` };

  /** What is filtered at the moment, each with a button that ends it. */
  function showChips() {
    if (!byId("chips")) return;
    const chips = [];
    const chip = (words, end) => chips.push(make("button", {
      type: "button", text: `${words} ×`, "aria-label": `${words}: end this filter`,
      on: { click: () => { end(); showFilters(); apply(); } }
    }));
    if (view.search) chip(`Name: ${view.search}`, () => { view.search = ""; byId("search").value = ""; });
    for (const { key, label, short, digits } of QUANTITIES) {
      const range = view.ranges[key];
      if (!range) continue;
      const [from, to] = [range.from, range.to].map((x) => (x === null ? null : x.toFixed(digits)));
      const words = from === null ? `to ${to}` : to === null ? `from ${from}` : `${from} to ${to}`;
      chip(`${short || label} ${words}`, () => { view.ranges[key] = null; });
    }
    if (view.stars) chip(`Stars ${[...view.stars].sort().join(", ")}`, () => { view.stars = null; });
    if (view.burst !== "all") chip(BURSTS[view.burst] || `Burst ${view.burst}`, () => { view.burst = "all"; });
    if (view.outside !== "all") chip(OUTSIDES[view.outside], () => { view.outside = "all"; });
    byId("chips").replaceChildren(...chips);
  }

  /** The fields of the filter panel, filled with what is set. */
  function showFilters() {
    const panel = byId("filters");
    if (!panel) return;
    if (!panel.childElementCount) buildFilters(panel);
    for (const { key } of QUANTITIES) {
      const range = view.ranges[key] || { from: null, to: null };
      byId(`from-${key}`).value = range.from ?? "";
      byId(`to-${key}`).value = range.to ?? "";
    }
    for (const box of panel.querySelectorAll("[data-stars]")) {
      box.checked = !view.stars || view.stars.has(Number(box.dataset.stars));
    }
    if (byId("burst")) byId("burst").value = view.burst in BURSTS ? view.burst : "all";
    if (byId("outside")) byId("outside").value = view.outside;
  }

  function buildFilters(panel) {
    for (const { key, label, digits } of QUANTITIES) {
      const known = photos.map((photo) => photo[key]).filter((x) => x !== null).map((x) => rounded(x, digits));
      const ends = { from: Math.min(...known), to: Math.max(...known) };
      const field = (end) => make("input", {
        type: "number", id: `${end}-${key}`, step: 10 ** -digits,
        placeholder: ends[end].toFixed(digits), "aria-label": `${label}, ${end}`,
        on: { input: () => { view.ranges[key] = rangeOf(key); apply(); } },
      });
      panel.append(make(
        "fieldset", {}, make("legend", { text: label }),
        make("div", { class: "range" }, field("from"), "to", field("to"))
      ));
    }
    if (photos.some((photo) => photo.stars !== null)) {
      const picks = make("div", { class: "picks" });
      for (let n = 1; n <= report.stars; n++) {
        picks.append(make(
          "label", { class: "check" },
          make("input", { type: "checkbox", "data-stars": n, checked: true, on: { change: chooseStars } }),
          `${n}`, make("span", { class: "signs", "aria-hidden": "true", text: "\u2605" })
        ));
      }
      panel.append(make("fieldset", {}, make("legend", { text: "Stars" }), picks));
    }
    const choice = (id, label, options) => panel.append(make("fieldset", {},
      make("legend", {}, make("label", { for: id, text: label })),
      make(
        "select",
        { id, on: { change: (event) => { view[id] = event.target.value; apply(); } } },
        ...Object.entries(options).map(([value, text]) => make("option", { value, text }))
      )));
    if (bursts.size) choice("burst", "Bursts", BURSTS);
    if (photos.some((photo) => photo.outside)) choice("outside", `Like ${POOL}`, OUTSIDES);
    panel.append(make(
      "fieldset", {}, make("legend", { text: "All filters" }),
      make("button", { type: "button", text: "Clear", on: { click: clearFilters } })
    ));
  }

  function rangeOf(key) {
    const read = (id) => (
      byId(id).value === "" || !Number.isFinite(byId(id).valueAsNumber) ? null : byId(id).valueAsNumber
    );
    const from = read(`from-${key}`), to = read(`to-${key}`);
    return from === null && to === null ? null : { from, to };
  }

  function chooseStars() {
    const chosen = [...document.querySelectorAll("[data-stars]:checked")].map((box) => Number(box.dataset.stars));
    view.stars = chosen.length === report.stars ? null : new Set(chosen);
    apply();
  }

  // ---- histograms ----

  const histograms = [];

  /** How many photos there are in each bin, all of them and those shown; a click or a drag over bins filters. */
  function histogramOf({ key, label, digits }, step, low, high) {
    const unit = 10 ** digits; // bins are counted in whole units of what is shown, so none is lost at an edge
    const count = Math.ceil((high - low) / step); // the last bin has its upper end as well
    const bin = (photo) => Math.min(count - 1, Math.floor(
      (Math.round(rounded(photo[key], digits) * unit) - low) / step
    ));
    const known = photos.filter((photo) => photo[key] !== null);
    const all = new Array(count).fill(0);
    for (const photo of known) all[bin(photo)]++;
    const most = Math.max(...all);
    const ends = (i) => [(low + i * step) / unit, (i === count - 1 ? high : low + (i + 1) * step - 1) / unit];
    const words = (i) => ends(i).map((x) => x.toFixed(digits)).join(" to ");
    const bars = all.map(() => make("button", { type: "button", tabindex: -1 }, make("i"), make("i")));
    bars[0].tabIndex = 0;
    bars.forEach((bar, i) => { bar.firstChild.style.height = `${(100 * all[i]) / most}%`; });
    const told = make("span", { text: "click or drag over bars to filter" });
    const group = make(
      "div",
      { class: "bins", role: "group", "aria-label": `${label}s of the photos: each bar filters` },
      ...bars
    );
    const box = make("div", { class: "histogram" },
      make("h3", {}, `${label}s of ${photos.length === known.length ? "these" : whole(known.length)} photos`, told),
      group,
      make(
        "div", { class: "axis", "aria-hidden": "true" },
        make("span", { text: (low / unit).toFixed(digits) }),
        make("span", { text: (high / unit).toFixed(digits) })
      ));
    const select = (i, j) => {
      const [from, to] = [ends(Math.min(i, j))[0], ends(Math.max(i, j))[1]], now = view.ranges[key];
      if (now && now.from === from && now.to === to) setRange(key, null, null);
      else setRange(key, from, to);
    };
    let start = null; // the bar at which a drag began
    const at = (event) => {
      const { left, width } = group.getBoundingClientRect();
      return Math.min(count - 1, Math.max(0, Math.floor((count * (event.clientX - left)) / width)));
    };
    group.addEventListener("pointerdown", (event) => { start = event.button === 0 ? at(event) : null; });
    window.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const end = at(event);
      if (end !== start) select(start, end); // one bar alone is a click
      start = null;
    });
    bars.forEach((bar, i) => {
      bar.addEventListener("click", (event) => { if (event.detail === 0 || at(event) === i) select(i, i); });
      bar.addEventListener("pointerenter", () => {
        told.textContent = `${words(i)}: ${whole(all[i])} photo${all[i] === 1 ? "" : "s"}`;
      });
      bar.addEventListener("focus", () => {
        told.textContent = `${words(i)}: ${whole(all[i])} photo${all[i] === 1 ? "" : "s"}`;
      });
      bar.addEventListener("keydown", (event) => {
        const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: count - 1 }[event.key];
        if (to === undefined || !bars[to]) return;
        event.preventDefault();
        event.stopPropagation();
        bar.tabIndex = -1;
        bars[to].tabIndex = 0;
        bars[to].focus();
      });
    });
    group.addEventListener("pointerleave", () => { told.textContent = "click or drag over bars to filter"; });
    histograms.push({
      update() {
        const now = new Array(count).fill(0);
        for (const photo of view.order) if (photo[key] !== null) now[bin(photo)]++;
        const range = view.ranges[key];
        bars.forEach((bar, i) => {
          const [from, to] = ends(i);
          const inside = Boolean(range) && (range.from ?? from) <= from && (range.to ?? to) >= to;
          bar.lastChild.style.height = `${(100 * now[i]) / most}%`;
          bar.setAttribute("aria-pressed", String(inside));
          bar.setAttribute("aria-label", `${words(i)}: ${now[i]} of ${all[i]} photos`);
        });
      },
    });
    return box;
  }

  function buildHistograms() {
    const place = byId("histograms");
    if (photos.length < 8) return place.remove();
    const score = QUANTITIES[0], unit = 100;
    const known = photos.map((photo) => Math.round(rounded(photo.score, 2) * unit));
    const range = Math.max(...known) - Math.min(...known);
    const steps = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000];
    const step = steps.find((size) => range / size <= 32) || Math.ceil(range / 32);
    const [low, high] = [
      Math.floor(Math.min(...known) / step) * step,
      Math.ceil((Math.max(...known) + 1) / step) * step
    ];
    place.append(histogramOf(score, step, low, high));
    const percentile = QUANTITIES.find(({ key }) => key === "percentile");
    if (percentile) place.append(histogramOf(percentile, 5, 0, 100));
    return undefined;
  }

  // ---- tiles and rows: only those in view exist ----

  const list = byId("list"), sheet = byId("sheet"), full = byId("full");
  const CACHED = 240; // elements that are kept for when they come into view again
  const cells = new Map(); // photo -> its tile or row, the latest last
  let grid = { columns: 1, width: 0, height: 0, step: 0, gap: 0 };
  let printing = false;

  function tile(photo) {
    const name = make("span", { class: "name", title: photo.path }, ...nameOf(photo));
    const frame = picture(photo);
    if (photo.outside) frame.title = farWhy; // the badge lies above it, and lets the pointer through
    const words = make("span", { class: "words" },
      make("span", { class: "line" }, make("b", { text: photo.score.toFixed(2) }),
        photo.stars === null ? null : make("span", {
          class: "signs", role: "img", "aria-label": starWords(photo.stars),
          text: starSigns(photo.stars)
        }),
        photo.percentile === null ? null : make("span", { class: "soft", title: rankWords(photo) },
          make("span", { class: "word", text: "percentile " }),
          make("span", { class: "short", "aria-hidden": "true", text: "P" }), percentileText(photo.percentile))),
      strip(photo), name);
    return make("div", { class: "tile", role: "listitem" },
      make("a", { class: "open", href: `#photo-${photo.place}` }, frame, words, extraWords(photo)),
      make("span", { class: "badges", "aria-hidden": "true" }, ...badges(photo, false)), markButton(photo));
  }

  /** What badges say, for those who do not see them. */
  function extraWords(photo) {
    const words = [
      photo.burst ? burstWords(photo.burst) : null,
      photo.outside ? report.far : null
    ].filter(Boolean).join(", ");
    return words ? make("span", { class: "only-read", text: words }) : null;
  }

  const has = (key) => photos.some((photo) => photo[key] !== null);
  const COLUMNS = [
    { label: "", width: "4.4rem", cell: (photo) => picture(photo) },
    {
      label: "Name", key: "name", width: "minmax(7rem, 2fr)",
      cell: (photo) => make(
        "a", { class: "open", href: `#photo-${photo.place}`, title: photo.path },
        ...nameOf(photo), extraWords(photo)
      )
    },
    {
      label: "Score", key: "score", width: "4rem", number: true,
      cell: (photo) => make("b", { text: photo.score.toFixed(2) })
    },
    {
      label: `${report.coverage} interval`, key: "width", width: "minmax(7rem, 1fr)", least: 760,
      when: has("width"),
      cell: (photo) => make(
        "span", {},
        photo.width === null ? "\u2013" : `${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}`,
        strip(photo)
      )
    },
    {
      label: "Percentile", key: "percentile", width: "5.5rem", number: true, least: 520,
      when: has("percentile"),
      cell: (photo) => (photo.percentile === null ? "\u2013" : percentileText(photo.percentile))
    },
    {
      label: "Stars", width: "5.6rem", least: 620, when: has("stars"),
      cell: (photo) => (photo.stars === null ? "\u2013" : make("span", {
        class: "signs", role: "img", "aria-label": starWords(photo.stars),
        text: starSigns(photo.stars)
      }))
    },
    {
      label: "Spread", key: "spread", width: "4.5rem", number: true, least: 860,
      when: has("spread"), cell: (photo) => fixed(photo.spread, 2)
    },
    {
      label: "Unlike", key: "unlike", width: "5rem", number: true, least: 940, when: has("unlike"),
      cell: (photo) => (
        photo.unlike === null ? "\u2013" : photo.outside ? make("span", {
          class: "badge warn", title: `${report.far}. ${farWhy}`, text: photo.unlike_text
        }) : photo.unlike_text
      )
    },
    {
      label: "Sharpness", key: "sharpness", width: "5.5rem", number: true, least: 1020,
      when: has("sharpness"), cell: (photo) => fixed(photo.sharpness, 0)
    },
    {
      label: "Burst", key: "burst", width: "11.5rem", least: 1120, when: bursts.size > 0,
      cell: (photo) => (
        photo.burst ? make("span", {
          class: `badge${photo.burst.keep ? " keep" : ""}`, text: burstWords(photo.burst)
        }) : ""
      )
    },
    { label: "", width: "2rem", cell: (photo) => markButton(photo) },
  ].filter(({ when }) => when === undefined || when);
  let columns = COLUMNS;

  function row(photo) {
    return make(
      "div", { class: "row", role: "row" },
      ...columns.map(({ cell, number }) => make(
        "span", { class: `cell${number ? " number" : ""}`, role: "cell" }, cell(photo)
      ))
    );
  }

  function rowHead() {
    return make("div", { class: "row-head", id: "row-head", role: "row" }, ...columns.map(({ label, key, number }) => {
      const sortable = key && SORTS.some((sort) => sort.key === key), now = sortable && view.sort === key;
      const cell = make("span", {
        class: `cell${number ? " number" : ""}`, role: "columnheader",
        "aria-sort": now ? (view.descending ? "descending" : "ascending") : null
      });
      if (sortable) cell.append(make("button", {
        type: "button", text: label + (now ? (view.descending ? " ↓" : " ↑") : ""),
        on: {
          click: () => {
            setSort(key, now ? !view.descending : key !== "name" && key !== "burst");
            byId("row-head").querySelector("[aria-sort] button")?.focus();
          }
        }
      }));
      else cell.append(make("span", { class: "only-read", text: label || "Picture or mark" }), label);
      return cell;
    }));
  }

  /** Measure: how many columns, how high a row. */
  function measure() {
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize), width = sheet.clientWidth;
    const table = view.layout === "table";
    if (table) {
      const before = columns.length;
      columns = COLUMNS.filter(({ least = 0 }) => width >= (least * rem) / 16);
      if (columns.length !== before) cells.clear();
      list.style.setProperty("--columns", columns.map((column) => column.width).join(" "));
      grid = { columns: 1, width, step: 4.2 * rem, height: 4.2 * rem, gap: 0 };
    } else {
      // two beside each other on a telephone
      const gap = 0.8 * rem, least = Math.min((view.size * rem) / 16, (width - gap) / 2);
      const count = Math.max(1, Math.floor((width + gap) / (least + gap)));
      const each = Math.floor((width - gap * (count - 1)) / count), height = Math.round(each * 0.72 + 4.95 * rem);
      grid = { columns: count, width: each, height, step: height + gap, gap, frame: Math.round(each * 0.72) };
    }
  }

  function paint(fresh) {
    if (view.layout === "full") return paintFull();
    if (fresh) {
      measure();
      const table = view.layout === "table";
      sheet.className = table ? "sheet-table" : grid.width < 205 ? "narrow tiny" : grid.width < 275 ? "narrow" : "";
      list.setAttribute("role", table ? "table" : "list");
      sheet.setAttribute("role", table ? "rowgroup" : "presentation");
      if (table) list.setAttribute("aria-rowcount", view.order.length + 1);
      else list.removeAttribute("aria-rowcount");
      byId("row-head")?.remove();
      if (table) sheet.before(rowHead());
      sheet.style.height = `${Math.max(0, Math.ceil(view.order.length / grid.columns) * grid.step - grid.gap)}px`;
    }
    const top = -sheet.getBoundingClientRect().top, screen = window.innerHeight, before = screen / 2;
    let from = Math.max(0, Math.floor((top - before) / grid.step)) * grid.columns;
    let to = Math.min(view.order.length, Math.ceil((top + screen + before) / grid.step) * grid.columns);
    if (printing) [from, to] = [0, Math.min(view.order.length, PRINTED)];
    const wanted = new Set(view.order.slice(from, Math.max(from, to)));
    const focused = sheet.contains(document.activeElement) ? document.activeElement : null;
    if (focused && view.order.includes(view.active)) wanted.add(view.active); // what has the focus stays
    const places = new Map();
    view.order.forEach((photo, i) => { if (wanted.has(photo)) places.set(photo, i); });
    let next = sheet.firstElementChild;
    for (const [photo, place] of places) {
      let cell = cells.get(photo);
      cells.delete(photo);
      cell ||= view.layout === "table" ? row(photo) : tile(photo);
      cells.set(photo, cell);
      dressCell(cell, photo, place);
      if (cell === next) next = next.nextElementSibling;
      else sheet.insertBefore(cell, next); // in their order, for those who go from one to the next
    }
    while (next) {
      const gone = next;
      next = next.nextElementSibling;
      gone.remove();
    }
    if (focused && document.activeElement !== focused && focused.isConnected) focused.focus({ preventScroll: true });
    for (const photo of cells.keys()) {
      if (cells.size <= Math.max(CACHED, places.size)) break;
      if (!places.has(photo)) cells.delete(photo);
    }
  }

  function dressCell(cell, photo, place) {
    const left = (place % grid.columns) * (grid.width + grid.gap), top = Math.floor(place / grid.columns) * grid.step;
    cell.style.transform = `translate(${left}px, ${top}px)`;
    cell.style.height = `${grid.height}px`;
    if (view.layout === "grid") {
      cell.style.width = `${grid.width}px`;
      cell.querySelector(".frame").style.height = `${grid.frame}px`;
      cell.setAttribute("aria-posinset", place + 1);
      cell.setAttribute("aria-setsize", view.order.length);
    } else cell.setAttribute("aria-rowindex", place + 2);
    const marked = view.marks.includes(photo);
    cell.classList.toggle("marked", marked);
    cell.querySelector(".tick").setAttribute("aria-pressed", String(marked));
    for (const item of cell.querySelectorAll("a, button")) item.tabIndex = photo === view.active ? 0 : -1;
  }

  let due = false;
  function soon() {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      paint(false);
    });
  }
  window.addEventListener("scroll", soon, { passive: true });
  let widthBefore = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === widthBefore) return soon();
    widthBefore = window.innerWidth;
    return requestAnimationFrame(() => paint(true));
  });

  // ---- all in full, below each other ----

  const cards = new Map();
  function paintFull() {
    const wanted = view.order.map((photo) => {
      if (!cards.has(photo)) {
        const heading = make("h3", { class: "headed", id: `card-${photo.place}` });
        cards.set(photo, make("article", { class: "card", "aria-labelledby": heading.id },
          face(photo, heading, photos.length > 1),
          make(
            "details", { class: "moved", open: photos.length <= 20 },
            make("summary", {}, make("h4", { text: "What moved this score" })), partsTable(photo)
          ),
          photo.signals ? technical(photo.signals) : null));
      }
      return cards.get(photo);
    });
    full.replaceChildren(...wanted);
  }

  function setLayout(layout) {
    view.layout = layout;
    cells.clear();
    sheet.replaceChildren();
    full.replaceChildren();
    byId("row-head")?.remove();
    list.hidden = layout === "full";
    full.hidden = layout !== "full";
    if (byId("size-field")) byId("size-field").hidden = layout !== "grid";
    for (const button of document.querySelectorAll("#views button")) {
      button.setAttribute("aria-pressed", String(button.dataset.layout === layout));
    }
    paint(true);
  }

  /** Move the focus to a photo of the list, and bring it into view. */
  function focusOn(photo) {
    const place = view.order.indexOf(photo);
    if (place < 0) return;
    view.active = photo;
    if (view.layout === "full") {
      cards.get(photo)?.querySelector("h3 a")?.focus();
      return;
    }
    const bar = document.querySelector(".bar"), head = byId("row-head");
    const sticks = bar && getComputedStyle(bar).position === "sticky";
    const covered = (sticks ? bar.offsetHeight : 0) + (head ? head.offsetHeight : 0) + 8;
    const top = sheet.getBoundingClientRect().top + Math.floor(place / grid.columns) * grid.step;
    if (top < covered) window.scrollBy({ top: top - covered, behavior: "instant" });
    const below = top + grid.height - (window.innerHeight - 8);
    if (top >= covered && below > 0) window.scrollBy({ top: below, behavior: "instant" });
    paint(false);
    if (!cells.get(photo)?.isConnected) { // beyond what is in view after all
      if (!cells.has(photo)) cells.set(photo, view.layout === "table" ? row(photo) : tile(photo));
      sheet.append(cells.get(photo));
      dressCell(cells.get(photo), photo, place);
    }
    cells.get(photo).querySelector(".open").focus({ preventScroll: true });
  }

  function toList() {
    if (view.order.length) focusOn(view.order[0]);
  }

  sheet.addEventListener("focusin", (event) => {
    const cell = event.target.closest(".tile, .row");
    for (const [photo, element] of cells) {
      if (element !== cell || view.active === photo) continue;
      view.active = photo;
      paint(false);
      break;
    }
  });

  // ---- addresses: #photo-17, #compare-17-42 ----

  const dialogs = { photo: byId("photo"), compare: byId("compare"), help: byId("help") };
  let shownPhoto = null, shownPair = null;

  const at = (number) => photos[Number(number) - 1];
  function route() {
    const hash = location.hash;
    const one = /^#photo-(\d+)$/.exec(hash), two = /^#compare-(\d+)-(\d+)$/.exec(hash);
    if (one && at(one[1])) return openPhoto(at(one[1]));
    if (two && at(two[1]) && at(two[2]) && two[1] !== two[2]) return openCompare(at(two[1]), at(two[2]));
    return closeDialogs();
  }

  /** How many steps of this page lie behind the present entry of the history: closing goes back, where there is one. */
  const depth = () => (history.state && history.state.milnet) || 0;
  let steps = 0;
  window.addEventListener("hashchange", () => {
    if (history.state && "milnet" in history.state) steps = depth(); // back or forward
    else history.replaceState({ milnet: ++steps }, "");
    route();
  });

  function leave(all) {
    if (all || depth() === 0) instead(location.pathname + location.search);
    else history.back();
  }

  function instead(address) {
    history.replaceState({ milnet: depth() }, "", address);
    route();
  }

  function show(dialog) {
    for (const other of Object.values(dialogs)) if (other !== dialog && other.open) other.close();
    if (!dialog.open) dialog.showModal();
    dialog.querySelector(".dialog-body").scrollTop = 0;
  }

  function closeDialogs() {
    const photo = dialogs.photo.open ? shownPhoto : dialogs.compare.open ? shownPair[0] : null;
    for (const dialog of Object.values(dialogs)) if (dialog.open) dialog.close();
    if (photo && view.order.includes(photo)) focusOn(photo);
  }

  for (const [name, dialog] of Object.entries(dialogs)) {
    dialog.addEventListener("cancel", (event) => {
      if (!event.cancelable) return; // the browser closes it in any case, and says so
      event.preventDefault();
      closeOne(name);
    });
    // told later: by then the address leads elsewhere, unless the browser closed it
    dialog.addEventListener("close", () => {
      if (!dialog.open && location.hash.startsWith(`#${name}-`)) leave(false);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) closeOne(name); // beside it
      const todo = event.target.closest("[data-do]")?.dataset.do;
      if (todo === "close") closeOne(name);
      else if (todo && name === "photo") actPhoto(todo);
      else if (todo && name === "compare") actCompare(todo);
    });
  }

  // among a burst: closing leads to the list, not to each photo seen
  dialogs.photo.addEventListener("click", (event) => {
    const link = event.target.closest(".film a");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    instead(link.hash);
  });

  function closeOne(name) {
    if (name === "help") dialogs.help.close();
    else leave(false);
  }

  // ---- a photo's page ----

  /** The order the reader sees, unless the photo is not part of it. */
  const around = (photo) => (view.order.includes(photo) ? view.order : photos);

  function openPhoto(photo) {
    shownPhoto = photo;
    const order = around(photo), place = order.indexOf(photo);
    const heading = make("h2", { class: "headed", id: "photo-name", tabindex: -1 });
    const members = photo.burst ? bursts.get(photo.burst.number) : [];
    dialogs.photo.querySelector(".dialog-body").replaceChildren(
      face(photo, heading, false),
      ...(members.length > 1 ? [film(photo, members)] : []),
      make("section", { class: "block" }, make("h3", { text: "What moved this score" }), partsTable(photo)),
      ...(photo.signals ? [technical(photo.signals)] : []),
      make("section", { class: "block" }, make("p", { class: "soft" }, "File: ", photo.file
        ? make(
          "a",
          { href: photo.file, target: "_blank", rel: "noopener noreferrer", title: "Open the photo itself" },
          make("bdi", { text: photo.path })
        )
        : make("bdi", { text: photo.path }))));
    const where = `${whole(place + 1)} of ${whole(order.length)}${order.length < photos.length ? " shown" : ""}`;
    dialogs.photo.querySelector(".where").textContent = photos.length > 1 ? where : "";
    dialogs.photo.querySelector('[data-do="previous"]').disabled = place === 0;
    dialogs.photo.querySelector('[data-do="next"]').disabled = place === order.length - 1;
    const mark = dialogs.photo.querySelector('[data-do="mark"]');
    mark.hidden = photos.length < 2;
    showMarked();
    show(dialogs.photo);
    heading.focus({ preventScroll: true });
  }

  function film(photo, members) {
    return make("section", { class: "block" },
      make("h3", { text: `Burst ${photo.burst.number}: ${members.length} photos` }),
      make("div", { class: "film" }, ...members.map((member) =>
        make("a", { href: `#photo-${member.place}`, "aria-current": member === photo ? "true" : null }, picture(member),
          make(
            "span", { class: "words" }, make("b", { text: member.score.toFixed(2) }),
            member.burst.rank === null ? "" : ` ${member.burst.rank} of ${members.length}`,
            member.burst.keep ? ", keep" : "",
            make("span", { class: "name" }, ...nameOf(member))
          )))),
      make("p", { class: "note" },
        "Which are worth keeping is advice; nothing was moved or removed.",
        ...(members[0] === photo ? [] : [" ", make("a", {
          href: `#compare-${members[0].place}-${photo.place}`, text: "Compare this photo with the first of the burst"
        })])));
  }

  function actPhoto(todo) {
    if (todo === "mark") return toggleMark(shownPhoto);
    const order = around(shownPhoto), next = order[order.indexOf(shownPhoto) + (todo === "next" ? 1 : -1)];
    if (next) instead(`#photo-${next.place}`);
    return undefined;
  }

  // ---- two side by side ----

  function toggleMark(photo) {
    if (view.marks.includes(photo)) view.marks = view.marks.filter((other) => other !== photo);
    else view.marks = [...view.marks, photo].slice(-2); // a third takes the place of the first
    showMarked();
  }

  function showMarked() {
    for (const button of document.querySelectorAll("[data-mark]")) {
      const marked = view.marks.includes(photos[button.dataset.mark]);
      button.setAttribute("aria-pressed", String(marked));
      button.closest(".tile, .row")?.classList.toggle("marked", marked);
    }
    if (shownPhoto) {
      const mark = dialogs.photo.querySelector('[data-do="mark"]'), marked = view.marks.includes(shownPhoto);
      mark.setAttribute("aria-pressed", String(marked));
      mark.textContent = marked ? "Marked to compare" : "Mark to compare";
    }
    const tray = byId("tray"), focus = tray.contains(document.activeElement);
    tray.hidden = view.marks.length === 0;
    tray.replaceChildren(
      ...view.marks.map((photo) => make("span", { class: "one" }, picture(photo),
        make("span", { class: "name" }, ...nameOf(photo)),
        make("button", {
          type: "button", class: "square", text: "×",
          "aria-label": `Take ${photo.label} out of the comparison`,
          on: { click: () => toggleMark(photo) }
        }))),
      make("button", {
        type: "button", class: "primary", text: view.marks.length < 2 ? "Mark one more" : "Compare",
        disabled: view.marks.length < 2, on: { click: compareMarked }
      }));
    if (focus) (tray.querySelector("button:not(:disabled)") || byId("sort") || document.body).focus();
  }

  function compareMarked() {
    if (view.marks.length === 2) location.hash = `#compare-${view.marks[0].place}-${view.marks[1].place}`;
  }

  /** What the two scores say, and what they do not. */
  function verdict(a, b) {
    const said = [], who = report.own ? "you" : "a large panel";
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
        text: `Their ${report.coverage} intervals do not overlap: ${who} would most likely put them in this order too.`
      }));
      else {
        // Below a fifth: of normal, independent errors and intervals of 90 % the order is right for 95 of 100 or more.
        const within = low.high >= high.score || high.low <= low.score, hardly = to - from < narrower / 5;
        said.push(make("p", {
          text: `Their ${report.coverage} intervals overlap${hardly && !within ? " a little" : ""}, `
            + `from ${from.toFixed(2)} to ${to.toFixed(2)}: ` + (
            within ? `${who} could well prefer either.`
              : hardly ? `${who} would most likely put them in this order too.`
              : "this order is likely, but not sure."
          )
        }));
      }
    }
    for (const photo of [a, b]) if (photo.outside) said.push(make(
      "p", {}, name(photo), ` is ${report.far}: trust no comparison with it.`
    ));
    if (a.burst && b.burst && a.burst.number === b.burst.number) said.push(make("p", {
      text: `Both are of burst ${a.burst.number}.`
    }));
    return make("div", { class: "verdict" }, ...said);
  }

  /** The parts of both scores in one table, and what each adds to the difference. */
  function partsOfBoth(a, b) {
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
          line(["Own ", soft(OWN)], signed(a.own), signed(b.own), a.own - b.own),
          ...numbers.map((number) => line(
            [referenceCell(report.pool[number], null)], adds(ofA, number), adds(ofB, number),
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

  function openCompare(a, b) {
    shownPair = [a, b];
    const side = (photo, id) => face(photo, make("h3", { class: "headed", id }), true);
    const technicals = a.signals && b.signals ? make(
      "div", { class: "pair" }, technical(a.signals), technical(b.signals)
    ) : null;
    dialogs.compare.querySelector(".dialog-body").replaceChildren(
      verdict(a, b), make("div", { class: "pair" }, side(a, "left-name"), side(b, "right-name")),
      partsOfBoth(a, b), ...(technicals ? [technicals] : [])
    );
    const order = around(b).filter((photo) => photo !== a), place = order.indexOf(b);
    dialogs.compare.querySelector('[data-do="previous"]').disabled = place <= 0;
    dialogs.compare.querySelector('[data-do="next"]').disabled = place === order.length - 1;
    show(dialogs.compare);
    byId("compare-name").focus({ preventScroll: true });
  }

  function actCompare(todo) {
    const [a, b] = shownPair;
    if (todo === "swap") return instead(`#compare-${b.place}-${a.place}`);
    const order = around(b).filter((photo) => photo !== a), next = order[order.indexOf(b) + (todo === "next" ? 1 : -1)];
    if (next) instead(`#compare-${a.place}-${next.place}`);
    return undefined;
  }

  // ---- keys ----

  const letters = byId("letters");
  letters.checked = remembered("milnet-report-letters") !== "off";
  letters.addEventListener("change", () => remembered("milnet-report-letters", letters.checked ? "on" : "off"));

  function help() {
    show(dialogs.help);
    byId("help-name").focus();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const typing = event.target.closest("input:not([type=checkbox]):not([type=range]), select, textarea");
    if (event.target.id === "search" && event.key === "Escape") { // first empty, then leave
      if (!event.target.value) toList();
      return;
    }
    if (event.target.id === "search" && (event.key === "Enter" || event.key === "ArrowDown")) {
      event.preventDefault();
      toList();
      return;
    }
    if (typing || event.target.type === "range" || dialogs.help.open) return;
    const done = dialogs.photo.open || dialogs.compare.open ? keyInDialog(event) : keyInList(event);
    if (done) event.preventDefault();
  });

  function keyInDialog(event) {
    const act = dialogs.photo.open ? actPhoto : actCompare;
    if (event.key === "ArrowLeft") act("previous");
    else if (event.key === "ArrowRight") act("next");
    else if (!letters.checked) return false;
    else if (event.key === "c" && dialogs.photo.open) toggleMark(shownPhoto);
    else if (event.key === "v" && dialogs.photo.open) compareMarked();
    else if (event.key === "s" && dialogs.compare.open) actCompare("swap");
    else return false;
    return true;
  }

  function keyInList(event) {
    const inList = sheet.contains(event.target) || full.contains(event.target),
      nowhere = event.target === document.body;
    const across = view.layout === "grid" ? 1 : 0, down = view.layout === "grid" ? grid.columns : 1;
    const page = Math.max(1, Math.floor(window.innerHeight / grid.step) - 1) * down;
    const jump = {
      ArrowLeft: -across, ArrowRight: across, ArrowUp: -down, ArrowDown: down, PageUp: -page,
      PageDown: page, Home: -Infinity, End: Infinity
    }[event.key];
    if (jump !== undefined && photos.length > 1) {
      if (nowhere && jump && Math.abs(jump) === 1 && across) return focusOn(view.active), true;
      if (!inList || (jump === 0) || event.target.closest("details")) return false;
      const place = view.order.indexOf(view.active), lastPlace = view.order.length - 1;
      const to = Math.min(lastPlace, Math.max(0, place + jump));
      const leaves = Number.isFinite(jump) && Math.abs(jump) > 1 && place + jump > lastPlace;
      if (leaves && Math.floor(place / down) === Math.floor(lastPlace / down)) return true; // there is no row below
      if (Number.isFinite(jump) && place + jump < 0 && jump !== -page) return true;
      focusOn(view.order[to]);
      return true;
    }
    if (!letters.checked || photos.length < 2) return false;
    if (event.key === "/") byId("search").focus();
    else if (event.key === "?") help();
    else if (event.key === "f") byId("filter").click();
    else if (event.key === "c" && (inList || nowhere)) toggleMark(view.active);
    else if (event.key === "v") compareMarked();
    else return false;
    return true;
  }

  full.addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    for (const [photo, element] of cards) if (element === card) view.active = photo;
  });

  // ---- lists for other programs ----

  const listed = () => view.order.map((photo) => photo.path).join("\n") + "\n";
  function said(button, words) {
    const before = button.textContent;
    button.textContent = words;
    setTimeout(() => { button.textContent = before; }, 1600);
  }

  async function copyList(event) {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(listed());
    } catch { // not allowed where the page was opened from: the older way
      const area = make("textarea", { class: "only-read", "aria-hidden": "true" });
      area.value = listed();
      document.body.append(area);
      area.select();
      const worked = document.execCommand("copy");
      area.remove();
      button.focus();
      if (!worked) return said(button, "Copying is not allowed here");
    }
    return said(button, `Copied ${whole(view.order.length)}`);
  }

  function saveList() {
    const address = URL.createObjectURL(new Blob([listed()], { type: "text/plain" }));
    make("a", { href: address, download: "photos.txt" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  // ---- printing: what is shown, as far as paper goes ----

  const PRINTED = 600;
  window.addEventListener("beforeprint", () => {
    printing = true;
    paint(false);
    for (const image of document.images) image.decoding = "sync";
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    paint(true);
  });

  // ---- begin ----

  byId("app").hidden = false;
  if (photos.length > 1) {
    byId("sort").append(...SORTS.map(({ key, label }) => make("option", { value: key, text: label })));
    byId("sort").addEventListener("change", (event) => setSort(
      event.target.value, !["name", "burst"].includes(event.target.value)
    ));
    byId("direction").addEventListener("click", () => setSort(view.sort, !view.descending));
    byId("search").addEventListener("input", (event) => {
      view.search = event.target.value.trim().toLocaleLowerCase();
      apply();
    });
    byId("filter").addEventListener("click", () => {
      const open = byId("filters").hidden;
      byId("filters").hidden = !open;
      byId("filter").setAttribute("aria-expanded", String(open));
      paint(false);
      if (open) byId("filters").querySelector("input, select").focus();
    });
    byId("clear-all").addEventListener("click", clearFilters);
    byId("copy").addEventListener("click", copyList);
    byId("save").addEventListener("click", saveList);
    byId("keys").addEventListener("click", help);
    byId("size").addEventListener("input", (event) => {
      view.size = event.target.valueAsNumber;
      cells.size && paint(true);
    });
    const layouts = { grid: "Grid", table: "Table", ...(photos.length <= report.full ? { full: "Full" } : {}) };
    for (const [layout, text] of Object.entries(layouts)) {
      byId("views").append(make("button", {
        type: "button", "data-layout": layout, text, on: { click: () => setLayout(layout) }
      }));
    }
    buildHistograms();
    showFilters();
    const bar = document.querySelector(".bar");
    new ResizeObserver(() => {
      byId("app").style.setProperty(
        "--covered", getComputedStyle(bar).position === "sticky" ? `${bar.offsetHeight}px` : "0"
      );
    }).observe(bar);
  }
  history.replaceState({ milnet: 0 }, "");
  setLayout(view.layout);
  apply();
  route();
})();
