// The area of a new analysis, and where its images lie, drawn on the map; by pointer or by coordinates.

import { el } from "./dom.js";

const METRES = 20037508.342789244 / 180;
const EMPTY = { type: "FeatureCollection", features: [] };
const LAYERS = ["new-ground", "new-casing", "new-before", "new-after", "new-area", "new-points"];
const NEAR = 12; // screen pixels from the first corner that close a polygon

// Images without a place are shown one pixel a metre of Web Mercator, rows downwards from the equator.
const metres = (lat) => (Math.log(Math.tan(Math.PI / 4 + (lat * Math.PI) / 360)) * 180 * METRES) / Math.PI;
const latitude = (y) => (Math.atan(Math.exp((y * Math.PI) / 180 / METRES)) * 360) / Math.PI - 90;
const toPixel = ([lng, lat]) => [lng * METRES, -metres(lat)];
const fromPixel = ([column, row]) => [column / METRES, latitude(-row)];

/** The outline of an image in degrees, as the map shows it. */
export function outline(image) {
  if (image.footprint) return image.footprint.coordinates[0];
  const { width, height } = image;
  return [[0, 0], [width, 0], [width, height], [0, height], [0, 0]].map(fromPixel);
}

export function bounds(ring) {
  const side = (i, choose) => choose(...ring.map((p) => p[i]));
  return [side(0, Math.min), side(1, Math.min), side(0, Math.max), side(1, Math.max)];
}

const rectangleOf = ([west, south, east, north]) => [[west, south], [east, south], [east, north], [west, north]];

/** Outlines and an area on the map; `onChange` is called when the area or the drawing of it changes. */
export function start(map, onChange) {
  let ring = null; // corners in degrees, open
  let drawing = null; // rectangle or polygon, while it is drawn
  let points = [];
  let pixels = false;
  let outlines = [];
  let shown = false;

  const corners = (given) =>
    drawing === "rectangle" && given.length > 1 ? rectangleOf(bounds(given.slice(0, 2))) : given;

  function draw(next) {
    if (!shown) return;
    const feature = (which, type, coordinates) => ({ type: "Feature", properties: { which }, geometry: { type, coordinates } });
    const features = outlines.map((o) => feature(o.which, "LineString", o.ring));
    const line = drawing ? corners(next ? [...points, next] : points) : ring;
    const closed = line?.length > 2 ? [...line, line[0]] : line;
    if (closed?.length > 1) features.push(feature("area", "LineString", closed));
    if (closed?.length > 3) features.push(feature("area", "Polygon", [closed]));
    if (drawing && line?.length) features.push(feature("area", "MultiPoint", line));
    map.getSource("new").setData({ type: "FeatureCollection", features });
  }

  function show() {
    if (shown) return;
    shown = true;
    map.addSource("new", { type: "geojson", data: EMPTY });
    const is = (which) => ["==", ["get", "which"], which];
    const line = (id, filter, colour, width, more) =>
      map.addLayer({ id, type: "line", source: "new", filter, paint: { "line-color": colour, "line-width": width, ...more } });
    const shape = (type) => ["all", is("area"), ["==", ["geometry-type"], type]];
    map.addLayer({
      id: "new-ground", type: "fill", source: "new", filter: shape("Polygon"),
      paint: { "fill-color": "#ffe14d", "fill-opacity": 0.18 },
    });
    // Told apart by their dashes as well as by colour, and by the white below them on every ground.
    line("new-casing", ["!=", ["geometry-type"], "Point"], "#ffffff", 5);
    line("new-before", is("before"), "#0b5fa5", 2.5, { "line-dasharray": [4, 2] });
    line("new-after", is("after"), "#a8174a", 2.5, { "line-dasharray": [1, 1.5] });
    line("new-area", shape("LineString"), "#111111", 2.5);
    map.addLayer({
      id: "new-points", type: "circle", source: "new", filter: shape("Point"),
      paint: { "circle-color": "#fff", "circle-stroke-color": "#111", "circle-stroke-width": 2, "circle-radius": 4 },
    });
    draw();
  }

  function stop() {
    drawing = null;
    points = [];
    map.getCanvas().classList.remove("crosshair");
    map.doubleClickZoom.enable();
    draw();
  }

  function end() {
    const found = corners(points);
    stop();
    if (found.length > 2) ring = found;
    draw();
    onChange();
  }

  map.on("click", (event) => {
    if (!drawing) return;
    const first = points.length > 2 && map.project(points[0]);
    if (first && Math.hypot(first.x - event.point.x, first.y - event.point.y) < NEAR) {
      end();
      return;
    }
    points.push(event.lngLat.toArray());
    if (drawing === "rectangle" && points.length === 2) end();
    else draw();
  });
  map.on("mousemove", (event) => {
    if (drawing && points.length) draw(event.lngLat.toArray());
  });

  return {
    show,
    hide() {
      if (!shown) return;
      stop();
      shown = false;
      for (const id of LAYERS) map.removeLayer(id);
      map.removeSource("new");
    },
    begin(kind) {
      stop();
      drawing = kind;
      map.getCanvas().classList.add("crosshair");
      map.doubleClickZoom.disable();
      map.getContainer().scrollIntoView({ block: "nearest" }); // on a phone the panel lies below it
      onChange();
    },
    end,
    cancel() {
      stop();
      onChange();
    },
    clear() {
      ring = null;
      stop();
      onChange();
    },
    active: () => drawing,
    pixels: () => pixels,
    /** The images, `[{which, ring}]`, and whether they have no place. */
    setImages(list, without) {
      if (pixels !== without) ring = null;
      outlines = list;
      pixels = without;
      draw();
    },
    /** West, south, east, north; or the first column and row and the last ones. */
    setBounds(box) {
      stop();
      ring = pixels ? rectangleOf(box).map(fromPixel) : rectangleOf(box);
      draw();
      onChange();
    },
    corners: () => ring && (pixels ? ring.map(toPixel) : ring),
    /** As GeoJSON, in degrees or in pixels; null for all of the images. */
    value() {
      const found = this.corners();
      return found && { type: "Polygon", coordinates: [[...found, found[0]]] };
    },
  };
}

