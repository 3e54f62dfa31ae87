// Asks the server for all that the page begins with, while the larger scripts are still on their way.

import * as api from "./api.js";
import { read } from "./state.js";

const list = api.ahead("/api/results");

/** What there is, what the address asks for, and the result to begin with (undefined where there is none). */
export async function start() {
  const found = await list;
  const asked = read(location.hash);
  return { list: found, asked, first: found.results.find((r) => r.id === asked.result) ?? found.results[0] };
}

async function result() {
  const { first } = await start();
  if (!first) return;
  const { links } = await api.ahead(`/api/results/${encodeURIComponent(first.id)}`);
  for (const url of [links.histogram, links.breaks, links.facts, links.stats]) if (url) api.ahead(url);
  if (links.polygons) api.ahead(api.firstPage(links.polygons));
}

result().catch(() => null); // the page meets the same failure and says it
