/* A list of photos that a reader can sort, filter, open and compare.

   Of many photos only those in view have elements. Photos may come, change and go while one looks: `update` keeps the
   reader's order, filters, marks, focus and open page. The elements with ids stand in the page (report.html.jinja,
   serve.html.jinja); a page of one photo that never gets more may leave out those that sort and filter. */

import {
  badges, burstWords, byId, face, farWhy, fixed, make, nameOf, partsOfBoth, partsTable, percentileText, poolOf,
  rankWords, remembered, starSigns, starWords, strip, technical, tell, verdict, whole
} from "./pieces.js";

/**
 * Fill the list of the page; returns what others may do with it.
 *
 * `about`: what is known of the model (pieces.js), and `file(photo)`: an element that leads to the photo itself. It may
 * change before an `update`. `view`: the layout at first, "grid", "table" or "full". `most`: photos that can be shown
 * in full below each other. `more`, all optional: `tile(photo)` an element for each tile and `height()` what it takes
 * in rem; `face(photo)` one below its score; `columns()` and `quantities()` further ones; `key(event, photo, letters)`
 * whether it took a key; `aside()` whether keys belong to something else; `applied()` when other photos are shown than
 * before; `painted()` after elements came into view.
 *
 * A photo has `key` (a whole number, for addresses; the same photo keeps it), `name`, `folder`, `path`, `score`, `low`,
 * `high`, `spread`, `percentile`, `stars`, `unlike`, `unlike_text`, `outside`, `votes`, `base`, `own`, `references`
 * ([number, likeness, adds]), `rest`, `rest_text`, `signals`, `burst` ({ number, rank, size, keep }); what is not known
 * is null. One that changes is a new object with the same key.
 */
