/* The service that the page talks to: requests with the token, errors as sentences, answers line by line. */

const KEY = "milnet-token";
let token = "";
try {
  token = sessionStorage.getItem(KEY) || "";
} catch { /* a browser that keeps nothing asks again after a reload */ }

export const hasToken = () => token !== "";

/** Use this token from now on, as long as the tab is open. */
export function setToken(text) {
  token = text;
  try {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  } catch { /* as above */ }
}

/** What the service refused. `status` and the members of the problem, such as `detail` or `missing`, in `problem`. */
export class Refused extends Error {
  constructor(status, problem, wait) {
    super(problem.detail || problem.title || `The service answered ${status}.`);
    this.status = status;
    this.problem = problem;
    this.wait = wait; // seconds to wait before it is asked again, or null
  }
}

/** The service did not answer, or stopped in the middle. */
export class Lost extends Error {}

/** The answer to a request; raises Refused, Lost, or the AbortError of the request. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost(error.message);
  }
  if (response.ok) return response;
  let problem = {};
  try {
    problem = await response.json();
  } catch { /* from something between the page and the service: its status is all there is */ }
  const after = Number(response.headers.get("Retry-After"));
  const wait = response.status === 429 ? Math.min(60, after > 0 ? after : 1) : null;
  throw new Refused(response.status, problem, wait);
}

export const post = (path, data, options = {}) => ask(path, {
  ...options, method: "POST", body: JSON.stringify(data),
  headers: { "Content-Type": "application/json", ...options.headers }
});

/** Wait, unless the signal ends it. */
export function pause(seconds, signal) {
  return new Promise((done, fail) => {
    const stop = () => { clearTimeout(timer); fail(new DOMException("stopped", "AbortError")); };
    const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); done(); }, 1000 * seconds);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The objects of an answer of JSON lines, as they arrive. */
export async function* lines(response) {
  const reader = response.body.getReader(), decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Lost(error.message);
    }
    rest += decoder.decode(part.value || new Uint8Array(), { stream: !part.done });
    const found = rest.split("\n");
    rest = found.pop();
    for (const line of found) if (line.trim()) yield JSON.parse(line);
    if (part.done) return;
  }
}
