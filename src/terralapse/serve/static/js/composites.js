// The composites of a series, one at a time: a slider steps through the periods, and follows that of the breaks.

import { byId, el } from "./dom.js";
import { day, isoDay } from "./format.js";
import { change, onChange, state } from "./state.js";

/** The composite as a layer of the map, or null where the run has kept none. */
export function layerOf(result) {
  const { periods, shown } = result.composites;
  if (!periods.length) return null;
  const last = periods.at(-1);
  return { ...last, name: "composite", title: `Composite, ${shown}`, tilejson: null };
}

let follow = null;
let seen = null;
onChange(() => {
  if (state.level === seen) return;
  seen = state.level;
  follow?.(state.level);
});

/** Ends following, before another result is shown. */
export function stop() {
  follow = null;
}

/** The slider over the periods. */
export function start(map, result) {
  const card = byId("composite-card");
  const { periods } = result.composites;
  card.replaceChildren();
  card.hidden = !periods.length;
  if (!periods.length) return;
  const last = periods.length - 1;
  const input = el("input", { type: "range", id: "composite", min: 0, max: last, step: 1, "aria-describedby": "composite-dates" });
  const value = el("output", { for: "composite", class: "level-value" });
  const dates = el("p", { id: "composite-dates", class: "level-more", "aria-live": "polite" });
  const button = (id, text, by) => el("button", { type: "button", class: "tool", id, onclick: () => set(at + by) }, text);
  const [earlier, later] = [button("composite-earlier", "Earlier", -1), button("composite-later", "Later", 1)];
  let at = -1;

  function set(index) {
    const next = Math.min(last, Math.max(0, index));
    if (next === at) return;
    at = next;
    const { period, dates: taken, tiles } = periods[at];
    input.value = String(at);
    input.setAttribute("aria-valuetext", period);
    value.textContent = period;
    dates.textContent = told(taken);
    [earlier.disabled, later.disabled] = [at === 0, at === last];
    map.getSource("r:composite")?.setTiles([location.origin + tiles]);
    change({ composite: period });
  }

  input.addEventListener("input", () => set(Number(input.value)));
  card.append(
    el("div", { class: "level-head" }, el("label", { for: "composite" }, "Composite of"), value),
    input, el("div", { class: "row" }, earlier, later), dates,
  );
  const asked = periods.findIndex((p) => p.period === state.composite);
  set(asked < 0 ? last : asked);
  const breaks = result.layers.find((l) => l.name === "break_date");
  seen = state.level;
  if (!breaks?.scale) return;
  follow = (level) => {
    if (level === null) return;
    const until = isoDay(breaks.scale.zero + level);
    set(periods.findLastIndex((p) => p.dates.length && p.dates[0] <= until));
  };
}

function told(taken) {
  if (!taken.length) return "";
  if (taken.length === 1) return `One date: ${day(taken[0])}`;
  return `${taken.length} dates, from ${day(taken[0])} to ${day(taken.at(-1))}`;
}
