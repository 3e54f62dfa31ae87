"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const view = $("view"), layers = $("layers"), swipe = $("swipe");
  const stages = [...view.querySelectorAll(".stage")];
  const data = JSON.parse($("data").textContent);
  const MOST = 24;
  let scale = 1, x = 0, y = 0;

  const limit = (value, low, high) => Math.min(Math.max(value, low), high);

  function draw() {
    const w = view.clientWidth, h = view.clientHeight;
    x = limit(x, w - w * scale, 0);
    y = limit(y, h - h * scale, 0);
    for (const stage of stages) stage.style.transform = `translate(${x}px,${y}px) scale(${scale})`;
    const split = (swipe.value / 100) * w;
    view.style.setProperty("--split", `${split}px`);
    view.style.setProperty("--line", `${limit(1.5 * w * scale / 1000, 0.7, 1.8)}px`);
    $("tag-before").hidden = split < 90;
    $("tag-after").hidden = split > w - 90;
    view.classList.toggle("zoomed", scale > 1.001);
    bar(w);
  }

  function bar(w) {
    const metre = data.metres * data.width / (w * scale);
    const most = metre * Math.min(150, w / 3), power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((f) => f * power).find((l) => l <= most);
    $("bar").style.width = `${length / metre}px`;
    const far = data.unit === "m" && length >= 1000;
    $("bar-text").textContent = `${+(far ? length / 1000 : length).toPrecision(3)} ${far ? "km" : data.unit}`;
  }

  function zoom(factor, cx = view.clientWidth / 2, cy = view.clientHeight / 2) {
    const next = limit(scale * factor, 1, MOST);
    x = cx - (cx - x) * next / scale;
    y = cy - (cy - y) * next / scale;
    scale = next;
    draw();
  }

  function all() { scale = 1; x = y = 0; glide(); draw(); }
  function glide() {
    for (const stage of stages) stage.classList.add("moving");
    setTimeout(() => stages.forEach((stage) => stage.classList.remove("moving")), 550);
  }

  function show(box) {
    const unit = view.clientWidth / data.width, w = view.clientWidth, h = view.clientHeight;
    const [left, top, width, height] = box.map((v) => v * unit);
    scale = limit(0.8 * Math.min(w / width, h / height), 1, MOST);
    x = w / 2 - (left + width / 2) * scale;
    y = h / 2 - (top + height / 2) * scale;
    glide();
    draw();
  }

  // --- pointers: one pans or swipes, two zoom ---------------------------------------------------
  const fingers = new Map();
  let swiping = false;
  const place = (e) => { const r = view.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };

  view.addEventListener("pointerdown", (e) => {
    if (e.target.closest("button")) return;
    fingers.set(e.pointerId, place(e));
    swiping = fingers.size === 1 && (e.target.closest("#divider") !== null || scale <= 1.001);
    if (e.pointerType === "mouse" || swiping || scale > 1.001) view.setPointerCapture(e.pointerId);
    if (swiping && e.target.closest("#divider") === null && e.pointerType !== "mouse") swiping = false;
  });
  view.addEventListener("pointermove", (e) => {
    readout(e);
    if (!fingers.has(e.pointerId)) return;
    const before = fingers.get(e.pointerId), now = place(e);
    const other = [...fingers].find(([id]) => id !== e.pointerId);
    fingers.set(e.pointerId, now);
    if (other) {
      const far = (p) => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]);
      zoom(far(now) / Math.max(far(before), 1), (now[0] + other[1][0]) / 2, (now[1] + other[1][1]) / 2);
    } else if (swiping) {
      swipe.value = 100 * now[0] / view.clientWidth;
      draw();
    } else if (scale > 1.001) {
      x += now[0] - before[0];
      y += now[1] - before[1];
      draw();
    }
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    view.addEventListener(end, (e) => { fingers.delete(e.pointerId); if (!fingers.size) swiping = false; });
  }
  view.addEventListener("pointerleave", () => { $("readout").textContent = ""; });
  view.addEventListener("dblclick", (e) => { if (!e.target.closest("button")) { glide(); zoom(2, ...place(e)); } });
  view.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    zoom(Math.exp(-e.deltaY / 300), ...place(e));
  }, { passive: false });

  view.addEventListener("keydown", (e) => {
    if (e.target !== view) return;
    const step = 60, moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (moves[e.key] && scale > 1.001) { x += moves[e.key][0]; y += moves[e.key][1]; draw(); }
    else if (e.key === "+" || e.key === "=") zoom(1.5);
    else if (e.key === "-") zoom(1 / 1.5);
    else if (e.key === "0") all();
    else return;
    e.preventDefault();
  });

  // --- coordinates under the pointer ------------------------------------------------------------
  function readout(e) {
    if (!data.lattice || e.pointerType === "touch") return;
    const [px, py] = place(e), n = data.lattice.length - 1;
    const u = limit((px - x) / scale / view.clientWidth, 0, 1) * n, v = limit((py - y) / scale / view.clientHeight, 0, 1) * n;
    const c = Math.min(Math.floor(u), n - 1), r = Math.min(Math.floor(v), n - 1);
    const mix = (k) => {
      const at = (i, j) => data.lattice[i][j][k];
      const top = at(r, c) + (at(r, c + 1) - at(r, c)) * (u - c);
      const foot = at(r + 1, c) + (at(r + 1, c + 1) - at(r + 1, c)) * (u - c);
      return top + (foot - top) * (v - r);
    };
    const lon = ((mix(0) + 540) % 360) - 180, lat = mix(1);
    $("readout").textContent =
      `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(5)}° ${lon < 0 ? "W" : "E"}`;
  }

  // --- controls ---------------------------------------------------------------------------------
  swipe.addEventListener("input", draw);
  $("opacity").addEventListener("input", (e) => layers.style.setProperty("--fade", e.target.value / 100));
  for (const box of document.querySelectorAll("[data-toggle]")) {
    const layer = layers.querySelector(`[data-layer="${box.dataset.toggle}"]`);
    const apply = () => { layer.style.display = box.checked ? "" : "none"; layer.removeAttribute("hidden"); };
    box.addEventListener("change", apply);
    apply();
  }
  $("zoom-in").addEventListener("click", () => { glide(); zoom(1.6); });
  $("zoom-out").addEventListener("click", () => { glide(); zoom(1 / 1.6); });
  $("zoom-all").addEventListener("click", all);
  if ($("north")) $("north").querySelector("svg").style.transform = `rotate(${data.north}deg)`;

  for (const button of document.querySelectorAll(".object")) {
    button.addEventListener("click", () => {
      for (const on of document.querySelectorAll(".on")) on.classList.remove("on");
      button.classList.add("on");
      const path = layers.querySelector(`[data-id="${button.dataset.id}"]`);
      if (path) { path.classList.add("on"); path.parentNode.append(path); }
      view.scrollIntoView({ block: "center" });
      show(button.dataset.box.split(" ").map(Number));
      view.focus({ preventScroll: true });
    });
  }

  // A citation opens the list of facts before the browser jumps to it.
  function reveal() {
    const target = location.hash.startsWith("#fact-") && document.getElementById(location.hash.slice(1));
    if (!target) return;
    $("facts-all").open = true;
    target.scrollIntoView({ block: "center" });
  }
  addEventListener("hashchange", reveal);
  new ResizeObserver(draw).observe(view);
  reveal();
  draw();
})();
