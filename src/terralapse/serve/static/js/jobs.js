// A new analysis: two images, an area, a model, a threshold; and how those before are doing.

import { Failure, get, send } from "./api.js";
import { el } from "./dom.js";
import { percent } from "./format.js";
import * as fresh from "./fresh.js";

const WORDS = {
  queued: "waits", running: "runs", done: "done", failed: "failed", cancelled: "cancelled",
};

let source = null;
let listed = [];
let showList = () => null;

/** Follows the analyses; `onDone` is told the folder of one that has just ended well. */
export function follow(onDone) {
  if (source) return;
  source = new EventSource("/api/jobs/events");
  source.addEventListener("message", (event) => {
    const before = new Map(listed.map((j) => [j.id, j.state]));
    listed = JSON.parse(event.data).jobs;
    showList();
    for (const job of listed) {
      if (job.state === "done" && before.has(job.id) && before.get(job.id) !== "done") onDone(job.output);
    }
  });
}

function choice(id, title, options, more) {
  return el("div", { class: "field" }, el("label", { for: id }, title), el("select", { id, ...more }, options));
}

function field(id, title, properties) {
  return el("div", { class: "field" }, el("label", { for: id }, title), el("input", { id, ...properties }));
}

/** The form and the list. `onOpen` shows the result of a folder. */
export async function panel(onOpen) {
  const offered = await get("/api/inputs");
  const list = el("ul", { class: "jobs", "aria-label": "Analyses" });
  const rows = new Map();
  showList = () => {
    for (const job of listed) {
      if (rows.has(job.id)) rows.get(job.id).update(job);
      else rows.set(job.id, row(job, onOpen));
    }
    const nodes = listed.map((job) => rows.get(job.id).node);
    if (nodes.length !== list.children.length || nodes[0] !== list.firstChild) list.replaceChildren(...nodes);
  };
  showList();
  if (!offered.inputs.length && !offered.uploads && !offered.urls) {
    return [el("p", {}, "There are no images in the folders that the operator allows."), list];
  }
  const trouble = el("p", { class: "trouble", role: "alert", hidden: true });
  const pixels = el("input", { type: "checkbox", id: "job-pixels" });
  const images = fresh.part(offered, (without) => {
    pixels.checked = without;
  });
  const form = el(
    "form", { class: "new-job" },
    images.nodes,
    choice("job-model", "Model", [
      el("option", { value: "auto" }, "auto: what fits the images"),
      ...offered.models.map((m) => el("option", { value: m.slug }, m.slug)),
    ]),
    field("job-threshold", "Threshold (empty: the model's own)", { type: "number", min: 0, max: 1, step: "any" }),
    field("job-date-before", "Date before, if the file has none", { type: "date" }),
    field("job-date-after", "Date after, if the file has none", { type: "date" }),
    el("label", { class: "check" }, pixels, "The images have no place: compare pixel by pixel"),
    trouble,
    el("button", { type: "submit", class: "tool primary" }, "Start"),
  );
  form.addEventListener("change", () => {
    trouble.hidden = true; // it was about what has just been changed
  });
  const value = (id) => form.querySelector(`#${id}`).value;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    trouble.hidden = true;
    const chosen = images.value();
    if (!chosen) return;
    const asked = { ...chosen, model: value("job-model") };
    if (value("job-threshold")) asked.threshold = Number(value("job-threshold"));
    if (value("job-date-before")) asked.date_before = value("job-date-before");
    if (value("job-date-after")) asked.date_after = value("job-date-after");
    if (pixels.checked) asked.pixel_grid = true;
    try {
      await send("POST", "/api/jobs", asked);
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      trouble.textContent = error.message;
      trouble.hidden = false;
    }
  });
  return [form, el("h3", {}, "Analyses"), list];
}

/** What was sent is called by its id and its name; the name is enough for a person. */
const short = (name) => name.replace(/^upload:[0-9a-f]+\//, "");

/** A line of the list; `update` changes what differs, so that a button that is being pressed stays. */
function row(first, onOpen) {
  let job = first;
  const doing = el("span", { class: "dim" });
  const bar = el("progress", { max: 1, "aria-label": "Progress of this stage" });
  const message = el("span", { class: "job-message" });
  const cancel = el("button", { type: "button", class: "link", onclick: () => stop(job, message) }, "Cancel");
  const open = el("button", { type: "button", class: "link", onclick: () => onOpen(job.output) }, "Show");
  const node = el("li", { "data-job": job.id }, el("strong", {}, `${short(job.before)} → ${short(job.after)}`), doing, bar, message, cancel, open);
  const update = (next) => {
    job = next;
    const running = job.state === "running";
    const stage = running && job.stage ? `, ${job.stage} ${percent(job.share)}` : "";
    node.dataset.state = job.state;
    doing.textContent = `${job.settings.model}: ${WORDS[job.state]}${stage}`;
    bar.hidden = !running;
    bar.value = job.share;
    message.textContent = job.message;
    message.hidden = !job.message;
    cancel.hidden = !running && job.state !== "queued";
    open.hidden = job.state !== "done";
  };
  update(job);
  return { node, update };
}

async function stop(job, message) {
  try {
    await send("DELETE", `/api/jobs/${job.id}`);
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    message.textContent = error.message;
    message.hidden = false;
  }
}
