// The REST interface and the event stream, as the pages use them.

const { root, api } = document.body.dataset;

export const page = (path) => `${root}${path}`;
export const address = (path) => `${api}${path}`;

/** An answer that is no success; `problem` is its RFC 9457 body. */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

/** The server could not be reached at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server does not answer. This page goes on by itself as soon as it does.");
  }
}

export async function call(method, path, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(address(path), { method, headers, body, credentials: "same-origin" });
  } catch {
    throw new Unreachable();
  }
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  if (answer.status === 401 && !location.pathname.endsWith("/signin")) {
    location.assign(page(`/signin?next=${encodeURIComponent(location.pathname + location.search)}`));
  }
  throw new Refused(answer.status, await problemOf(answer));
}

async function problemOf(answer) {
  try {
    return await answer.json();
  } catch {
    return { title: answer.statusText, detail: `The server answered with status ${answer.status}.`, errors: [] };
  }
}

export const get = (path) => call("GET", path);
export const remove = (path) => call("DELETE", path);
export const post = (path, value) =>
  value === undefined ? call("POST", path) : call("POST", path, JSON.stringify(value), { "Content-Type": "application/json" });

/** The query part of an address, without what is not set. */
export function query(values) {
  const set = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return set.length ? `?${new URLSearchParams(set)}` : "";
}

/** Sends a file as it lies on the disk, piece by piece. kind: models or datasets; told(share) hears from 0 to 1. */
export function upload(kind, file, told) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(`/${kind}?name=${encodeURIComponent(file.name)}`));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.upload.addEventListener("progress", (event) => event.lengthComputable && told(event.loaded / event.total));
    request.addEventListener("error", () => reject(new Unreachable()));
    request.addEventListener("load", () => {
      let body;
      try {
        body = JSON.parse(request.responseText);
      } catch {
        body = { detail: `The server answered with status ${request.status}.` };
      }
      if (request.status < 300) resolve(body);
      else reject(new Refused(request.status, body));
    });
    request.send(file);
  });
}

const SETTLED = ["succeeded", "failed", "cancelled"];
export const settled = (state) => SETTLED.includes(state);

const AGAIN_MS = 2000;

/**
 * Follows a job's events until it is settled. `heard(event)` gets each one, in order and once, from the one after `after` on; `linked(up)`
 * hears when the stream breaks and when it is there again. A stream that ends while the job goes on (the server was restarted) is opened
 * again after the last event. known: the last event of the job as it was read; those before it are history, which ends nothing.
 */
export function follow(job, after, known, heard, linked) {
  let source = null;
  let timer = 0;
  let closed = false;
  const close = () => {
    closed = true;
    source?.close();
    clearTimeout(timer);
  };
  const open = () => {
    source = new EventSource(address(`/jobs/${job}/events?after=${after}`));
    source.onopen = () => linked(true);
    source.onerror = () => {
      // The browser's own way of trying again gives up where the server answers with an error; ours does not.
      source.close();
      if (closed) return;
      linked(false);
      timer = setTimeout(open, AGAIN_MS);
    };
    for (const kind of ["state", "phase", "progress", "trial", "message"]) {
      source.addEventListener(kind, (message) => {
        const event = JSON.parse(message.data);
        if (event.seq <= after) return;
        after = event.seq;
        heard(event);
        if (event.kind === "state" && settled(event.state) && event.seq >= known) close();
      });
    }
  };
  open();
  return close;
}
