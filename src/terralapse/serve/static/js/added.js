// Objects that the run has missed: people draw them, say what they are, and take them back.

import { byId, el } from "./dom.js";
import * as maps from "./map.js";
import { draw, GRADES, post } from "./said.js";
import { who } from "./who.js";

const DRAFT = "added-draft";
const NEAREST = 19; // no closer when flying to one

/** The part of the panel. `last` has the last word on each object, those that were added below 0; `changed` is called
    when it has. */
export function section(result, url, last, map, pen, changed) {
  const classes = result.layers.find((l) => l.name === "classes_after")?.legend ?? [];
  const titles = new Map(classes.map((c) => [c.name, c.title]));
  const start = el("button", { type: "button", class: "tool", id: "add-object", onclick: () => begin() }, "Add an object");
  const body = el("div", { class: "review-one" });
  const list = el("ul", { class: "plain added", "aria-label": "Added objects" });
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });

  const told = (problem) => {
    trouble.textContent = problem ?? "";
    trouble.hidden = !problem;
  };
  const sketch = (geometry) => {
    for (const id of [`${DRAFT}-line`, `${DRAFT}-casing`, DRAFT]) if (map.getLayer(id)) map.removeLayer(id);
    if (map.getSource(DRAFT)) map.removeSource(DRAFT);
    if (!geometry) return;
    map.addSource(DRAFT, { type: "geojson", data: { type: "Feature", properties: {}, geometry } });
    map.addLayer({ id: DRAFT, type: "fill", source: DRAFT, paint: { "fill-color": "#0b4fa5", "fill-opacity": 0.35 } });
    map.addLayer({ id: `${DRAFT}-casing`, type: "line", source: DRAFT, paint: { "line-color": "#ffffff", "line-width": 4 } });
    map.addLayer({ id: `${DRAFT}-line`, type: "line", source: DRAFT, paint: { "line-color": "#0b4fa5", "line-width": 2 } });
  };

  function close() {
    const open = body.firstChild !== null;
    sketch(null);
    body.replaceChildren();
    start.hidden = false;
    if (open && start.isConnected) start.focus();
  }

  /** Draws an object, or the outline of the one of `row` anew. */
  function begin(row = null) {
    told(null);
    start.hidden = true;
    const shape = el("p", { class: "dim small", "aria-live": "polite" });
    const tools = el("div", { class: "pen-tools" });
    draw(pen, shape, tools, (ring) => (ring ? describe({ type: "Polygon", coordinates: [ring] }, row) : close()));
    body.replaceChildren(el("div", { class: "review-form" }, shape, tools));
    map.getContainer().scrollIntoView({ block: "nearest" }); // on a phone the panel lies below it
    tools.children[1].focus({ preventScroll: true });
  }

  /** Asks what is drawn; of the object of `row`, what it is said to be now stands there. */
  function describe(geometry, row) {
    told(null);
    start.hidden = true;
    sketch(geometry);
    const choice = (id, title, options, now) => {
      const select = el("select", { id }, options.map(([value, text]) => el("option", { value }, text)));
      select.value = now ?? "";
      return [select, el("div", { class: "field" }, el("label", { for: id }, title), select)];
    };
    const [kind, kindField] = choice("added-class", "What it became", [["", "not said"], ...titles], row?.class_after);
    const [grade, gradeField] = choice("added-grade", "Damage", GRADES, row?.grade);
    const comment = el("textarea", { id: "added-comment", rows: 2, maxlength: 2000 });
    comment.value = row?.comment ?? "";
    const form = el(
      "form", { class: "review-form", id: "added-form" },
      el("p", { class: "small" }, row ? `What is added ${-row.polygon}?` : "The object is drawn. What is it?"),
      classes.length ? kindField : null,
      gradeField,
      el("div", { class: "field" }, el("label", { for: "added-comment" }, "Comment"), comment),
      el(
        "div", { class: "pen-tools" },
        el("button", { type: "submit", class: "tool primary" }, "Save object"),
        el("button", { type: "button", class: "tool", onclick: () => begin(row) }, "Draw it again"),
        el("button", { type: "button", class: "link", onclick: close }, "Cancel"),
      ),
    );
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const asked = { geometry, grade: grade.value || null, class_after: kind.value || null, comment: comment.value };
      const kept = row
        ? await send(`${url}/${row.polygon}`, { ...asked, version: row.version, verdict: "added" })
        : await send(url, asked);
      if (kept) close();
    });
    body.replaceChildren(form);
    form.querySelector("select").focus();
  }

  /** Whether it was kept. */
  async function send(address, asked) {
    told(null);
    if (!who()) {
      told("Say who you are first.");
      byId("review-by").focus();
      return false;
    }
    const { ok, answer, problem } = await post(address, { by: who(), ...asked });
    if (!ok) told(problem);
    const now = ok ? answer : answer?.current;
    if (now) last.set(now.polygon, now);
    show();
    changed();
    return ok;
  }

  const say = (row, verdict) => {
    const { polygon, version, grade, comment, class_after } = row;
    return send(`${url}/${polygon}`, { version, verdict, grade, comment, class_after });
  };

  function item(row) {
    const gone = row.verdict === "removed";
    const damage = GRADES.find(([value]) => value && value === row.grade)?.[1];
    const about = [row.class_after && (titles.get(row.class_after) ?? row.class_after), damage, row.comment].filter(Boolean);
    const button = (text, run) => el("button", { type: "button", class: "link", onclick: run }, text);
    return el(
      "li", { "data-added": -row.polygon, class: gone ? "dim" : null },
      el("strong", {}, `Added ${-row.polygon}`),
      `${gone ? ", removed" : ""} by ${row.by}, ${row.at.slice(0, 16).replace("T", " ")}${about.length ? `: ${about.join(", ")}` : ""} `,
      gone
        ? button("Put back", () => say(row, "added"))
        : [
            button("Show", () => maps.fly(map, boxOf(row.geometry), NEAREST)),
            button("Change", () => describe(row.geometry, row)),
            button("Remove", () => say(row, "removed")),
          ],
    );
  }

  function show() {
    const rows = [...last.values()].filter((r) => r.polygon < 0).sort((a, b) => b.polygon - a.polygon);
    list.replaceChildren(...rows.map(item));
    list.hidden = !rows.length;
  }

  show();
  const said = "Where the run shows nothing and something changed: draw it. It is part of the reviewed set, in blue dashes and dots on the map.";
  return { nodes: [el("h3", {}, "Missed by the run"), el("p", { class: "dim small" }, said), start, body, trouble, list], stop: close };
}

function boxOf({ coordinates: [ring] }) {
  const of = (i) => ring.map((point) => point[i]);
  return [Math.min(...of(0)), Math.min(...of(1)), Math.max(...of(0)), Math.max(...of(1))];
}
