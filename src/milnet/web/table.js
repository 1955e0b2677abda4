/* Scores as the CSV file that `milnet score -o scores.csv` writes: the same columns, the same form of each cell. */

/** A number as Python writes it. */
export function pythonNumber(x) {
  if (Number.isInteger(x) && Math.abs(x) < 1e16) return Object.is(x, -0) ? "-0.0" : `${x}.0`;
  const size = Math.abs(x);
  let text = size >= 1e16 || size < 1e-4 ? x.toExponential() : String(x);
  text = text.replace(/e([+-])(\d)$/, "e$10$2"); // two digits at least
  return text;
}

const SIGNS = { '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f" };
const pythonText = (text) => `"${text.replace(
  /["\\\n\r\t\b\f]|[^\x20-\x7e]/g, (c) => SIGNS[c] || `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`
)}"`;
const pythonReferences = (references) => `[${references.map(({ id, similarity, votes, influence }) =>
  `{"id": ${pythonText(id)}, "similarity": ${pythonNumber(similarity)}, `
  + `"votes": [${votes.map(pythonNumber).join(", ")}], "influence": ${pythonNumber(influence)}}`).join(", ")}]`;

/** A cell, in quotes where it has to be. */
const cell = (x) => {
  const text = x === null || x === undefined ? "" : String(x);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
const float = (x) => (x === null || x === undefined ? null : pythonNumber(x));
const SIGNALS = ["width", "height", "sharpness", "highlights", "shadows", "noise"];

/** The file for `rows` of { path, score (of the service), stars, folderPercentile, burst or null }. */
export function csvOf(rows, { values, digest, version }) {
  const head = [
    "photo", "score", "low", "high", "spread", "percentile", "stars", "folder_percentile", "unlike", "group", "rank",
    "keep", ...values.map((value) => `p_${value}`), "base", "own", "references", "rest", ...SIGNALS, "model", "milnet"
  ];
  const lines = rows.map(({ path, score, stars, folderPercentile, burst }) => {
    const signals = score.signals || {};
    return [
      path, float(score.score), float(score.low), float(score.high), float(score.spread), float(score.percentile),
      stars, float(folderPercentile), float(score.unlike), burst?.number, burst?.rank, burst?.keep,
      ...score.distribution.map(float), float(score.base), float(score.own), pythonReferences(score.references),
      float(score.rest), signals.width, signals.height, ...SIGNALS.slice(2).map((name) => float(signals[name])),
      digest, version
    ].map(cell).join(",");
  });
  return [head.join(","), ...lines, ""].join("\n");
}

const ROUNDING = 1e-5; // scores no further apart are ties (bursts.py)

/** Score -> 100 x the share of the others that score lower, ties half; null for a single photo (scoring.ranked). */
export function percentilesAmong(scores) {
  if (scores.length < 2) return () => null;
  const ordered = [...scores].sort((a, b) => a - b);
  const place = (x, after) => {
    let low = 0, high = ordered.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ordered[middle] < x || (after && ordered[middle] === x)) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return (x) => {
    const low = place(x - ROUNDING, false), high = place(x + ROUNDING, true);
    return (100 * (low + (high - low - 1) / 2)) / (ordered.length - 1);
  };
}

/** Let the reader keep `content` (a Blob) as a file. */
export function saveAs(name, content) {
  const address = URL.createObjectURL(content), link = document.createElement("a");
  link.href = address;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
