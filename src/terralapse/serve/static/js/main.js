// Puts the page together: chooses a result, shows it, keeps the parts in step.

import * as api from "./api.js";
import * as asking from "./ask.js";
import * as coast from "./coast.js";
import * as composites from "./composites.js";
import { byId, el } from "./dom.js";
import { start } from "./early.js";
import * as drafting from "./fresh.js";
import { day, place } from "./format.js";
import * as graticule from "./graticule.js";
import * as jobs from "./jobs.js";
import * as keys from "./keys.js";
import * as layerCard from "./layers.js";
import * as maps from "./map.js";
import * as measuring from "./measure.js";
import * as outline from "./outline.js";
import * as panels from "./panels.js";
import * as reviews from "./review.js";
import * as samples from "./sample.js";
import * as sliders from "./slider.js";
import { change, read, state, text } from "./state.js";
import * as swipe from "./swipe.js";

const MOST_POLYGONS = 5000;
const METRES = 20037508.342789244 / 180;
const NEAREST = 19; // no closer when flying to an object

let map = null;
let result = null; // what is shown, as the API describes it
let features = [];
let slider = null;
let card = null;
let openTab = null;
let drawGround = null; // lines of latitude and longitude, and the coast
let pen = null; // draws outlines anew
let reviewed = false; // whether the server keeps what people say
let fresh = null; // makes the panel of a new analysis; null where none is allowed

const pixels = () => result !== null && result.crs === null;

function notice(message) {
  const node = byId("notice");
  node.textContent = message ?? "";
  node.hidden = !message;
}

/** Runs something that may fail for a reason that a person can mend, and says the reason in the page. */
async function told(action) {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof api.Failure)) console.error(error);
    notice(error instanceof api.Failure ? error.message : "The page failed at this; please reload it.");
  }
}

// --- one result --------------------------------------------------------------------------------------
async function show(id, asked) {
  notice(null);
  byId("layers-toggle").hidden = false; // there is none while there is no result
  byId("layers").hidden = byId("layers-toggle").getAttribute("aria-pressed") !== "true";
  const found = await api.get(`/api/results/${encodeURIComponent(id)}`);
  measure.stop();
  pen.stop();
  composites.stop();
  mark(null);
  unhidden = null;
  maps.clear(map);
  unpick();
  result = found;
  const composite = composites.layerOf(found);
  if (composite) found.layers.unshift(composite); // below all that is said of it
  byId("results").value = id;
  document.title = `${result.title} – terralapse`;
  change({
    result: id,
    level: asked.level ?? null,
    composite: asked.composite ?? null,
    swipe: asked.swipe === undefined ? 0.5 : asked.swipe,
    layers: (asked.layers && layerCard.known(result, asked.layers)) ?? layerCard.defaults(result),
    picked: null,
  });
  byId("map").classList.toggle("without-place", pixels());
  byId("tag-before").textContent = `Before${result.dates.before ? `: ${day(result.dates.before)}` : ""}`;
  byId("tag-after").textContent = `After${result.dates.after ? `: ${day(result.dates.after)}` : ""}`;
  if (asked.view) map.jumpTo({ zoom: asked.view[0], center: [asked.view[2], asked.view[1]] });
  else if (result.bounds) fit(0);

  sliders.paintOthers(map, result);
  const making = sliders.make(map, result);
  const facts = api.get(result.links.facts);
  const polygons = result.links.polygons ? api.polygons(api.firstPage(result.links.polygons), MOST_POLYGONS) : { features: [], total: 0 };
  slider = await making;
  const shown = slider && result.kind === "change"
    ? result.layers.map((l) => (l.name === "change" ? { ...l, codes: byName("probability").codes } : l))
    : result.layers;
  slider?.show();
  maps.addLayers(map, shown);
  composites.start(map, result);
  if (result.bounds) maps.addFrame(map, result.bounds);
  maps.showLayers(map, result.layers);
  maps.whenDrawn(map, result.kind === "change" ? "change" : "break_date", (there) => {
    if (there) performance.mark("terralapse-change");
    maps.drawLines(map);
    if (result === found) maps.showLayers(map, found.layers); // else another is shown by now
  });
  const got = await polygons;
  features = got.features;
  if (features.length) maps.addPolygons(map, features, byName("change")?.native_zoom ?? 16);
  const few = got.total > features.length ? ` (the ${features.length.toLocaleString("en")} largest)` : "";
  card = layerCard.build(result, features.length ? `Outlines${few}` : null, () => maps.showLayers(map, result.layers));
  maps.showLayers(map, result.layers);
  slider?.settle();
  const known = new Map((await facts).facts.map((f) => [f.id, f]));
  openTab = panels.build(result, { facts: known, features, total: got.total, onPick: pickMany, more: people(), fresh });
  drawGround();
  if (asked.picked) await pick(asked.picked, !asked.view);
}

