// What is shown, kept in the address so that a link shows the same.

export const state = {
  result: null, // id
  view: null, // [zoom, lat, lng]
  level: null, // code of the slider
  composite: null, // period of the composite that is shown
  swipe: 0.5, // share of the map that shows the date before; null without swipe
  layers: new Map(), // name -> opacity 0..1 of those that are shown
  picked: null, // id of a polygon
};

const listeners = new Set();
let quiet = false;

export function onChange(listener) {
  listeners.add(listener);
}

export function change(values) {
  Object.assign(state, values);
  for (const listener of listeners) listener(state);
  if (!quiet) write();
}

export function withoutWriting(action) {
  quiet = true;
  try {
    action();
  } finally {
    quiet = false;
  }
}

let timer = 0;
function write() {
  clearTimeout(timer);
  timer = setTimeout(() => history.replaceState(null, "", `#${text()}`), 150);
}

export function text() {
  const parts = new URLSearchParams();
  if (state.result) parts.set("r", state.result);
  if (state.view) {
    const [zoom, lat, lng] = state.view;
    parts.set("v", `${zoom.toFixed(2)}/${lat.toFixed(6)}/${lng.toFixed(6)}`);
  }
  if (state.level !== null) parts.set("t", String(state.level));
  if (state.composite !== null) parts.set("c", state.composite);
  parts.set("s", state.swipe === null ? "off" : state.swipe.toFixed(3));
  parts.set("l", [...state.layers].map(([n, o]) => `${n}:${Math.round(100 * o)}`).join(","));
  if (state.picked !== null) parts.set("p", String(state.picked));
  return parts.toString().replaceAll("%2F", "/").replaceAll("%3A", ":").replaceAll("%2C", ",");
}

/** What an address asks for; anything odd in it is passed over. */
export function read(hash) {
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  const found = {};
  if (parts.has("r")) found.result = parts.get("r");
  const view = (parts.get("v") ?? "").split("/").map(Number);
  if (view.length === 3 && view.every(Number.isFinite) && Math.abs(view[1]) <= 85 && Math.abs(view[2]) <= 180) {
    found.view = view;
  }
  const level = Number(parts.get("t"));
  if (parts.has("t") && Number.isInteger(level) && level >= 0) found.level = level;
  if (/^\d{4}(-\d{2}|-q[1-4])?$/.test(parts.get("c") ?? "")) found.composite = parts.get("c");
  if (parts.get("s") === "off") found.swipe = null;
  else if (parts.has("s") && Number(parts.get("s")) >= 0 && Number(parts.get("s")) <= 1) {
    found.swipe = Number(parts.get("s"));
  }
  if (parts.has("l")) {
    const pairs = parts.get("l").split(",").map((p) => p.split(":"));
    const good = pairs.filter(([n, o]) => n && Number(o) >= 0 && Number(o) <= 100);
    found.layers = new Map(good.map(([n, o]) => [n, Number(o) / 100]));
  }
  const picked = Number(parts.get("p"));
  if (parts.has("p") && Number.isInteger(picked) && picked > 0) found.picked = picked;
  return found;
}
