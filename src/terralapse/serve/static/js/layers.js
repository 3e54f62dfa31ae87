// Which layers are shown, how strongly, and what their colours mean.

import { byId, el } from "./dom.js";
import { change, state } from "./state.js";

const FIRST = {
  change: new Map([["before", 1], ["after", 1], ["change", 0.85], ["polygons", 1]]),
  series: new Map([["composite", 1], ["break_date", 1]]),
};

export function defaults(result) {
  const names = new Set([...result.layers.map((l) => l.name), "polygons"]);
  return new Map([...FIRST[result.kind]].filter(([name]) => names.has(name)));
}

/** Those of an address that a result has; null when none is left. */
export function known(result, asked) {
  const names = new Set([...result.layers.map((l) => l.name), "polygons"]);
  const found = new Map([...asked].filter(([name]) => names.has(name)));
  return found.size ? found : null;
}

export function build(result, polygons, renew) {
  const card = byId("layers");
  const rows = [...result.layers].reverse().map((l) => [l.name, l.title, l.legend]);
  if (polygons) rows.unshift(["polygons", polygons, []]);
  const inputs = new Map();
  const kept = new Map();
  const set = (name, opacity) => {
    const layers = new Map(state.layers);
    if (opacity === null) {
      kept.set(name, layers.get(name) ?? 1);
      layers.delete(name);
    } else layers.set(name, opacity);
    change({ layers });
    renew();
    show();
  };
  const show = () => {
    for (const [name, { box, slider, legend }] of inputs) {
      const opacity = state.layers.get(name);
      box.checked = opacity !== undefined;
      slider.disabled = opacity === undefined;
      slider.value = String(Math.round(100 * (opacity ?? kept.get(name) ?? 1)));
      if (legend) legend.hidden = opacity === undefined;
    }
  };
  const row = ([name, title, legend], index) => {
    const box = el("input", {
      type: "checkbox", id: `layer-${name}`, onchange: () => set(name, box.checked ? (kept.get(name) ?? 1) : null),
    });
    const slider = el("input", {
      type: "range", min: 0, max: 100, "aria-label": `Opacity: ${title}`,
      oninput: () => set(name, Number(slider.value) / 100),
    });
    const key = legend.length ? keyOf(result, name, legend) : null;
    inputs.set(name, { box, slider, legend: key });
    return el(
      "li", {},
      el("div", { class: "layer-row" }, box, el("label", { for: `layer-${name}`, title: `Key ${index + 1}` }, title), slider),
      key,
    );
  };
  card.replaceChildren(el("h2", {}, "Layers"), el("ul", {}, rows.map(row)));
  show();
  return {
    show,
    toggle(index) {
      const name = rows[index]?.[0];
      if (name) set(name, state.layers.has(name) ? null : (kept.get(name) ?? 1));
    },
  };
}

function keyOf(result, name, legend) {
  const layer = result.layers.find((l) => l.name === name);
  if (layer.kind === "value") {
    return el(
      "div", { class: "legend ramp" },
      el("div", { class: "ramp-bar" }, legend.map((e) => swatch(e.colour))),
      el("div", { class: "ramp-ends" }, el("span", {}, legend[0].title), el("span", {}, legend.at(-1).title)),
    );
  }
  const hatched = name === "change";
  return el(
    "ul", { class: "legend classes" },
    legend.map((e) => el("li", {}, swatch(e.colour, hatched, e.pattern), e.title)),
  );
}

function swatch(colour, hatched, pattern) {
  if (pattern) return patterned(colour, pattern);
  const node = el("span", { class: hatched ? "swatch hatched" : "swatch" });
  node.style.backgroundColor = colour;
  return node;
}

/** A class as the tiles draw it: `rows` of 16 bits each, in the colour `ink`. */
function patterned(colour, { rows, ink }) {
  const node = el("canvas", { class: "swatch patterned", width: 32, height: 16 });
  const context = node.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 32, 16);
  context.fillStyle = `rgb(${ink.join(" ")})`;
  rows.forEach((bits, y) => {
    for (let x = 0; x < 32; x += 1) if (bits & (1 << x % 16)) context.fillRect(x, y, 1, 1);
  });
  return node;
}