export function gallery(about, { view: layout = "grid", most = 60, more = {} } = {}) {
  let photos = [], known = new Map(), bursts = new Map(), quantities = [], sorts = [];
  const controls = Boolean(byId("sort"));
  const rounded = (x, digits) => Number(x.toFixed(digits));
  const view = {
    sort: "score", descending: true, layout: controls ? layout : "full", size: 230,
    search: "", ranges: {}, stars: null, burst: "all", outside: "all",
    order: photos, // the photos that are shown, in their order
    active: null, // the photo that keys act on
    marks: [], // up to two photos to compare
  };

  // ---- photos that come, change and go ----

  const folderOf = (path) => path.slice(0, path.length - path.split(/[\\/]/).pop().length);

  function take(next) {
    photos = next;
    known = new Map(photos.map((photo) => [photo.key, photo]));
    byName = null;
    bursts = new Map();
    // A search looks at names, and at folders as far as they differ.
    const shared = photos.map(({ path }) => folderOf(path)).reduce((a, b) => {
      if (b.startsWith(a)) return a;
      let end = 0;
      while (end < a.length && a[end] === b[end]) end++;
      return a.slice(0, Math.max(a.lastIndexOf("/", end - 1), a.lastIndexOf("\\", end - 1)) + 1);
    }, photos.length ? folderOf(photos[0].path) : "");
    photos.forEach((photo, index) => {
      photo.index = index;
      photo.place = index + 1; // 1 = the highest score
      photo.label = photo.folder + photo.name;
      photo.width = photo.low === null || photo.high === null ? null : photo.high - photo.low;
      photo.sharpness = photo.signals ? photo.signals.sharpness : null;
      photo.text = photo.path.slice(shared.length).toLocaleLowerCase();
      if (!photo.burst) return;
      if (!bursts.has(photo.burst.number)) bursts.set(photo.burst.number, []);
      bursts.get(photo.burst.number).push(photo);
    });
    for (const members of bursts.values()) members.sort((a, b) => (a.burst.rank ?? 0) - (b.burst.rank ?? 0));
    // What photos are sorted and filtered by; `digits` as they are shown, and as a filter compares them.
    quantities = [
      { key: "score", label: "Score", digits: 2 },
      { key: "percentile", label: "Percentile", digits: 0 },
      { key: "width", label: "Width of the interval (doubt)", short: "Interval width", digits: 2 },
      { key: "spread", label: "Spread of the votes", short: "Spread", digits: 2 },
      { key: "unlike", label: `Unlike ${poolOf(about)} (doubt)`, short: "Unlike", digits: 2 },
      { key: "sharpness", label: "Sharpness", digits: 0 },
      ...(more.quantities?.() || []),
    ].filter(({ key }) => has(key));
    sorts = [
      ...quantities.slice(0, 1), { key: "name", label: "Name", of: nameOrder }, ...quantities.slice(1),
      ...(
        bursts.size ? [{ key: "burst", label: "Burst", of: (photo) => (photo.burst ? photo.burst.number : null) }] : []
      ),
    ];
  }

  /** What the reader chose, as far as it can still be meant. */
  function settle() {
    const scale = about.values.join();
    if (scale !== scaled) { // limits on another scale say nothing
      for (const key of ["score", "width", "spread"]) delete view.ranges[key];
      view.stars = null;
      scaled = scale;
    }
    for (const key of Object.keys(view.ranges)) if (!quantities.some((one) => one.key === key)) delete view.ranges[key];
    if (typeof view.burst === "number" ? !bursts.has(view.burst) : !bursts.size) view.burst = "all";
    if (!photos.some((photo) => photo.outside)) view.outside = "all";
    if (!sorts.some(({ key }) => key === view.sort)) Object.assign(view, { sort: "score", descending: true });
    view.active = known.get(view.active?.key) || photos[0] || null;
    view.marks = view.marks.map((photo) => known.get(photo.key)).filter(Boolean);
    for (const kept of [cells, cards]) {
      for (const photo of kept.keys()) if (known.get(photo.key) !== photo) kept.delete(photo);
    }
  }
  let scaled = "", dressed = "";

  /** Sorts, filters, columns and layouts that there are now. */
  function dressControls() {
    const said = [
      about.own, about.far, about.stars, about.coverage, ...sorts.map(({ key }) => key), has("stars"),
      photos.some((photo) => photo.outside), photos.length <= most
    ].join();
    if (said !== dressed) {
      dressed = said;
      possible = columnsOf();
      forgetCells();
      headed = "";
      if (!controls) return;
      byId("sort").replaceChildren(...sorts.map(({ key, label }) => make("option", { value: key, text: label })));
      const panel = byId("filters"), focus = panel.contains(document.activeElement) ? document.activeElement.id : "";
      panel.replaceChildren();
      buildFilters(panel);
      if (focus) byId(focus)?.focus();
      const layouts = { grid: "Grid", table: "Table", ...(photos.length <= most ? { full: "Full" } : {}) };
      const pressed = byId("views").contains(document.activeElement) ? document.activeElement.dataset.layout : "";
      byId("views").replaceChildren(...Object.entries(layouts).map(([name, text]) => make("button", {
        type: "button", "data-layout": name, "aria-pressed": String(name === view.layout), text,
        on: { click: () => setLayout(name) }
      })));
      if (pressed) byId("views").querySelector(`[data-layout=${pressed}]`)?.focus();
    }
    if (!controls) return;
    showEnds();
    showFilters();
    buildHistograms();
  }

  /** Show these photos from now on, given the best first; `quiet`: more are to come, so say nothing aloud. */
  function update(next, { quiet = false } = {}) {
    const focused = document.activeElement, inside = focused?.closest(".tile, .row, .card");
    const which = inside ? [...inside.querySelectorAll("a, button, summary")].indexOf(focused) : -1;
    take(next);
    byId("app").hidden = !photos.length;
    settle();
    if (!photos.length) {
      view.order = [];
      sheet.replaceChildren();
      full.replaceChildren();
      showMarked();
      return renewDialogs();
    }
    byId("found")?.setAttribute("aria-live", quiet ? "off" : "polite");
    dressControls();
    const fits = view.layout !== "full" || photos.length <= most || !controls;
    if (!fits || list.hidden !== (view.layout === "full")) setLayout(fits ? view.layout : "grid");
    apply();
    showMarked();
    if (which >= 0 && !focused.isConnected) { // what had the focus was made anew
      const again = (view.layout === "full" ? cards : cells).get(view.active);
      if (again?.isConnected) [...again.querySelectorAll("a, button, summary")][which]?.focus({ preventScroll: true });
    }
    return renewDialogs();
  }

  /** Show in an open page what is known now. */
  function renewDialogs() {
    if (dialogs.photo.open && shownPhoto) {
      const now = known.get(shownPhoto.key);
      if (!now) instead(location.pathname + location.search);
      else if (now === shownPhoto) showWhere();
      else keepPlace(dialogs.photo, () => openPhoto(now));
    } else if (dialogs.compare.open && shownPair) {
      const [a, b] = shownPair.map((photo) => known.get(photo.key));
      if (!a || !b) instead(location.pathname + location.search);
      else if (a === shownPair[0] && b === shownPair[1]) showBeside();
      else keepPlace(dialogs.compare, () => openCompare(a, b));
    }
  }

  function keepPlace(dialog, open) {
    const inner = dialog.querySelector(".dialog-body"), top = inner.scrollTop, focused = document.activeElement;
    open();
    inner.scrollTop = top;
    if (focused?.isConnected && dialog.contains(focused)) focused.focus({ preventScroll: true });
  }

  const markButton = (photo) => make("button", {
    type: "button", class: "tick", "aria-pressed": String(view.marks.includes(photo)),
    "aria-label": `Mark ${photo.label} to compare`,
    title: "Mark this photo, to compare it with another (key c)", "data-mark": photo.key,
    on: { click: () => toggleMark(known.get(photo.key) || photo) },
  });

  // ---- which photos are shown, and in which order ----

  const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  let byName = null; // photo -> its place among the names; made when it is first asked for
  function nameOrder(photo) {
    byName ||= new Map([...photos].sort(
      (a, b) => names.compare(a.name, b.name) || names.compare(a.path, b.path)
    ).map((one, i) => [one, i]));
    return byName.get(photo);
  }

  function passes(photo) {
    if (view.search && !photo.text.includes(view.search)) return false;
    for (const { key, digits } of quantities) {
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
    const sort = sorts.find(({ key }) => key === view.sort), of = sort.of || ((photo) => photo[sort.key]);
    const way = view.descending ? -1 : 1;
    view.order = photos.filter(passes).sort((a, b) => {
      const x = of(a), y = of(b);
      // what is not known comes last
      if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
      if (x !== y) return way * (x - y);
      return (sort.key === "burst" && (a.burst.rank ?? 0) - (b.burst.rank ?? 0)) || a.index - b.index;
    });
    if (!view.order.includes(view.active)) view.active = view.order[0] || photos[0] || null;
    tellFound(sort);
    showChips();
    for (const histogram of histograms) histogram.update();
    byId("nothing").hidden = view.order.length > 0 || !photos.length;
    more.applied?.();
    paint(true);
  }

  function tellFound(sort) {
    if (!byId("found")) return;
    const count = view.order.length, all = photos.length;
    const [down, up] = sort.key === "name" ? ["z to a", "a to z"] : ["highest first", "lowest first"];
    const direction = view.descending ? down : up;
    const counted = count === all ? whole(all) : `${whole(count)} of ${whole(all)}`;
    const by = (sort.short || sort.label).toLowerCase();
    tell(byId("found"), `${counted} photo${all === 1 ? "" : "s"}, by ${by}, ${direction}`);
    tell(byId("direction"), view.descending ? "↓" : "↑");
    byId("direction").setAttribute(
      "aria-label", `${direction[0].toUpperCase() + direction.slice(1)}: turn the order round`
    );
    byId("direction").title = "Turn the order round";
    byId("sort").value = view.sort;
    tell(byId("filter"), filterCount() ? `Filter (${filterCount()})` : "Filter");
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
  const outsides = () => ({ all: "All photos", inside: "Only photos like those", outside: `Only ${about.far}` });

  let chipped = "";

  /** What is filtered at the moment, each with a button that ends it. */
  function showChips() {
    if (!byId("chips")) return;
    const chips = [];
    const chip = (words, end) => chips.push(make("button", {
      type: "button", text: `${words} ×`, "aria-label": `${words}: end this filter`,
      on: { click: () => { end(); showFilters(); apply(); } }
    }));
    if (view.search) chip(`Name: ${view.search}`, () => { view.search = ""; byId("search").value = ""; });
    for (const { key, label, short, digits } of quantities) {
      const range = view.ranges[key];
      if (!range) continue;
      const [from, to] = [range.from, range.to].map((x) => (x === null ? null : x.toFixed(digits)));
      const words = from === null ? `to ${to}` : to === null ? `from ${from}` : `${from} to ${to}`;
      chip(`${short || label} ${words}`, () => { view.ranges[key] = null; });
    }
    if (view.stars) chip(`Stars ${[...view.stars].sort().join(", ")}`, () => { view.stars = null; });
    if (view.burst !== "all") chip(BURSTS[view.burst] || `Burst ${view.burst}`, () => { view.burst = "all"; });
    if (view.outside !== "all") chip(outsides()[view.outside], () => { view.outside = "all"; });
    const said = chips.map((one) => one.textContent).join();
    if (said === chipped) return; // those there are keep the focus
    chipped = said;
    byId("chips").replaceChildren(...chips);
  }

  /** The fields of the filter panel, filled with what is set. */
  function showFilters() {
    const panel = byId("filters");
    if (!panel) return;
    for (const { key } of quantities) {
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

  /** Show in the empty fields of the filters from where to where the photos reach. */
  function showEnds() {
    for (const { key, digits } of quantities) {
      const known = photos.map((photo) => photo[key]).filter((x) => x !== null).map((x) => rounded(x, digits));
      byId(`from-${key}`).placeholder = known.reduce((a, b) => Math.min(a, b), Infinity).toFixed(digits);
      byId(`to-${key}`).placeholder = known.reduce((a, b) => Math.max(a, b), -Infinity).toFixed(digits);
    }
  }

  function buildFilters(panel) {
    for (const { key, label, digits } of quantities) {
      const field = (end) => make("input", {
        type: "number", id: `${end}-${key}`, step: 10 ** -digits,
        "aria-label": `${label}, ${end}`,
        on: { input: () => { view.ranges[key] = rangeOf(key); apply(); } },
      });
      panel.append(make(
        "fieldset", {}, make("legend", { text: label }),
        make("div", { class: "range" }, field("from"), "to", field("to"))
      ));
    }
    if (photos.some((photo) => photo.stars !== null)) {
      const picks = make("div", { class: "picks" });
      for (let n = 1; n <= about.stars; n++) {
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
    if (photos.some((photo) => photo.outside)) choice("outside", `Like ${poolOf(about)}`, outsides());
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
    const boxes = [...byId("filters").querySelectorAll("[data-stars]:checked")];
    const chosen = boxes.map((box) => Number(box.dataset.stars));
    view.stars = chosen.length === about.stars ? null : new Set(chosen);
    apply();
  }

  // ---- histograms ----

  let histograms = [], binned = ""; // what is drawn, and with which bins

  /** How many photos there are in each bin, all of them and those shown; a click or a drag over bins filters. */
  function histogramOf({ key, label, digits }, step, low, high) {
    const unit = 10 ** digits; // bins are counted in whole units of what is shown, so none is lost at an edge
    const count = Math.ceil((high - low) / step); // the last bin has its upper end as well
    const bin = (photo) => Math.min(count - 1, Math.floor(
      (Math.round(rounded(photo[key], digits) * unit) - low) / step
    ));
    let all = [], known = 0, most = 1;
    const ends = (i) => [(low + i * step) / unit, (i === count - 1 ? high : low + (i + 1) * step - 1) / unit];
    const words = (i) => ends(i).map((x) => x.toFixed(digits)).join(" to ");
    const bars = Array.from(
      { length: count }, () => make("button", { type: "button", tabindex: -1 }, make("i"), make("i"))
    );
    bars[0].tabIndex = 0;
    const told = make("span", { text: "click or drag over bars to filter" });
    const group = make(
      "div",
      { class: "bins", role: "group", "aria-label": `${label}s of the photos: each bar filters` },
      ...bars
    );
    const title = make("span", { class: "what" });
    const box = make("div", { class: "histogram" },
      make("h3", {}, title, told),
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
    const released = (event) => {
      if (start === null) return;
      const end = at(event);
      if (end !== start) select(start, end); // one bar alone is a click
      start = null;
    };
    window.addEventListener("pointerup", released);
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
      box,
      end: () => window.removeEventListener("pointerup", released),
      count() { // the photos, whichever are shown
        all = new Array(count).fill(0);
        known = 0;
        for (const photo of photos) if (photo[key] !== null) { all[bin(photo)]++; known++; }
        most = Math.max(1, ...all);
        bars.forEach((bar, i) => { bar.firstChild.style.height = `${(100 * all[i]) / most}%`; });
        tell(title, `${label}s of ${photos.length === known ? "these" : whole(known)} photos`);
      },
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
  }

  function buildHistograms() {
    const place = byId("histograms");
    place.hidden = photos.length < 8;
    if (place.hidden) return;
    const score = quantities[0], unit = 100;
    const known = photos.map((photo) => Math.round(rounded(photo.score, 2) * unit));
    const least = known.reduce((a, b) => Math.min(a, b)), largest = known.reduce((a, b) => Math.max(a, b));
    const range = largest - least;
    const steps = [1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000];
    const step = steps.find((size) => range / size <= 32) || Math.ceil(range / 32);
    const [low, high] = [
      Math.floor(least / step) * step,
      Math.ceil((largest + 1) / step) * step
    ];
    const percentile = quantities.find(({ key }) => key === "percentile");
    const bins = [step, low, high, Boolean(percentile)].join();
    if (bins !== binned) {
      const bars = [...place.querySelectorAll("button")], focus = bars.indexOf(document.activeElement);
      binned = bins;
      for (const one of histograms) one.end();
      histograms = [];
      histogramOf(score, step, low, high);
      if (percentile) histogramOf(percentile, 5, 0, 100);
      place.replaceChildren(...histograms.map(({ box }) => box));
      if (focus >= 0) place.querySelectorAll("button")[focus]?.focus();
    }
    for (const one of histograms) one.count();
  }

  // ---- tiles and rows: only those in view exist ----

  const list = byId("list"), sheet = byId("sheet"), full = byId("full");
  const CACHED = 240; // elements that are kept for when they come into view again
  const cells = new Map(); // photo -> its tile or row, the latest last
  let grid = { columns: 1, width: 0, height: 0, step: 0, gap: 0 };
  let printing = false;

  function tile(photo) {
    const name = make("span", { class: "name", title: photo.path }, ...nameOf(photo));
    const frame = about.picture(photo);
    if (photo.outside) frame.title = farWhy(about); // the badge lies above it, and lets the pointer through
    const words = make("span", { class: "words" },
      make("span", { class: "line" }, make("b", { text: photo.score.toFixed(2) }),
        photo.stars === null ? null : make("span", {
          class: "signs", role: "img", "aria-label": starWords(about, photo.stars),
          text: starSigns(about, photo.stars)
        }),
        photo.percentile === null ? null : make("span", { class: "soft", title: rankWords(about, photo) },
          make("span", { class: "word", text: "percentile " }),
          make("span", { class: "short", "aria-hidden": "true", text: "P" }), percentileText(photo.percentile))),
      strip(about, photo), name);
    return make("div", { class: "tile", role: "listitem" },
      make("a", { class: "open", href: `#photo-${photo.key}` }, frame, words, extraWords(photo)),
      make("span", { class: "badges", "aria-hidden": "true" }, ...badges(about, photo)), markButton(photo),
      more.tile?.(photo));
  }

  /** What badges say, for those who do not see them. */
  function extraWords(photo) {
    const words = [
      photo.burst ? burstWords(photo.burst) : null,
      photo.outside ? about.far : null
    ].filter(Boolean).join(", ");
    return words ? make("span", { class: "only-read", text: words }) : null;
  }

  const has = (key) => photos.some((photo) => photo[key] !== null);
  const columnsOf = () => [
    { label: "", width: "4.4rem", cell: (photo) => about.picture(photo) },
    {
      label: "Name", key: "name", width: "minmax(7rem, 2fr)",
      cell: (photo) => make(
        "a", { class: "open", href: `#photo-${photo.key}`, title: photo.path },
        ...nameOf(photo), extraWords(photo)
      )
    },
    {
      label: "Score", key: "score", width: "4rem", number: true,
      cell: (photo) => make("b", { text: photo.score.toFixed(2) })
    },
    {
      label: `${about.coverage} interval`, key: "width", width: "minmax(7rem, 1fr)", least: 760,
      when: has("width"),
      cell: (photo) => make(
        "span", {},
        photo.width === null ? "\u2013" : `${fixed(photo.low, 2)} to ${fixed(photo.high, 2)}`,
        strip(about, photo)
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
        class: "signs", role: "img", "aria-label": starWords(about, photo.stars),
        text: starSigns(about, photo.stars)
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
          class: "badge warn", title: `${about.far}. ${farWhy(about)}`, text: photo.unlike_text
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
    ...(more.columns?.() || []),
    { label: "", width: "2rem", cell: (photo) => markButton(photo) },
  ].filter(({ when }) => when === undefined || when);
  let possible = [], columns = []; // those there are, and those for which there is room

  function row(photo) {
    return make(
      "div", { class: "row", role: "row" },
      ...columns.map(({ cell, number }) => make(
        "span", { class: `cell${number ? " number" : ""}`, role: "cell" }, cell(photo)
      ))
    );
  }

  let headed = ""; // what the head of the table says

  function showHead(table) {
    const said = table ? [view.sort, view.descending, ...columns.map(({ label }) => label)].join() : "";
    if (said === headed) return;
    headed = said;
    byId("row-head")?.remove();
    if (table) sheet.before(rowHead());
  }

  function rowHead() {
    return make("div", { class: "row-head", id: "row-head", role: "row" }, ...columns.map(({ label, key, number }) => {
      const sortable = key && sorts.some((sort) => sort.key === key), now = sortable && view.sort === key;
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
      columns = possible.filter(({ least = 0 }) => width >= (least * rem) / 16);
      if (columns.length !== before) forgetCells();
      list.style.setProperty("--columns", columns.map((column) => column.width).join(" "));
      grid = { columns: 1, width, step: 4.2 * rem, height: 4.2 * rem, gap: 0 };
    } else {
      // two beside each other on a telephone
      const gap = 0.8 * rem, least = Math.min((view.size * rem) / 16, (width - gap) / 2);
      const count = Math.max(1, Math.floor((width + gap) / (least + gap)));
      const each = Math.floor((width - gap * (count - 1)) / count), words = 4.95 + (more.height?.() || 0);
      const height = Math.round(each * 0.72 + words * rem);
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
      showHead(table);
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
    more.painted?.();
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

  const forgetCells = () => cells.clear();

  // ---- all in full, below each other ----

  const cards = new Map();
  function paintFull() {
    const wanted = view.order.map((photo) => {
      if (!cards.has(photo)) {
        const heading = make("h3", { class: "headed", id: `card-${photo.key}` });
        cards.set(photo, make("article", { class: "card", "aria-labelledby": heading.id },
          face(about, photo, heading, faced(photo, true)),
          make(
            "details", { class: "moved", open: photos.length <= 20 },
            make("summary", {}, make("h4", { text: "What moved this score" })), partsTable(about, photo)
          ),
          photo.signals ? technical(photo.signals) : null));
      }
      return cards.get(photo);
    });
    if (wanted.some((card, i) => card !== full.children[i]) || wanted.length !== full.childElementCount) {
      full.replaceChildren(...wanted);
    }
    more.painted?.();
  }

  /** What stands in the face of a photo beside what is known of it. */
  const faced = (photo, listed) => ({
    place: photos.length > 1 || !listed, link: listed && photos.length > 1,
    tool: listed && photos.length > 1 ? markButton(photo) : null, press: photos.length > 1 ? showBurst : null,
    more: more.face?.(photo), large: !listed
  });

  function setLayout(layout) {
    view.layout = layout;
    forgetCells();
    sheet.replaceChildren();
    full.replaceChildren();
    showHead(false);
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

  const at = (key) => known.get(Number(key));
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
    const photo = shownPhoto || (shownPair && shownPair[0]); // the browser may have closed its page already
    shownPhoto = shownPair = null;
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

  /** Where the photo whose page is open stands among the others. */
  function showWhere() {
    const order = around(shownPhoto), place = order.indexOf(shownPhoto);
    const where = `${whole(place + 1)} of ${whole(order.length)}${order.length < photos.length ? " shown" : ""}`;
    tell(dialogs.photo.querySelector(".where"), photos.length > 1 ? where : "");
    dialogs.photo.querySelector('[data-do="previous"]').disabled = place === 0;
    dialogs.photo.querySelector('[data-do="next"]').disabled = place === order.length - 1;
    const number = dialogs.photo.querySelector(".place");
    if (number) tell(number, String(shownPhoto.place));
  }

  function openPhoto(photo) {
    shownPhoto = photo;
    shownPair = null;
    const heading = make("h2", { class: "headed", id: "photo-name", tabindex: -1 });
    const members = photo.burst ? bursts.get(photo.burst.number) : [];
    dialogs.photo.querySelector(".dialog-body").replaceChildren(
      face(about, photo, heading, faced(photo, false)),
      ...(members.length > 1 ? [film(photo, members)] : []),
      make("section", { class: "block" }, make("h3", { text: "What moved this score" }), partsTable(about, photo)),
      ...(photo.signals ? [technical(photo.signals)] : []),
      make("section", { class: "block" }, make("p", { class: "soft" }, "File: ", about.file(photo))));
    showWhere();
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
        make("a", { href: `#photo-${member.key}`, "aria-current": member === photo ? "true" : null },
          about.picture(member),
          make(
            "span", { class: "words" }, make("b", { text: member.score.toFixed(2) }),
            member.burst.rank === null ? "" : ` ${member.burst.rank} of ${members.length}`,
            member.burst.keep ? ", keep" : "",
            make("span", { class: "name" }, ...nameOf(member))
          )))),
      make("p", { class: "note" },
        "Which are worth keeping is advice; nothing was moved or removed.",
        ...(members[0] === photo ? [] : [" ", make("a", {
          href: `#compare-${members[0].key}-${photo.key}`, text: "Compare this photo with the first of the burst"
        })])));
  }

  function actPhoto(todo) {
    if (todo === "mark") return toggleMark(shownPhoto);
    const order = around(shownPhoto), next = order[order.indexOf(shownPhoto) + (todo === "next" ? 1 : -1)];
    if (next) instead(`#photo-${next.key}`);
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
      const marked = view.marks.some((photo) => String(photo.key) === button.dataset.mark);
      button.setAttribute("aria-pressed", String(marked));
      button.closest(".tile, .row")?.classList.toggle("marked", marked);
    }
    if (shownPhoto) {
      const mark = dialogs.photo.querySelector('[data-do="mark"]'), marked = view.marks.includes(shownPhoto);
      mark.setAttribute("aria-pressed", String(marked));
      mark.textContent = marked ? "Marked to compare" : "Mark to compare";
    }
    const tray = byId("tray"), focus = tray.contains(document.activeElement);
    if (tray.hidden && view.marks.length === 0) return;
    tray.hidden = view.marks.length === 0;
    tray.replaceChildren(
      ...view.marks.map((photo) => make("span", { class: "one" }, about.picture(photo),
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
    if (view.marks.length === 2) location.hash = `#compare-${view.marks[0].key}-${view.marks[1].key}`;
  }


  /** Whether there are photos before and behind the one on the right. */
  function showBeside() {
    const [a, b] = shownPair, order = around(b).filter((photo) => photo !== a), place = order.indexOf(b);
    dialogs.compare.querySelector('[data-do="previous"]').disabled = place <= 0;
    dialogs.compare.querySelector('[data-do="next"]').disabled = place === order.length - 1;
  }

  function openCompare(a, b) {
    shownPair = [a, b];
    shownPhoto = null;
    const side = (photo, id) => face(about, photo, make("h3", { class: "headed", id }), {
      ...faced(photo, true), place: true, link: true, large: true
    });
    const technicals = a.signals && b.signals ? make(
      "div", { class: "pair" }, technical(a.signals), technical(b.signals)
    ) : null;
    dialogs.compare.querySelector(".dialog-body").replaceChildren(
      verdict(about, a, b), make("div", { class: "pair" }, side(a, "left-name"), side(b, "right-name")),
      partsOfBoth(about, a, b), ...(technicals ? [technicals] : [])
    );
    showBeside();
    show(dialogs.compare);
    byId("compare-name").focus({ preventScroll: true });
  }

  function actCompare(todo) {
    const [a, b] = shownPair;
    if (todo === "swap") return instead(`#compare-${b.key}-${a.key}`);
    const order = around(b).filter((photo) => photo !== a), next = order[order.indexOf(b) + (todo === "next" ? 1 : -1)];
    if (next) instead(`#compare-${a.key}-${next.key}`);
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
    if (typing || event.target.type === "range" || dialogs.help.open || more.aside?.()) return;
    const done = dialogs.photo.open || dialogs.compare.open ? keyInDialog(event) : keyInList(event);
    if (done) event.preventDefault();
  });

  function keyInDialog(event) {
    const act = dialogs.photo.open ? actPhoto : actCompare;
    if (dialogs.photo.open && more.key?.(event, shownPhoto, letters.checked)) return true;
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
    if (!photos.length) return false;
    if ((inList || nowhere) && more.key?.(event, view.active, letters.checked)) return true;
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

  // ---- begin ----

  if (controls) {
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
    const bar = document.querySelector(".bar");
    new ResizeObserver(() => {
      byId("app").style.setProperty(
        "--covered", getComputedStyle(bar).position === "sticky" ? `${bar.offsetHeight}px` : "0"
      );
    }).observe(bar);
  }
  history.replaceState({ milnet: 0 }, "");

  return {
    update, route,
    order: () => view.order,
    /** Lay all out again: what tiles hold has changed. */
    renew() {
      dressed = "";
      cells.clear();
      cards.clear();
      if (!photos.length) return;
      dressControls();
      apply();
      if (dialogs.photo.open && shownPhoto) keepPlace(dialogs.photo, () => openPhoto(shownPhoto));
    },
  };
}