/** The tabs in which people say something. */
function people() {
  const shown = result;
  const one = (id) => (id === undefined ? undefined : pick(id, true, "map"));
  const tabs = [["ask", "Ask", () => asking.panel(shown, (ids) => pickMany(ids, true, "map"))]];
  if (!reviewed || shown.kind !== "change") return tabs;
  if (shown.links.polygons) tabs.push(["review", "Review", () => reviews.panel(shown, features, map, pen, one)]);
  tabs.push(["areas", "Areas", () => samples.panel(shown, mark, blind)]);
  return tabs;
}

let unhidden = null; // the layers as they were before nobody should be told what the map says

function blind(on) {
  if (on === (unhidden !== null)) return;
  const layers = on ? new Map([...state.layers].filter(([name]) => name === "before" || name === "after")) : unhidden;
  unhidden = on ? state.layers : null;
  change({ layers });
  maps.showLayers(map, result.layers);
  card?.show();
}

/** Marks a place on the map and goes there; null takes the mark away. */
function mark(place, flying) {
  if (!map.getSource("mark")) {
    map.addSource("mark", { type: "geojson", data: { type: "FeatureCollection", features: [] } });
    map.addLayer({ id: "mark", type: "circle", source: "mark", paint: { "circle-opacity": 0, "circle-radius": 12, "circle-stroke-color": "#ffe14d", "circle-stroke-width": 4 } });
    map.addLayer({ id: "mark-edge", type: "circle", source: "mark", paint: { "circle-opacity": 0, "circle-radius": 16, "circle-stroke-color": "#111111", "circle-stroke-width": 2 } });
  }
  const point = place && { type: "Feature", properties: {}, geometry: { type: "Point", coordinates: place } };
  map.getSource("mark").setData({ type: "FeatureCollection", features: point ? [point] : [] });
  if (!point) return;
  for (const id of ["mark", "mark-edge"]) map.moveLayer(id);
  if (flying) onPhoneSee("map");
  if (flying) maps.fly(map, [...place, ...place], byName("change")?.native_zoom ?? 17);
}

const byName = (name) => result.layers.find((l) => l.name === name);

function fit(duration) {
  if (!result?.bounds) return;
  const [west, south, east, north] = result.bounds;
  map.fitBounds([[west, south], [east, north]], { padding: 24, ...(duration === undefined ? {} : { duration }) });
}

// --- objects -----------------------------------------------------------------------------------------
/** `seen` is what a phone scrolls to, where the page is too long for all of it. */
async function pick(id, flying, seen = "picked") {
  const feature = features.find((f) => f.id === id);
  if (!feature) return;
  maps.pick(map, [id]);
  change({ picked: id });
  if (flying) maps.fly(map, feature.bbox, NEAREST);
  await told(() => panels.card(result, feature, unpick));
  onPhoneSee(seen);
}

