// Keys of the page; those of the map itself are MapLibre's.

import { byId, el } from "./dom.js";

export function start(actions) {
  const dialog = byId("keys");
  const close = el("button", { type: "button", class: "tool", onclick: () => dialog.close() }, "Close");
  const rows = actions.map(({ keys, text }) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, keys)), el("td", {}, text)));
  rows.push(el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, "arrows + −")), el("td", {}, "Move and zoom the map (when it has the focus)")));
  dialog.replaceChildren(el("h2", {}, "Keys"), el("table", { class: "pairs" }, el("tbody", {}, rows)), close);
  const open = () => dialog.showModal();
  byId("help").addEventListener("click", open);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.target.matches?.("input:not([type=checkbox]):not([type=range]), select, textarea")) return;
    if (event.key === "?") {
      open();
      return;
    }
    const action = actions.find((a) => a.match(event.key));
    if (!action) return;
    event.preventDefault();
    action.run(event.key);
  });
}
