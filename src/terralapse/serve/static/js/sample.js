// Areas with intervals: draw a stratified sample, say what each point is from pictures of both dates, read the areas.

import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { area, percent } from "./format.js";
import { post } from "./said.js";
import { field, who } from "./who.js";

const WIDTHS = [[33, "close"], [65, "middle"], [193, "wide"]];
const MAP_TITLES = { change: "Change", classes_before: "Classes before", classes_after: "Classes after", damage: "Damage" };
const UNSURE = "unsure";

/**
 * The panel. `show(place, flying)` marks a place on the map and goes there; null takes the mark away. `blind` hides
 * what the map says while points are labelled, so that nobody is told.
 */
export async function panel(result, show, blind) {
  const url = `/api/results/${encodeURIComponent(result.id)}/samples`;
  const body = el("div", { class: "sampling" });
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const complain = (text) => {
    trouble.textContent = text ?? "";
    trouble.hidden = !text;
  };

  const leave = () => {
    show(null);
    blind(false);
  };
  byId("tab-body").addEventListener("left", leave, { once: true });

  async function list() {
    leave();
    const { samples, maps } = await get(url);
    body.replaceChildren(...(samples.length ? [el("h3", {}, "Samples"), listed(samples)] : []), el("h3", {}, "Draw a new sample"), form(maps));
  }
  const listed = (samples) =>
    el(
      "ul", { class: "samples" },
      samples.map((s) =>
        el(
          "li", {},
          el("button", { type: "button", class: "object sample", "data-sample": s.id, onclick: () => label(s.id) },
            el("strong", {}, `${s.labelled} of ${s.points}`), el("span", {}, MAP_TITLES[s.map]), el("span", { class: "dim" }, `${s.by}, ${s.at.slice(0, 10)}`)),
        ),
      ),
    );
  function form(maps) {
    const input = (id, title, properties) => el("div", { class: "field" }, el("label", { for: id }, title), el("input", { id, type: "number", ...properties }));
    const made = el(
      "form", { class: "new-sample" },
      el("p", { class: "dim small" }, "Every class of the map gets points, small ones more than their share. What people see there gives areas without the errors of the map."),
      el("div", { class: "field" }, el("label", { for: "sample-map" }, "Map to draw from"),
        el("select", { id: "sample-map" }, maps.map((m) => el("option", { value: m }, MAP_TITLES[m])))),
      input("sample-size", "Points (empty: as the error needs)", { min: 4, max: 2000, value: 100 }),
      input("sample-error", "Wanted standard error of the accuracy", { min: 0.001, max: 0.4, step: "any", value: 0.03 }),
      input("sample-buffer", "Pixels around change as a stratum of their own", { min: 0, max: 100, value: 0 }),
      input("sample-seed", "Seed: the same one draws the same points", { min: 0, max: 2147483647, value: 0 }),
      el("button", { type: "submit", class: "tool primary" }, "Draw"),
    );
    const number = (id) => Number(made.querySelector(`#sample-${id}`).value);
    made.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (!who()) {
        complain("Say who you are first.");
        return;
      }
      complain(null);
      const map = made.querySelector("#sample-map").value;
      const asked = { by: who(), map, seed: number("seed"), buffer: map === "change" ? number("buffer") : 0 };
      if (made.querySelector("#sample-size").value) asked.size = number("size");
      else asked.standard_error = number("error");
      const { ok, answer, problem } = await post(url, asked);
      if (ok) await label(answer.id);
      else complain(problem);
    });
    return made;
  }

  // --- one sample -------------------------------------------------------------------------------------
  async function label(id) {
    complain(null);
    const sample = await get(`${url}/${id}`);
    const points = sample.points;
    const base = `${url}/${id}`;
    let at = Math.max(0, points.findIndex((p) => !p.label));
    let across = 65;
    const head = el("p", { class: "point-head", tabindex: "-1" });
    const bar = el("progress", { max: points.length, "aria-label": "Points labelled" });
    const chips = Object.entries(sample.chips).filter(([, there]) => there).map(([date]) => date);
    const pictures = chips.map((date) => el("img", { width: 256, height: 256, alt: "" }));
    const marks = chips.map(() => el("span", { class: "chip-mark", "aria-hidden": "true" }));
    const options = [...Object.entries(sample.classes), [UNSURE, "Cannot tell"]];
    const buttons = options.map(([name, title], i) =>
      el("button", { type: "button", class: "tool label-button", "data-label": name, "aria-pressed": "false", onclick: () => say(name) },
        i < 9 ? el("kbd", { "aria-hidden": "true" }, String(i + 1)) : null, ` ${title}`));
    const report = el("div", { class: "areas" });
    const widths = el("select", { id: "chip-width" }, WIDTHS.map(([n, t]) => el("option", { value: n, selected: n === across }, t)));
    widths.addEventListener("change", () => {
      across = Number(widths.value);
      draw();
    });

    function draw() {
      const p = points[at];
      const done = points.filter((q) => q.label).length;
      head.textContent = `Point ${at + 1} of ${points.length}, ${done} labelled`;
      bar.value = done;
      pictures.forEach((img, i) => {
        img.src = `${base}/points/${p.id}/${chips[i]}.webp?across=${across}`;
        img.alt = `Image ${chips[i]} around point ${p.id}; the point is in the middle`;
        const side = Math.max(5, 100 / across);
        for (const edge of ["width", "height"]) marks[i].style[edge] = `${side}%`;
      });
      for (const b of buttons) b.setAttribute("aria-pressed", String(b.dataset.label === p.label));
      show(p.place, false);
    }
    const go = (by) => {
      at = (at + by + points.length) % points.length;
      draw();
    };
    async function say(name) {
      const p = points[at];
      if (!who()) {
        complain("Say who you are first.");
        return;
      }
      complain(null);
      const { ok, answer, problem } = await post(`${base}/points/${p.id}`, { by: who(), version: p.version, label: p.label === name ? "" : name });
      if (!ok) {
        if (answer?.current) Object.assign(p, { label: answer.current.label ?? "", version: answer.current.version });
        complain(answer?.current ? `${problem} They say: ${sample.classes[p.label] ?? p.label}.` : problem);
        draw();
        return;
      }
      Object.assign(p, { label: answer.label, version: answer.version });
      const left = points.findIndex((q, i) => i > at && !q.label);
      const first = left >= 0 ? left : points.findIndex((q) => !q.label);
      if (first >= 0 && answer.label) at = first;
      draw();
      if (first < 0) await areas();
    }
    async function areas() {
      report.replaceChildren();
      try {
        report.replaceChildren(...estimated(await get(`${base}/areas`), base));
      } catch (error) {
        report.replaceChildren(el("p", { class: "warning" }, error.message));
      }
    }
    const work = el(
      "div", { class: "labelling" },
      el("button", { type: "button", class: "link", onclick: list }, "All samples"),
      head, bar,
      el("div", { class: "chips" }, pictures.map((img, i) =>
        el("figure", {}, el("div", { class: "chip" }, img, marks[i]), el("figcaption", {}, chips[i] === "before" ? "Before" : "After")))),
      el("div", { class: "labels", role: "group", "aria-label": "What is at the point" }, buttons),
      el(
        "div", { class: "point-tools" },
        el("button", { type: "button", class: "tool", onclick: () => go(-1) }, "Previous"),
        el("button", { type: "button", class: "tool", onclick: () => go(1) }, "Next"),
        el("button", { type: "button", class: "tool", onclick: () => show(points[at].place, true) }, "On the map"),
        el("label", { for: "chip-width", class: "inline" }, "View ", widths),
      ),
      el("button", { type: "button", class: "tool primary", onclick: areas, id: "areas" }, "Estimate areas"),
      report,
    );
    // Digits label here; on the page they switch layers.
    work.addEventListener("keydown", (event) => {
      const i = Number(event.key) - 1;
      if (event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (i >= 0 && i < Math.min(9, options.length)) {
        event.stopPropagation();
        event.preventDefault();
        say(options[i][0]);
      } else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
        event.stopPropagation();
        event.preventDefault();
        go(event.key === "ArrowLeft" ? -1 : 1);
      }
    });
    blind(true);
    body.replaceChildren(work);
    draw();
    head.focus({ preventScroll: true });
  }

  await list();
  return [field("sample-by"), trouble, body];
}