const onPhoneSee = (id) => {
  if (matchMedia("(max-width: 760px)").matches) byId(id).scrollIntoView({ block: "nearest" });
};

function pickMany(ids, flying, seen) {
  if (ids.length === 1) {
    pick(ids[0], flying ?? true, seen);
    return;
  }
  if (seen) onPhoneSee(seen);
  unpick();
  maps.pick(map, ids);
  const boxes = features.filter((f) => ids.includes(f.id)).map((f) => f.bbox);
  if (!boxes.length) return;
  const side = (i, choose) => choose(...boxes.map((b) => b[i]));
  maps.fly(map, [side(0, Math.min), side(1, Math.min), side(2, Math.max), side(3, Math.max)], NEAREST);
}

function unpick() {
  byId("picked").hidden = true;
  if (map.getLayer("r:picked-line")) maps.pick(map, []);
  if (state.picked !== null) change({ picked: null });
}

function step(by) {
  if (!features.length) return;
  const at = features.findIndex((f) => f.id === state.picked);
  const next = at < 0 ? (by > 0 ? 0 : features.length - 1) : (at + by + features.length) % features.length;
  pick(features[next].id, true);
}

// --- analyses ----------------------------------------------------------------------------------------
async function relist() {
  const list = await api.get("/api/results");
  byId("results").replaceChildren(...list.results.map((r) => el("option", { value: r.id }, r.title)));
  if (result) byId("results").value = result.id;
  return list.results;
}

const openFolder = (folder) =>
  told(async () => {
    const found = (await relist()).find((r) => r.title === folder);
    byId("panel").scrollTop = 0;
    if (found) await show(found.id, {});
    else notice("That result has been moved or removed.");
  });

/** The panel of a new analysis, where it is not open already. */
function openNew() {
  if (byId("tab-new")?.getAttribute("aria-selected") !== "true") openTab?.("new");
}

// --- theme -------------------------------------------------------------------------------------------
const themes = ["auto", "light", "dark"];

function theme(next) {
  let kept = "auto";
  try {
    kept = localStorage.getItem("terralapse-theme") ?? "auto";
  } catch {
    kept = "auto"; // storage is switched off: the system decides
  }
  const chosen = next ? themes[(themes.indexOf(kept) + 1) % themes.length] : kept;
  document.documentElement.dataset.theme = chosen;
  byId("theme").textContent = `Theme: ${chosen}`;
  if (next) {
    try {
      localStorage.setItem("terralapse-theme", chosen);
    } catch {
      return;
    } finally {
      if (map) maps.recolour(map);
    }
  }
}

// --- the page ----------------------------------------------------------------------------------------
let measure = null;

function toggleLayers() {
  const node = byId("layers");
  node.hidden = !node.hidden;
  byId("layers-toggle").setAttribute("aria-pressed", String(!node.hidden));
}

function escape() {
  if (pen.active()) pen.stop();
  else if (measure.active()) measure.stop();
  else if (drafting.drawing()) drafting.stopDrawing();
  else unpick();
}

