// What people say of the objects: accept, reject, grade, draw anew, add; who and when; and the reviewed set as files.

import * as added from "./added.js";
import { get } from "./api.js";
import { byId, el } from "./dom.js";
import { draw, GRADES, post } from "./said.js";
import { onChange, state } from "./state.js";
import { field, who } from "./who.js";

const VERDICTS = [["accepted", "Accept"], ["rejected", "Reject"], ["", "Open"]];
const WORDS = { accepted: "accepted", rejected: "rejected" };

let follow = null; // what happens when another object is picked, while the panel is there
let keyed = null;
let seen = null;
onChange(() => {
  if (state.picked === seen) return;
  seen = state.picked;
  follow?.();
});

/** For the keys A and R. */
export const press = (verdict) => keyed?.(verdict);

/** The panel. `pick(id)` flies to an object; `pen` draws outlines. */
export async function panel(result, features, map, pen, pick) {
  const url = `/api/results/${encodeURIComponent(result.id)}/review`;
  const last = new Map((await get(url)).reviews.map((r) => [r.polygon, r]));
  const count = el("p", { class: "review-count", "aria-live": "polite" });
  const body = el("div", { class: "review-one" });
  const next = el("button", { type: "button", class: "tool", onclick: () => pick(open()?.id) }, "Next open object");
  const open = () => {
    const at = features.findIndex((f) => f.id === state.picked);
    const order = [...features.slice(at + 1), ...features.slice(0, at + 1)];
    return order.find((f) => !last.get(f.id)?.verdict && f.id !== state.picked);
  };
  const outlines = () => paint(map, features, last);
  const missed = added.section(result, url, last, map, pen, () => {
    summary();
    outlines();
  });
  const summary = () => {
    const all = [...last.values()];
    const of = (verdict) => all.filter((r) => r.verdict === verdict).length;
    const more = of("added") ? `; ${of("added")} added` : "";
    count.textContent = `${of("accepted")} accepted, ${of("rejected")} rejected of ${features.length.toLocaleString("en")} objects${more}`;
    next.hidden = !open();
  };
  const refresh = async () => {
    const id = state.picked;
    pen.stop();
    keyed = null;
    if (!features.some((f) => f.id === id)) {
      const what = features.length ? "Click an object on the map, or go to the next one." : "The run has found no object.";
      body.replaceChildren(el("p", { class: "dim" }, what));
      return;
    }
    const { history } = await get(`${url}/${id}`);
    if (state.picked === id) body.replaceChildren(...one(id, history));
  };

  function one(id, history) {
    const now = history.at(-1) ?? { version: 0, verdict: null, grade: null, comment: "", geometry: null };
    let geometry = now.geometry;
    const group = "review-verdict";
    const radios = VERDICTS.map(([value, title]) => {
      const input = el("input", { type: "radio", name: group, id: `${group}-${value || "open"}`, value, checked: (now.verdict ?? "") === value });
      return el("label", { class: "choice", for: input.id }, input, title);
    });
    const grade = el("select", { id: "review-grade" }, GRADES.map(([v, t]) => el("option", { value: v, selected: v === (now.grade ?? "") }, t)));
    const comment = el("textarea", { id: "review-comment", rows: 2, maxlength: 2000 });
    comment.value = now.comment;
    const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
    const shape = el("p", { class: "dim small", "aria-live": "polite" });
    const tools = el("div", { class: "pen-tools" });
    const said = () => {
      shape.textContent = geometry ? "The outline was drawn anew." : "The outline is that of the run.";
      tools.replaceChildren(
        el("button", { type: "button", class: "tool", onclick: redraw }, "Redraw outline"),
        geometry ? el("button", { type: "button", class: "link", onclick: () => { geometry = null; said(); } }, "Back to that of the run") : "",
      );
    };
    function redraw() {
      draw(pen, shape, tools, (ring) => {
        if (ring) geometry = { type: "Polygon", coordinates: [ring] };
        said();
      });
    }
    const form = el(
      "form", { class: "review-form", "data-polygon": id },
      el("fieldset", {}, el("legend", {}, `Object ${id}: is it change?`), el("div", { class: "choices" }, radios)),
      el("div", { class: "field" }, el("label", { for: "review-grade" }, "Damage"), grade),
      el("div", { class: "field" }, el("label", { for: "review-comment" }, "Comment"), comment),
      shape, tools, trouble,
      el("button", { type: "submit", class: "tool primary" }, "Save"),
    );
    const say = async (verdict) => {
      const asked = { by: who(), version: now.version, verdict: verdict || null, grade: grade.value || null, comment: comment.value, geometry };
      const { ok, answer, problem } = await post(`${url}/${id}`, asked);
      if (ok) {
        last.set(id, answer);
        summary();
        outlines();
        await refresh();
        return;
      }
      trouble.textContent = problem;
      if (answer?.current) {
        const { by, verdict: theirs } = answer.current;
        trouble.append(
          ` ${by} says: ${WORDS[theirs] ?? "open"}. `,
          el("button", { type: "button", class: "link", onclick: refresh }, "Show theirs"),
        );
        last.set(id, answer.current);
      }
      trouble.hidden = false;
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      say(form.querySelector(`input[name=${group}]:checked`).value);
    });
    keyed = (verdict) => {
      form.querySelector(`#${group}-${verdict}`).checked = true;
      if (who()) say(verdict);
      else form.requestSubmit();
    };
    said();
    const rows = [...history].reverse().map((h) =>
      el("li", {}, `${h.at.slice(0, 16).replace("T", " ")}, ${h.by}: ${WORDS[h.verdict] ?? "open"}${h.grade ? `, ${h.grade}` : ""}${h.geometry ? ", drawn anew" : ""}${h.comment ? ` – ${h.comment}` : ""}`),
    );
    return [form, rows.length ? el("h3", {}, "What was said") : null, rows.length ? el("ul", { class: "plain" }, rows) : null].filter(Boolean);
  }

  follow = refresh;
  byId("tab-body").addEventListener(
    "left",
    () => {
      follow = keyed = null;
      pen.stop();
      missed.stop();
    },
    { once: true },
  );
  summary();
  outlines();
  await refresh();
  const whole = el("input", { type: "checkbox", id: "review-whole" });
  const labels = el("a", { href: `${url}-labels.zip`, download: true, id: "review-labels" }, "Labels to train with");
  whole.addEventListener("change", () => labels.setAttribute("href", `${url}-labels.zip${whole.checked ? "?background=unchanged" : ""}`));
  return [
    field("review-by"),
    count, next, body,
    ...missed.nodes,
    el("h3", {}, "The reviewed set"),
    el(
      "ul", { class: "files" },
      el("li", {}, el("a", { href: `${url}.gpkg`, download: true, id: "review-gpkg" }, "Reviewed polygons, GeoPackage"), el("span", { class: "dim" }, "with every edit")),
      el("li", {}, labels, el("span", { class: "dim" }, "images of both dates, label raster and record")),
    ),
    el("label", { class: "check" }, whole, "I have looked at all of the map: what is not outlined is unchanged"),
  ];
}

