// What the server is asked, and what to say when it cannot answer.

export class Failure extends Error {}

const early = new Map();

/** Asks now for what `get` will be called for once. */
export function ahead(url) {
  const asked = get(url);
  asked.catch(() => null); // whoever gets it hears of it
  early.set(url, asked);
  return asked;
}

export async function get(url) {
  const asked = early.get(url);
  if (asked) {
    early.delete(url);
    return asked;
  }
  return ask(url, {});
}

/** Sends JSON, or nothing, and returns what is answered. */
export function send(method, url, body) {
  const json = body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
  return ask(url, { method, ...json });
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, { credentials: "same-origin", ...options });
  } catch {
    throw new Failure("The server does not answer. Is `terralapse serve` still running?");
  }
  let body = null;
  try {
    body = await answer.json();
  } catch {
    body = null;
  }
  if (!answer.ok) throw new Failure(body?.detail ?? `The server answered with ${answer.status}.`);
  return body;
}

export const firstPage = (url) => `${url}?limit=1000`;

/** The polygons from a page on, the largest first, at most `most`; `total` says how many there are. */
export async function polygons(url, most) {
  const features = [];
  let total = 0;
  let next = url;
  while (next && features.length < most) {
    const page = await get(next);
    total = page.numberMatched;
    features.push(...page.features);
    const link = page.links.find((l) => l.rel === "next");
    next = link ? new URL(link.href).pathname + new URL(link.href).search : null;
  }
  return { features: features.slice(0, most), total };
}