function wire() {
  byId("results").addEventListener("change", (e) => told(() => show(e.target.value, {})));
  byId("fit").addEventListener("click", () => fit());
  byId("swipe-toggle").addEventListener("click", swipe.toggle);
  byId("layers-toggle").addEventListener("click", toggleLayers);
  byId("theme").addEventListener("click", () => theme(true));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps.recolour(map));
  map.on("click", (event) => {
    if (measure.active() || drafting.drawing() || pen.active()) return;
    const id = maps.polygonAt(map, event.point);
    if (id === null) unpick();
    else pick(id, false);
  });
  map.on("mousemove", (event) => {
    const over = maps.polygonAt(map, event.point) !== null;
    map.getCanvas().classList.toggle("pointing", over && !measure.active() && !drafting.drawing() && !pen.active());
    if (measure.active()) return;
    const { lng, lat } = event.lngLat;
    const row = (-Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360)) * 180 * METRES) / Math.PI;
    byId("readout").textContent = pixels() ? `column ${Math.floor(lng * METRES)}, row ${Math.floor(row)}` : place(lng, lat);
  });
  addEventListener("hashchange", () => {
    const asked = read(location.hash);
    if (asked.result && `#${text()}` !== location.hash) told(() => show(asked.result, asked));
  });
  const one = (key) => (pressed) => pressed.toLowerCase() === key;
  keys.start([
    { keys: "S", text: "Swipe on and off; arrows move the divider when it has the focus", match: one("s"), run: swipe.toggle },
    { keys: "[ ]", text: "Threshold or date down and up", match: (k) => k === "[" || k === "]", run: (k) => slider?.step(k === "[" ? -1 : 1) },
    { keys: "N P", text: "Next and previous object, the largest first", match: (k) => /^[np]$/i.test(k), run: (k) => step(k.toLowerCase() === "n" ? 1 : -1) },
    { keys: "1 … 9", text: "Layers on and off, from the top of the list", match: (k) => /^[1-9]$/.test(k), run: (k) => card?.toggle(Number(k) - 1) },
    { keys: "F", text: "The whole result", match: one("f"), run: () => fit() },
    { keys: "M", text: "Measure distances and areas", match: one("m"), run: () => measure.toggle() },
    { keys: "L", text: "Layers shown and hidden", match: one("l"), run: toggleLayers },
    { keys: "D", text: "Downloads", match: one("d"), run: () => openTab?.("files") },
    { keys: "T", text: "Light, dark, or as the system has it", match: one("t"), run: () => theme(true) },
    { keys: "A R", text: "In the tab Review: accept or reject the object", match: (k) => /^[ar]$/i.test(k), run: (k) => reviews.press(k.toLowerCase() === "a" ? "accepted" : "rejected") },
    { keys: "Esc", text: "Close and end", match: (k) => k === "Escape", run: escape },
  ]);
}

function ground(bare) {
  const lines = graticule.start(map, pixels);
  const shore = bare ? coast.start(map, maps.token("--coast"), () => !pixels()) : () => null;
  return () => {
    lines();
    shore();
  };
}

async function main() {
  theme(false);
  const { list, asked, first } = await start();
  byId("results").replaceChildren(...list.results.map((r) => el("option", { value: r.id }, r.title)));
  if (matchMedia("(max-width: 760px)").matches) toggleLayers();
  map = await maps.create("map", list.basemap);
  window.terralapse = { map }; // for the console and for tests
  drawGround = ground(list.basemap === null);
  measure = measuring.start(map, pixels);
  pen = outline.start(map);
  swipe.start(map);
  wire();
  reviewed = list.reviews;
  if (list.jobs) {
    await drafting.prepare(map, openNew);
    fresh = () => jobs.panel(openFolder);
    jobs.follow(() => told(relist));
  }
  if (!first) {
    notice(list.problems.join(" "));
    maps.drawLines(map);
    drawGround();
    byId("layers").hidden = true;
    byId("layers-toggle").hidden = true;
    document.documentElement.dataset.ready = "true";
    if (fresh) {
      openTab = panels.build(null, { fresh });
      return;
    }
    byId("tab-body").replaceChildren(
      el("p", {}, "There is no result here yet. Make one with"),
      el("pre", { tabindex: "0" }, "terralapse change BEFORE AFTER -o OUT"),
      el("p", {}, "and it appears when this page is loaded again."),
    );
    return;
  }
  await show(first.id, !asked.result || asked.result === first.id ? asked : {});
  const lost = asked.result && asked.result !== first.id;
  const said = [...(lost ? ["The result of this link is not here; another is shown."] : []), ...list.problems];
  if (said.length) notice(said.join(" "));
  map.once("idle", () => {
    performance.mark("terralapse-idle");
    document.documentElement.dataset.ready = "true";
  });
}

told(main);
