// What is said of a result: summary, largest changes, alignment and masks, the run, downloads.

import { get } from "./api.js";
import { bars, ninths } from "./charts.js";
import { byId, el } from "./dom.js";
import { area, bytes, day, number, percent, place } from "./format.js";

const LARGEST = 25;
const ROWS = 8;

/** `more` are panels after the summary; `fresh` makes that of a new analysis, where the operator allows one. */
export function build(result, { facts, features, total, onPick, more, fresh }) {
  const own = result ? tabsOf(result, { facts, features, total, onPick }) : [];
  own.splice(1, 0, ...(more ?? []));
  const tabs = fresh ? [...own, ["new", "New", fresh]] : own;
  return show(tabs);
}

function tabsOf(result, { facts, features, total, onPick }) {
  return [
    ["summary", "Summary", () => summary(result, facts, onPick)],
    features.length ? ["largest", "Largest", () => largest(result, features, total, onPick)] : null,
    ["quality", result.kind === "change" ? "Alignment" : "Quality", () => quality(result, facts)],
    ["run", "Run", () => run(result)],
    ["files", "Files", () => downloads(result)],
  ].filter(Boolean);
}

function show(tabs) {
  const bar = byId("tabs");
  const body = byId("tab-body");
  let turn = 0;
  const open = async (name) => {
    turn += 1;
    const mine = turn;
    body.dispatchEvent(new Event("left")); // for panels that have something on the map
    for (const tab of bar.children) {
      const on = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
    }
    body.setAttribute("aria-labelledby", `tab-${name}`);
    document.dispatchEvent(new CustomEvent("terralapse-tab", { detail: name }));
    let made;
    try {
      made = await tabs.find((t) => t[0] === name)[2]();
    } catch (error) {
      made = [el("p", { class: "trouble" }, error.message)];
    }
    if (mine === turn) body.replaceChildren(...made);
  };
  bar.replaceChildren(
    ...tabs.map(([name, title]) =>
      el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "tab-body", onclick: () => open(name) }, title),
    ),
  );
  bar.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.stopPropagation();
    const all = [...bar.children];
    const next = all[(all.indexOf(document.activeElement) + by + all.length) % all.length];
    next.focus();
    next.click();
  };
  open(tabs[0][0]);
  return open;
}

// --- summary ---------------------------------------------------------------------------------------
async function summary(result, facts, onPick) {
  const unit = result.area_unit;
  const n = result.numbers;
  const tiles =
    result.kind === "series"
      ? [["Broke", area(n.broken_area, unit)], ["Modelled", area(n.modelled_area, unit)], ["Dates", number(n.dates)]]
      : [
          ["Changed", area(n.changed_area, unit)],
          ["Of the compared", percent(n.changed_share)],
          ["Compared", area(n.observed_area, unit)],
          ["Objects", number(n.polygons, 6)],
        ];
  const known = tiles.filter(([, text]) => text !== "not known");
  return [
    result.crs === null
      ? el(
          "p", { class: "warning" },
          "The images have no place on the earth: areas are in pixels, and the map shows them as they are.",
          unit === "px" ? "" : " The run is of an earlier version, which called a pixel a square metre: 1 m² is one pixel.",
        )
      : null,
    el("dl", { class: "tiles" }, known.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text)))),
    el("div", { class: "sentences" }, result.sentences.map((s) => sentence(s, facts, onPick))),
    result.warnings.length
      ? el("ul", { class: "warnings", "aria-label": "Warnings" }, result.warnings.map((w) => el("li", {}, w)))
      : null,
    ...(await charts(result, facts)),
  ].filter(Boolean);
}

/** With the facts that it cites behind a button; those about polygons show them on the map. */
function sentence(said, facts, onPick) {
  const list = el("ul", { class: "cited", hidden: true });
  const cited = said.facts.map((id) => facts.get(id)).filter(Boolean);
  for (const fact of cited) {
    const ids = fact.evidence.polygons;
    const shown = Array.isArray(ids) && ids.length <= 500;
    list.append(
      el(
        "li", {},
        el("code", {}, fact.id), ` ${fact.display}`,
        shown ? el("button", { type: "button", class: "link", onclick: () => onPick(ids) }, "show") : null,
      ),
    );
  }
  const button = el(
    "button",
    {
      type: "button", class: "cite", "aria-expanded": "false", title: "What this rests on",
      onclick() {
        list.hidden = !list.hidden;
        button.setAttribute("aria-expanded", String(!list.hidden));
      },
    },
    cited.length === 1 ? "1 fact" : `${cited.length} facts`,
  );
  return el("div", { class: "sentence" }, el("p", {}, said.text, " ", cited.length ? button : null), list);
}

