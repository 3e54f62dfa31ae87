// The images of a new analysis: sent by dropping them, chosen from what the operator offers, or named by an
// address; what each is, and where it lies.

import { Failure, get } from "./api.js";
import * as areas from "./area.js";
import { el } from "./dom.js";
import { bytes, day, number, percent } from "./format.js";
import { fly } from "./map.js";
import { Sending, catchDrops } from "./uploads.js";

const WHICH = ["before", "after"];
const NEAREST = 19; // no closer when flying to the images
const KINDS = "GeoTIFF, PNG, JPEG, JPEG 2000 or a Sentinel-2 .zip";

// What the panel shows; it outlives the panel.
const kept = { sendings: [], addresses: [], chosen: { before: null, after: null }, looked: new Map(), trouble: "" };
let map = null;
let area = null;
let limits = null;
let renew = () => null;
let openPanel = () => null;

/** Prepares the map and the page for new analyses; `open` shows the panel. */
export async function prepare(on, open) {
  map = on;
  openPanel = open;
  area = areas.start(map, () => renew());
  document.addEventListener("terralapse-tab", (event) => {
    if (event.detail !== "new") area.hide();
  });
  limits = (await get("/api/inputs")).uploads;
  if (limits) catchDrops(take);
}

/** Whether an area is being drawn, so that clicks on the map are for it. */
export const drawing = () => Boolean(area?.active());
export const stopDrawing = () => area?.cancel();

/** Starts to send files; the first two of them become before and after. */
function take(files) {
  openPanel();
  const running = kept.sendings.filter((s) => s.state === "sending").length;
  const some = files.slice(0, Math.max(0, 2 - running));
  kept.trouble = files.length > some.length ? "Only two images are taken at once; the others were left." : "";
  for (const file of some.sort(byName)) {
    if (file.size > limits.bytes) {
      kept.trouble = `${file.name} has ${bytes(file.size)}; this server takes at most ${bytes(limits.bytes)}. Cut it to the place that matters, or compress it.`;
      continue;
    }
    const sending = new Sending(file, () => renew());
    kept.sendings.push(sending);
    sending.done.then(() => arrived(sending));
  }
  renew();
}

const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
const wasSent = (input) => kept.sendings.some((s) => s.state === "ready" && s.input === input);

/** A new image takes the first place that has none yet; two that were sent stand in the order of their dates or,
    where one has none, of their names. */
function arrived(sending) {
  if (sending.state !== "ready") return;
  kept.looked.set(sending.input, sending.image);
  put(sending.input, wasSent);
  const [one, two] = WHICH.map((w) => kept.looked.get(kept.chosen[w]));
  if (WHICH.every((w) => wasSent(kept.chosen[w]))) {
    const wrong = one.time && two.time ? one.time > two.time : byName(one, two) > 0;
    if (wrong) swap();
  }
  renew(true);
}

function put(input, taken) {
  const free = WHICH.find((w) => !taken(kept.chosen[w])) ?? "after";
  kept.chosen[free] = input;
}

function swap() {
  [kept.chosen.before, kept.chosen.after] = [kept.chosen.after, kept.chosen.before];
}

/** What an image is, as rows of a table. */
function rowsOf(image) {
  const some = image.bands.slice(0, 6).join(", ");
  const count = `${image.bands.length} ${image.bands.length === 1 ? "band" : "bands"}`;
  return [
    ["Size", `${image.width.toLocaleString("en")} × ${image.height.toLocaleString("en")} pixels`],
    ["Bands", `${count} (${some}${image.bands.length > 6 ? ", …" : ""}), ${image.dtype}`],
    ["Looks like", image.sensor_why ? `${image.sensor_title}: ${image.sensor_why}` : image.sensor_title],
    ["Place", image.footprint ? `${image.crs}${image.epsg ? ` (EPSG:${image.epsg})` : ""}, ${number(image.resolution_m)} m a pixel` : "no place on the earth"],
    ["Date", image.time ? day(image.time) : "not stated"],
  ];
}

