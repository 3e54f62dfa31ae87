// Small drawings: bars, the histogram of probability, the ninths of the grid.

import { el, svg } from "./dom.js";
import { percent } from "./format.js";

/** One bar a row: `{ name, share, text, more }`, share 0..1 of the longest. */
export function bars(rows, label) {
  return el(
    "table",
    { class: "bars" },
    el("caption", {}, label),
    el(
      "tbody",
      {},
      rows.map(({ name, share, text, more }) => {
        const bar = el("span", { class: "bar-fill" });
        bar.style.width = `${Math.max(0.5, 100 * share)}%`;
        return el(
          "tr",
          {},
          el("th", { scope: "row" }, name),
          el("td", { class: "bar-cell" }, bar),
          el("td", { class: "figure" }, text, more ? el("small", {}, more) : null),
        );
      }),
    ),
  );
}

/** Area by probability on a logarithmic height; what counts at `level` is dark. */
export function histogram(values, bins, label) {
  const width = 320;
  const height = 64;
  const size = Math.ceil(values.length / bins);
  // The last bar may hold fewer values, so that every bar stands over its own part of the slider.
  const sums = Array.from({ length: Math.ceil(values.length / size) }, (_, i) =>
    values.slice(i * size, (i + 1) * size).reduce((a, b) => a + b, 0),
  );
  const least = Math.min(...sums.filter((v) => v > 0), Infinity);
  const most = Math.max(...sums);
  const tall = (v) => (v > 0 ? 4 + ((height - 4) * Math.log(v / least + 1)) / Math.log(most / least + 1) : 0);
  const wide = (width * size) / values.length;
  const boxes = sums.map((v, i) =>
    svg("rect", { x: i * wide, y: height - tall(v), width: wide - 0.8, height: tall(v) }),
  );
  const mark = svg("line", { y1: 0, y2: height, class: "mark" });
  const node = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": label, preserveAspectRatio: "none" },
    boxes,
    mark,
  );
  const show = (low, high) => {
    boxes.forEach((box, i) => box.classList.toggle("counts", (i + 0.5) * size >= low && (i + 0.5) * size <= high));
    const at = (low > 0 ? low : high) * (width / values.length);
    mark.setAttribute("x1", at);
    mark.setAttribute("x2", at);
  };
  return { node, show };
}

const NINTHS = ["north-west", "north", "north-east", "west", "centre", "east", "south-west", "south", "south-east"];

/** Shares of the area of the objects by ninth of the grid. */
export function ninths(shares, label) {
  const most = Math.max(...Object.values(shares), 1e-9);
  return el(
    "figure",
    { class: "ninths" },
    el("figcaption", {}, label),
    el(
      "div",
      { class: "ninths-grid" },
      NINTHS.map((name) => {
        const share = shares[name] ?? 0;
        const shade = el("span", { class: "shade" });
        shade.style.opacity = String(share / most);
        return el("div", { title: name }, shade, el("span", { class: "ninth-text" }, share ? percent(share) : "–"));
      }),
    ),
  );
}