const either = (m, scale) => (m.value === null || m.low === null ? "–" : `${scale(m.value)} ± ${scale((m.high - m.low) / 2)}`);

/** The estimates as a table, with bars of the intervals. */
function estimated(found, base) {
  const unit = found.unit;
  const most = Math.max(...found.classes.map((c) => Math.max(c.area.high ?? 0, c.mapped_area)), 1e-9);
  const rows = found.classes.map((c) => {
    const bar = el("span", { class: "interval", "aria-hidden": "true" });
    const mark = el("span", { class: "interval-map", "aria-hidden": "true" });
    bar.style.left = `${(100 * Math.max(0, c.area.low)) / most}%`;
    bar.style.width = `${(100 * (c.area.high - Math.max(0, c.area.low))) / most}%`;
    mark.style.left = `${(100 * c.mapped_area) / most}%`;
    return [
      el("tr", {}, el("th", { scope: "row" }, c.title), el("td", {}, either(c.area, (v) => area(v, unit))), el("td", {}, area(c.mapped_area, unit)),
        el("td", {}, either(c.users, percent)), el("td", {}, either(c.producers, percent))),
      el("tr", { class: "interval-row", "aria-hidden": "true" }, el("td", { colspan: 5 }, el("div", { class: "interval-line" }, bar, mark))),
    ];
  });
  return [
    el("h3", {}, "Areas with 95 % intervals"),
    el(
      "div", { class: "table-wrap", tabindex: "0", role: "region", "aria-label": "Areas" },
      el(
        "table", { class: "estimates" },
        el("thead", {}, el("tr", {}, ["Class", "Area", "On the map", "User's", "Producer's"].map((t) => el("th", { scope: "col" }, t)))),
        el("tbody", {}, rows.flat()),
      ),
    ),
    el("p", { id: "overall" }, `Overall accuracy ${either(found.overall, percent)}, from ${found.labelled} of ${found.points} points. Bars are intervals, the upright line is the map.`),
    found.cautions.length ? el("ul", { class: "warnings" }, found.cautions.map((c) => el("li", {}, c))) : null,
    el(
      "ul", { class: "files" },
      el("li", {}, el("a", { href: `${base}/areas.csv`, download: true }, "Areas, CSV")),
      el("li", {}, el("a", { href: `${base}/points.csv`, download: true }, "Points with labels, CSV")),
      el("li", {}, el("a", { href: `${base}/sample.json`, download: true }, "Design of the sample, JSON"), el("span", { class: "dim" }, "with the points for terralapse area estimate")),
    ),
  ].filter(Boolean);
}
