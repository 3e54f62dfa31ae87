// Who reviews: a name that a person gives once, kept in this browser.

import { el } from "./dom.js";

const KEY = "terralapse-who";
let name = "";
try {
  name = localStorage.getItem(KEY) ?? "";
} catch {
  name = ""; // storage is switched off: it is asked for again
}

/** A field for the name; `who()` is what it says. */
export function field(id) {
  const input = el("input", { id, type: "text", maxlength: 80, required: true, autocomplete: "name", value: name });
  input.addEventListener("input", () => {
    name = input.value.trim();
    try {
      localStorage.setItem(KEY, name);
    } catch {
      return;
    }
  });
  return el("div", { class: "field" }, el("label", { for: id }, "Your name, kept with what you say"), input);
}

export const who = () => name;