function card(image) {
  if (image.trouble) return [el("p", { class: "trouble" }, image.trouble)];
  const rows = rowsOf(image).map(([k, v]) => el("tr", {}, el("th", { scope: "row" }, k), el("td", {}, v)));
  const made = [el("table", { class: "pairs" }, el("tbody", {}, rows))];
  if (image.warnings.length) made.push(el("ul", { class: "warnings" }, image.warnings.map((w) => el("li", {}, w))));
  return made;
}

/** The part of the form that is about images and the area. `offered` is what `/api/inputs` says; `onPlace` is
    told whether the images have no place. `value()` is what it adds to an analysis, or null. */
export function part(offered, onPlace) {
  const selects = {};
  const about = {};
  const fields = WHICH.map((which) => {
    selects[which] = el("select", {
      id: `job-${which}`,
      onchange() {
        kept.chosen[which] = selects[which].value;
        renew(true);
      },
    });
    about[which] = el("div", { class: `about about-${which}`, "data-about": which });
    return el("div", { class: "field" }, el("label", { for: `job-${which}` }, `Image ${which}`), selects[which], about[which]);
  });
  const turn = () => {
    swap();
    renew(true);
  };
  const swapper = el("button", { type: "button", class: "link swap", onclick: turn }, "Swap before and after");
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const warning = el("p", { class: "warning", hidden: true });
  const list = el("ul", { class: "jobs", "aria-label": "Images on their way" });
  const rows = new Map();
  const box = areas.controls(area);
  let flown = "";

  const titles = () => {
    const size = (i) => (i.kind === "tiles" ? " (all tiles)" : `, ${bytes(i.bytes)}`);
    const found = new Map(offered.inputs.map((i) => [i.name, `${i.title}${size(i)}`]));
    for (const s of kept.sendings) if (s.state === "ready") found.set(s.input, `${s.name}, ${bytes(s.bytes)}`);
    for (const url of kept.addresses) found.set(url, url);
    return found;
  };

  function showChoices() {
    const found = titles();
    const names = [...found.keys()];
    WHICH.forEach((which, index) => {
      const select = selects[which];
      if (!found.has(kept.chosen[which])) kept.chosen[which] = names[Math.min(index, names.length - 1)] ?? null;
      if ([...select.options].map((o) => o.value).join("\n") !== names.join("\n")) {
        select.replaceChildren(...names.map((n) => el("option", { value: n }, found.get(n))));
      }
      select.value = kept.chosen[which] ?? "";
    });
    for (const node of [...fields, box.node]) node.hidden = names.length === 0;
    swapper.hidden = names.length < 2;
  }

  async function look(which) {
    const name = kept.chosen[which];
    if (!name) return;
    if (!kept.looked.has(name)) {
      about[which].replaceChildren(el("p", { class: "dim" }, "Looking at it …"));
      try {
        kept.looked.set(name, await get(`/api/look?name=${encodeURIComponent(name)}`));
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        kept.looked.set(name, { trouble: error.message });
      }
    }
    if (name === kept.chosen[which]) about[which].replaceChildren(...card(kept.looked.get(name)));
    showPlace();
  }

  function showPlace() {
    const found = WHICH.map((w) => kept.looked.get(kept.chosen[w])).map((i) => (i && !i.trouble ? i : null));
    const known = found.filter(Boolean);
    const without = known.length > 0 && known.every((i) => !i.footprint);
    const mixed = known.length === 2 && Boolean(found[0].footprint) !== Boolean(found[1].footprint);
    warning.hidden = !without && !mixed;
    warning.textContent = mixed
      ? "One image has a place on the earth and the other has none, so they cannot be compared. Save the other with its coordinate system."
      : "The images have no place on the earth: they are compared pixel by pixel, and areas are in pixels.";
    onPlace(without);
    const outlines = mixed ? [] : WHICH.flatMap((which, i) => (found[i] ? [{ which, ring: areas.outline(found[i]) }] : []));
    area.setImages(outlines, without);
    box.show();
    const now = JSON.stringify(outlines);
    const own = WHICH.some((w) => wasSent(kept.chosen[w]) || kept.addresses.includes(kept.chosen[w]));
    if (outlines.length && own && now !== flown && box.node.isConnected) fly(map, areas.bounds(outlines.flatMap((o) => o.ring)), NEAREST);
    flown = now;
  }

  function showSendings() {
    for (const sending of kept.sendings) {
      if (!rows.has(sending)) rows.set(sending, rowOf(sending));
      rows.get(sending).update();
    }
    const nodes = kept.sendings.filter((s) => s.state !== "ready").map((s) => rows.get(s).node);
    if (nodes.length !== list.childElementCount || nodes.some((n, i) => n !== list.children[i])) list.replaceChildren(...nodes);
    list.hidden = nodes.length === 0;
    trouble.textContent = kept.trouble;
    trouble.hidden = !kept.trouble;
  }

  renew = (anew) => {
    showSendings();
    showChoices();
    box.show();
    if (anew) for (const which of WHICH) look(which);
  };
  area.show();
  renew(true);
  return {
    nodes: [limits && zone(), trouble, list, offered.urls && address(), ...fields, swapper, warning, box.node].filter(Boolean),
    value() {
      if (!box.take()) return null;
      const drawn = area.value();
      return { ...kept.chosen, ...(drawn ? { area: drawn } : {}) };
    },
  };
}