/** Four numbers of a text, the first two below the last two; else null. */
export function boundsOf(text) {
  const numbers = text.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (numbers.length !== 4 || !numbers.every(Number.isFinite)) return null;
  const [a, b, c, d] = numbers;
  return a < c && b < d ? numbers : null;
}

/** The controls of an area: `show` brings them up to date, `take` reads the coordinates and says whether they
    could be read. */
export function controls(area) {
  const button = (text, run) => el("button", { type: "button", class: "tool", onclick: run }, text);
  const pressed = (kind) => () => (area.active() === kind ? area.cancel() : area.begin(kind));
  const rectangle = button("Rectangle", pressed("rectangle"));
  const polygon = button("Polygon", pressed("polygon"));
  const close = button("Close it", () => area.end());
  const clear = button("Whole image", () => area.clear());
  const input = el("input", { id: "job-area", autocomplete: "off", "aria-describedby": "job-area-told" });
  const label = el("label", { for: "job-area" });
  const told = el("p", { id: "job-area-told", class: "dim", "aria-live": "polite" });
  const names = () => (area.pixels() ? "First column, first row, last column, last row" : "West, south, east, north");
  let shown = "";
  const take = () => {
    if (input.value === shown) return true;
    if (!input.value.trim()) {
      area.clear();
      return true;
    }
    const found = boundsOf(input.value);
    if (found) area.setBounds(found);
    else told.textContent = `Write four numbers: ${names().toLowerCase()}; the first two below the last two.`;
    return found !== null;
  };
  input.addEventListener("change", take);
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // the form is sent by its button
    take();
  });
  const say = (corners, kind) => {
    if (kind === "rectangle") return "Click two opposite corners on the map.";
    if (kind === "polygon") return "Click the corners on the map; click the first one again to close.";
    if (!corners) return "Empty: all that both images show.";
    return corners.length === 4 ? "Only this area is compared." : `Only this area of ${corners.length} corners is compared.`;
  };
  const show = () => {
    const kind = area.active();
    rectangle.setAttribute("aria-pressed", String(kind === "rectangle"));
    polygon.setAttribute("aria-pressed", String(kind === "polygon"));
    close.hidden = kind !== "polygon";
    const corners = area.corners();
    clear.hidden = !corners;
    label.textContent = `${names()}, in ${area.pixels() ? "pixels" : "degrees"}`;
    const digits = area.pixels() ? 0 : 5;
    const now = corners ? bounds(corners).map((v) => v.toFixed(digits)).join(", ") : "";
    if (now !== shown || kind) input.value = now;
    shown = now;
    told.textContent = say(corners, kind);
  };
  const node = el(
    "fieldset", { class: "area" },
    el("legend", {}, "Area"),
    el("div", { class: "row" }, rectangle, polygon, close, clear),
    el("div", { class: "field" }, label, input),
    told,
  );
  return { node, show, take };
}