async function charts(result, facts) {
  const made = [];
  const shares = {};
  for (const fact of facts.values()) {
    if (fact.id.startsWith("location.") && fact.kind === "share") shares[fact.id.slice(9)] = fact.value;
  }
  if (Object.keys(shares).length > 1) made.push(ninths(shares, "Where the area of the objects lies, by ninth of the grid"));
  if (!result.links.stats) return made;
  const { rows } = await get(result.links.stats);
  const unit = result.area_unit;
  if (result.kind === "series") {
    const most = Math.max(...rows.map((r) => Number(r[`broken_${unit}`])), 1e-9);
    const years = rows.map((r) => {
      const broke = Number(r[`broken_${unit}`]);
      const falling = Number(r[`falling_${unit}`]) / broke;
      return { name: r.year, share: broke / most, text: area(broke, unit), more: `${percent(falling)} falling` };
    });
    if (years.length) made.push(bars(years, "Area that broke, by year"));
    return made;
  }
  const zones = rows
    .map((r) => ({ name: r.name || r.id, changed: Number(r[`changed_${unit}`]), share: Number(r.changed_percent) / 100, kind: r.kind }))
    .filter((r) => r.changed > 0)
    .sort((a, b) => b.changed - a.changed);
  if (zones.length > 1) {
    const what = zones[0].kind === "zone" ? "zone" : "square of the grid";
    made.push(
      bars(
        zones.slice(0, ROWS).map((r) => ({ name: r.name, share: r.changed / zones[0].changed, text: area(r.changed, unit), more: percent(r.share) })),
        `Area that changed, by ${what}${zones.length > ROWS ? ` (${ROWS} of ${zones.length})` : ""}`,
      ),
    );
  }
  return made;
}

// --- largest ---------------------------------------------------------------------------------------
function largest(result, features, total, onPick) {
  const unit = result.area_unit;
  const item = ({ id, properties: p }) =>
    el(
      "li", {},
      el(
        "button",
        { type: "button", class: "object", "data-polygon": id, onclick: () => onPick([id], true) },
        el("strong", {}, `${id}`),
        el("span", {}, area(p[`area_${unit}`], unit)),
        el("span", { class: "dim" }, `${p.location}, probability ${p.mean_prob.toFixed(2)}`),
      ),
    );
  const shown = Math.min(LARGEST, features.length);
  return [
    el("p", { class: "dim" }, `The ${shown} largest of ${total.toLocaleString("en")} objects. Keys N and P go from one to the next.`),
    el("ol", { class: "objects" }, features.slice(0, LARGEST).map(item)),
  ];
}

/** The card of one polygon: its properties and the facts that rest on it. */
export async function card(result, feature, close) {
  const node = byId("picked");
  const p = feature.properties;
  const unit = result.area_unit;
  const rows = [
    ["Area", area(p[`area_${unit}`], unit)],
    ["Perimeter", p.perimeter_m !== undefined ? `${number(p.perimeter_m)} m` : `${number(p.perimeter_px)} px`],
    ["Mean probability", p.mean_prob?.toFixed(2)],
    ["Highest probability", p.max_prob?.toFixed(2)],
    ["Where", p.location],
    ["Place", p.lon !== null && p.lat !== null ? place(p.lon, p.lat) : `row ${p.row}, column ${p.col}`],
    ["Pixels", p.pixels?.toLocaleString("en")],
  ].filter(([, text]) => text !== undefined && text !== null);
  const list = el("ul", { class: "facts" });
  node.replaceChildren(
    el(
      "div", { class: "picked-head" },
      el("h2", {}, `Object ${feature.id}`),
      el("button", { type: "button", class: "tool", onclick: close, title: "Close (Esc)" }, "Close"),
    ),
    table(rows),
    list,
  );
  node.hidden = false;
  const found = await get(`${result.links.facts}?polygon=${feature.id}`);
  const own = found.facts.filter((f) => f.evidence.polygons.length === 1);
  const wider = found.facts.filter((f) => f.evidence.polygons.length > 1).slice(0, 4);
  list.replaceChildren(...[...own, ...wider].map((f) => el("li", { "data-fact": f.id }, f.sentence)));
}

// --- the rest --------------------------------------------------------------------------------------
function table(rows) {
  return el("table", { class: "pairs" }, el("tbody", {}, rows.map(([a, b]) => el("tr", {}, el("th", { scope: "row" }, a), el("td", {}, b)))));
}