/** Where files are dropped or chosen. */
function zone() {
  const picker = el("input", {
    type: "file", multiple: true, hidden: true, id: "files", "aria-label": "Images to send", accept: limits.suffixes.join(","),
    onchange() {
      take([...picker.files]);
      picker.value = "";
    },
  });
  return el(
    "div", { class: "drop" },
    el("p", {}, "Drop two images here, or anywhere on the page."),
    el("button", { type: "button", class: "tool", id: "choose", onclick: () => picker.click() }, "Choose files"),
    el("p", { class: "dim" }, `${KINDS}, at most ${bytes(limits.bytes)} each.`),
    picker,
  );
}

/** A line of an image on its way. */
function rowOf(sending) {
  const doing = el("span", { class: "dim" });
  const bar = el("progress", { max: 1, "aria-label": `Sent of ${sending.name}` });
  const message = el("span", { class: "job-message", role: "alert" });
  const remove = () => {
    kept.sendings.splice(kept.sendings.indexOf(sending), 1);
    if (sending.state !== "failed") sending.stop();
    renew();
  };
  const node = el(
    "li", {},
    el("strong", {}, sending.name), doing, bar, message,
    el("button", { type: "button", class: "link", onclick: remove }, "Remove"),
  );
  const words = () => ({
    sending: `${percent(sending.share)} of ${bytes(sending.bytes)}`,
    checking: "sent; the server looks at it …",
    failed: "was not taken",
    ready: "",
  });
  const update = () => {
    node.dataset.sending = sending.state;
    doing.textContent = words()[sending.state];
    bar.hidden = sending.state === "failed";
    bar.value = sending.state === "checking" ? 1 : sending.share;
    message.textContent = sending.message;
    message.hidden = !sending.message;
  };
  return { node, update };
}

/** A field for an address, where the operator allows them. */
function address() {
  const input = el("input", { id: "job-address", type: "url", placeholder: "https://", autocomplete: "off" });
  const add = async () => {
    const url = input.value.trim();
    if (!url) return;
    button.disabled = true;
    try {
      kept.looked.set(url, await get(`/api/look?name=${encodeURIComponent(url)}`));
      if (!kept.addresses.includes(url)) kept.addresses.push(url);
      put(url, (name) => kept.addresses.includes(name) || wasSent(name));
      kept.trouble = "";
      input.value = "";
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      kept.trouble = error.message;
    } finally {
      button.disabled = false;
      renew(true);
    }
  };
  const button = el("button", { type: "button", class: "tool", onclick: add }, "Add");
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    add();
  });
  return el("div", { class: "field" }, el("label", { for: "job-address" }, "Address of a COG or STAC item"), el("div", { class: "row" }, input, button));
}