/** Accepted outlines are drawn through, rejected ones dashed, added ones in dashes and dots, so that colour alone
    tells nothing. */
function paint(map, features, last) {
  const shown = features
    .filter((f) => last.get(f.id)?.verdict)
    .map((f) => ({ type: "Feature", geometry: last.get(f.id).geometry ?? f.geometry, properties: { verdict: last.get(f.id).verdict } }));
  for (const row of last.values()) {
    if (row.verdict === "added") shown.push({ type: "Feature", geometry: row.geometry, properties: { verdict: "added" } });
  }
  const data = { type: "FeatureCollection", features: shown };
  if (map.getSource("r:reviewed")) {
    map.getSource("r:reviewed").setData(data);
    return;
  }
  map.addSource("r:reviewed", { type: "geojson", data });
  const below = map.getLayer("r:picked-casing") ? "r:picked-casing" : undefined; // not there where the run found nothing
  const line = (id, verdict, paint) =>
    map.addLayer({ id: `r:${id}`, type: "line", source: "r:reviewed", filter: ["==", ["get", "verdict"], verdict], paint }, below);
  line("accepted-casing", "accepted", { "line-color": "#ffffff", "line-width": 5 });
  line("accepted", "accepted", { "line-color": "#00735c", "line-width": 3 });
  line("rejected-casing", "rejected", { "line-color": "#ffffff", "line-width": 4 });
  line("rejected", "rejected", { "line-color": "#7a0031", "line-width": 2.5, "line-dasharray": [2, 2] });
  line("added-casing", "added", { "line-color": "#ffffff", "line-width": 5.5 });
  line("added", "added", { "line-color": "#0b4fa5", "line-width": 3, "line-dasharray": [4, 1.2, 1, 1.2] });
}
