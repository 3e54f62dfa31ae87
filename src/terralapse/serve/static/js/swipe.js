// One map, two dates: what lies between two marks in the order of layers is drawn only right of the divider.

import { byId, eachFrame } from "./dom.js";
import { change, onChange, state } from "./state.js";

function mark(id, draw) {
  return { id, type: "custom", renderingMode: "2d", render: draw };
}

/** The layers to put below and above the later date. */
export const marks = [
  mark("swipe-begin", (gl) => {
    if (state.swipe === null) return;
    const { drawingBufferWidth: width, drawingBufferHeight: height } = gl;
    const left = Math.round(width * state.swipe);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, 0, width - left, height);
  }),
  mark("swipe-end", (gl) => gl.disable(gl.SCISSOR_TEST)),
];

export function start(map) {
  const divider = byId("swipe");
  const area = map.getContainer();
  const move = eachFrame((x) => {
    const box = area.getBoundingClientRect();
    change({ swipe: Math.min(1, Math.max(0, (x - box.left) / box.width)) });
  });
  divider.addEventListener("pointerdown", (event) => {
    divider.setPointerCapture(event.pointerId);
    event.preventDefault();
    divider.focus();
  });
  divider.addEventListener("pointermove", (event) => {
    if (divider.hasPointerCapture(event.pointerId)) move(event.clientX);
  });
  divider.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, PageUp: 0.1, PageDown: -0.1 }[event.key];
    const end = { Home: 0, End: 1 }[event.key];
    if (step === undefined && end === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    change({ swipe: end ?? Math.min(1, Math.max(0, state.swipe + step)) });
  });
  onChange(() => {
    show(divider);
    map.triggerRepaint();
  });
}

function show(divider) {
  const pictures = state.layers.has("before") && state.layers.has("after");
  const on = state.swipe !== null && pictures;
  divider.hidden = !on;
  byId("tag-before").hidden = !on;
  byId("tag-after").hidden = !(on || state.layers.has("after"));
  byId("swipe-toggle").setAttribute("aria-pressed", String(on));
  byId("swipe-toggle").hidden = !pictures;
  byId("tag-before").style.right = `${100 * (1 - state.swipe)}%`;
  byId("tag-after").style.left = on ? `${100 * state.swipe}%` : "0";
  if (!on) return;
  const share = Math.round(100 * state.swipe);
  divider.style.left = `${100 * state.swipe}%`;
  divider.setAttribute("aria-valuenow", String(share));
  divider.setAttribute("aria-valuetext", `${share} % before, ${100 - share} % after`);
}

export function toggle() {
  if (!byId("swipe-toggle").hidden) change({ swipe: state.swipe === null ? 0.5 : null });
}