async function quality(result, facts) {
  const made = [];
  if (result.links.alignment) {
    const found = await get(result.links.alignment);
    const words = { good: "Aligned", warning: "Look closer", unknown: "Not known" };
    made.push(
      el("p", { class: `verdict ${found.level}` }, el("strong", {}, words[found.level]), ` ${found.verdict}`),
      table(found.rows.map((r) => [r.name, r.text])),
    );
  }
  const masks = [...facts.values()].filter((f) => /^(share\.masked|masked\.|quality\.|share\.unmodelled)/.test(f.id));
  made.push(el("h3", {}, result.kind === "change" ? "What could not be compared" : "What is known"));
  made.push(
    masks.length
      ? el("ul", { class: "plain" }, masks.map((f) => el("li", {}, f.sentence)))
      : el("p", {}, "Everything could be used."),
  );
  const sure = [...facts.values()].filter((f) => f.id.startsWith("confidence."));
  if (sure.length) made.push(el("h3", {}, "How sure it is"), el("ul", { class: "plain" }, sure.map((f) => el("li", {}, f.sentence))));
  return made;
}

async function run(result) {
  const found = await get(result.links.run);
  const model = found.model?.slug ? `${found.model.slug}: ${found.model.summary}` : found.summary.model;
  const inputs = Array.isArray(found.inputs) ? [] : Object.entries(found.inputs ?? {});
  const rows = [
    ["Run", found.run_id],
    ["Finished", day(found.finished)],
    ["Model", model],
    ["Chosen because", found.settings?.choice],
    ["Threshold", found.threshold],
    ...inputs.map(([which, i]) => [`Image ${which}`, `${i.name}, ${i.sensor}, ${i.time ? day(i.time) : "date not stated"}`]),
    ["Images", Array.isArray(found.inputs) ? `${found.inputs.length} dates, ${found.index?.name ?? ""}` : null],
    ["Grid", `${found.grid.crs ?? "no CRS"}${found.grid.width ? `, ${found.grid.width} x ${found.grid.height} pixels` : ""}`],
    ["Precision", found.engine?.precision?.name],
    ["Software", Object.entries(found.software ?? {}).slice(0, 4).map((p) => p.join(" ")).join(", ")],
    ["Time", found.seconds ? `${number(Object.values(found.seconds).reduce((a, b) => a + b, 0))} s` : null],
  ].filter(([, text]) => text !== null && text !== undefined && text !== "");
  const limits = found.model?.limits ?? [];
  return [
    table(rows.map(([a, b]) => [a, String(b)])),
    limits.length ? el("h3", {}, "Where the model fails") : null,
    limits.length ? el("ul", { class: "plain" }, limits.map((l) => el("li", {}, l))) : null,
    found.command ? el("h3", {}, "The same again") : null,
    found.command ? el("pre", { tabindex: "0" }, found.command) : null,
  ].filter(Boolean);
}

function downloads(result) {
  const row = (href, title, more) => el("li", {}, el("a", { href, download: true }, title), more ? el("span", { class: "dim" }, more) : null);
  const order = ["report.html", "map.pdf", "change.gpkg", "stats.csv", "facts.json", "change.tif", "prob.tif"];
  const place_ = (f) => (order.indexOf(f.name) + order.length + 1) % (order.length + 1);
  const files = [...result.files].sort((a, b) => place_(a) - place_(b));
  const rows = files.map((f) => row(f.href, f.title === f.name ? f.name : `${f.title}`, `${f.name}, ${bytes(f.bytes)}`));
  if (result.links.geojson && !files.some((f) => f.name === "change.geojson")) {
    rows.splice(3, 0, row(result.links.geojson, "Polygons, GeoJSON", "made from change.gpkg"));
  }
  const link = (title, text) => el("li", {}, el("span", {}, title), el("code", { tabindex: "0" }, text));
  const drawn = [...result.layers.filter((l) => l.tilejson), ...result.composites.periods];
  const tiles = drawn.map((l) => link(`XYZ, ${l.title}`, `${location.origin}${l.tilejson.replace("tilejson.json", "{z}/{x}/{y}")}.png`));
  return [
    el("ul", { class: "files" }, rows),
    el("h3", {}, "For QGIS and other maps"),
    el(
      "ul", { class: "addresses" },
      result.links.polygons ? link("OGC API - Features", location.origin + result.links.ogc) : null,
      link("WMTS, all layers", location.origin + result.links.wmts),
      ...tiles,
    ),
  ];
}
