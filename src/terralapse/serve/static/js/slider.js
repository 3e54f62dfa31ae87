// The slider over the codes of a layer: the least probability of change, or the last day of a series. It
// colours the map and counts at the same time; the counts come from the whole rasters, not from the view.

import { get } from "./api.js";
import { histogram } from "./charts.js";
import * as codes from "./codes.js";
import { byId, eachFrame, el } from "./dom.js";
import { area, isoDay, percent } from "./format.js";
import * as maps from "./map.js";
import { change, state } from "./state.js";

const BINS = 40;
const pause = (action, wait) => {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, wait);
  };
};

/** The slider of a result, or null when there is nothing to slide over. */
export async function make(map, result) {
  const card = byId("slider-card");
  card.hidden = true;
  card.replaceChildren();
  const kind = result.kind === "series" ? breaks : probability;
  const made = await kind(map, result);
  if (!made) return null;

  const input = el("input", {
    type: "range", id: "level", min: made.min, max: made.max, step: 1, "aria-describedby": "level-count",
  });
  const value = el("output", { for: "level", class: "level-value" });
  const count = el("p", { id: "level-count", class: "level-count", "aria-live": "polite" });
  const more = el("p", { class: "level-more" });
  const back = el("button", { type: "button", class: "link", onclick: () => set(made.home) }, made.homeText);
  card.append(
    el("div", { class: "level-head" }, el("label", { for: "level" }, made.title), value),
    made.chart.node, input, count, more, back,
  );
  card.hidden = false;

  let painted = null;
  const paint = (level) => {
    if (level === painted) return;
    painted = level;
    made.paint(level);
  };
  const later = eachFrame(paint);
  // A screen reader and the outlines follow when the slider rests.
  const settle = pause(() => made.settle?.(state.level), 120);
  function show() {
    input.value = String(state.level);
    value.textContent = made.text(state.level);
    input.setAttribute("aria-valuetext", made.text(state.level));
    const said = made.count(state.level);
    count.textContent = said.main;
    more.textContent = said.more;
    back.hidden = state.level === made.home;
    made.chart.show(...made.range(state.level));
    if (painted === null) paint(state.level);
    else later(state.level);
    settle();
  }
  function set(level) {
    change({ level: Math.min(made.max, Math.max(made.min, level)) });
    show();
  }
  input.addEventListener("input", () => set(Number(input.value)));
  const asked = state.level;
  const fits = asked !== null && asked >= made.min && asked <= made.max;
  state.level = fits ? asked : made.home;
  return { show, set, settle, step: (by) => set(state.level + by) };
}

async function probability(map, result) {
  const layer = result.layers.find((l) => l.name === "probability");
  if (!layer || !result.links.histogram) return null;
  const found = await get(result.links.histogram);
  const last = found.area.length - 1;
  const from = [...found.area];
  const pixels = [...found.pixels];
  for (let i = last - 1; i >= 0; i -= 1) {
    from[i] += from[i + 1];
    pixels[i] += pixels[i + 1];
  }
  const unit = found.area_unit;
  const home = Math.round(found.threshold / found.step);
  const changed = result.layers.find((l) => l.name === "change");
  const colour = changed?.legend[0]?.colour ?? "#d81b60";
  const colours = codes.ramp(layer.legend, layer.scale.codes);
  const flat = { ...layer, name: "change" }; // the change layer is drawn from the codes of the probability
  return {
    title: "Counts as change from probability",
    min: 1,
    max: last,
    home,
    homeText: `Back to the threshold of the run, ${found.threshold.toFixed(2)}`,
    text: (level) => (level * found.step).toFixed(3).replace(/0$/, ""),
    count: (level) => ({
      main: `${area(from[level], unit)} changed, ${percent(from[level] / from[0])} of what was compared`,
      more: `${pixels[level].toLocaleString("en")} pixels${
        level === home ? "; the threshold of the run" : "; outlines are of the run, those without such a pixel are left out"
      }`,
    }),
    chart: histogram(found.area, BINS, "Compared area by probability of change; heights are logarithmic"),
    range: (level) => [level, last],
    settle(level) {
      if (map.getLayer("r:polygons-line")) maps.filterPolygons(map, level === home ? 0 : level * found.step);
    },
    paint(level) {
      maps.repaint(map, flat, codes.paints.atLeast(level, layer.scale.codes, colour));
      maps.repaint(map, layer, codes.paints.ramp(colours, level));
    },
  };
}

async function breaks(map, result) {
  const layer = result.layers.find((l) => l.name === "break_date");
  if (!layer || !result.links.breaks) return null;
  const found = await get(result.links.breaks);
  const last = layer.scale.codes - 1;
  const by = new Array(last + 1).fill(0);
  found.days.forEach((d, i) => {
    by[Math.min(last, Math.max(0, d - layer.scale.zero))] += found.area[i];
  });
  const until = [...by];
  for (let i = 1; i <= last; i += 1) until[i] += until[i - 1];
  const colours = codes.ramp(layer.legend, layer.scale.codes);
  const day = (level) => isoDay(layer.scale.zero + level);
  return {
    title: "Breaks up to",
    min: 0,
    max: last,
    home: last,
    homeText: "Back to the end of the series",
    text: day,
    count: (level) => ({
      main: `${area(until[level], found.area_unit)} broke until ${day(level)}`,
      more: until[last] ? `${percent(until[level] / until[last])} of all that broke` : "Nothing broke.",
    }),
    chart: histogram(by, BINS, "Area that broke, by date; heights are logarithmic"),
    range: (level) => [0, level],
    paint: (level) => maps.repaint(map, layer, codes.paints.until(level, colours)),
  };
}

/** How layers of values without a slider are drawn from the start. */
export function paintOthers(map, result) {
  for (const layer of result.layers) {
    if (layer.codes === null) continue;
    const colours = codes.ramp(layer.legend, layer.scale.codes);
    codes.setPaint(layer.name, location.origin + layer.codes, codes.paints.ramp(colours, 0));
  }
}
