// Distances and areas on the ground, point by point.

import { byId } from "./dom.js";
import { area, length } from "./format.js";

const RADIUS = 6371008.8;
const METRES = 20037508.342789244 / 180;
const rad = (degrees) => (degrees * Math.PI) / 180;

export function distance([a, b], [c, d], pixels) {
  if (pixels) return Math.hypot((c - a) * METRES, mercator(d) - mercator(b));
  const h = Math.sin(rad(d - b) / 2) ** 2 + Math.cos(rad(b)) * Math.cos(rad(d)) * Math.sin(rad(c - a) / 2) ** 2;
  return 2 * RADIUS * Math.asin(Math.sqrt(h));
}

const mercator = (lat) => (Math.log(Math.tan(Math.PI / 4 + rad(lat) / 2)) * METRES * 180) / Math.PI;

/** Of a ring of points, closed or not; on the sphere, or in pixels. */
export function enclosed(points, pixels) {
  let sum = 0;
  for (let i = 0; i < points.length; i += 1) {
    const [x0, y0] = points[i];
    const [x1, y1] = points[(i + 1) % points.length];
    if (pixels) sum += x0 * METRES * mercator(y1) - x1 * METRES * mercator(y0);
    else sum += rad(x1 - x0) * (2 + Math.sin(rad(y0)) + Math.sin(rad(y1)));
  }
  return Math.abs(sum / 2) * (pixels ? 1 : RADIUS ** 2);
}

export function start(map, pixels) {
  const button = byId("measure");
  const readout = byId("readout");
  let points = null;

  function draw(next) {
    const line = next ? [...points, next] : points;
    const features = [
      { type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: line } },
      { type: "Feature", properties: {}, geometry: { type: "MultiPoint", coordinates: line } },
    ];
    map.getSource("measure").setData({ type: "FeatureCollection", features: line.length ? features : [] });
    let total = 0;
    for (let i = 1; i < line.length; i += 1) total += distance(line[i - 1], line[i], pixels());
    const unit = pixels() ? "px" : "m";
    const around = line.length > 2 ? `, ${area(enclosed(line, pixels()), unit)} enclosed` : "";
    readout.textContent = line.length > 1 ? `${length(total, unit)}${around}` : "Click points; Esc ends";
  }

  function stop() {
    points = null;
    button.setAttribute("aria-pressed", "false");
    map.getCanvas().classList.remove("crosshair");
    for (const id of ["measure-points", "measure"]) if (map.getLayer(id)) map.removeLayer(id);
    if (map.getSource("measure")) map.removeSource("measure");
    readout.textContent = "";
  }

  function begin() {
    points = [];
    button.setAttribute("aria-pressed", "true");
    map.getCanvas().classList.add("crosshair");
    map.addSource("measure", { type: "geojson", data: { type: "FeatureCollection", features: [] } });
    map.addLayer({ id: "measure", type: "line", source: "measure", paint: { "line-color": "#111", "line-width": 2.5, "line-dasharray": [2, 1] } });
    map.addLayer({ id: "measure-points", type: "circle", source: "measure", paint: { "circle-color": "#fff", "circle-stroke-color": "#111", "circle-stroke-width": 2, "circle-radius": 4 } });
    draw();
  }

  map.on("click", (event) => {
    if (!points) return;
    points.push(event.lngLat.toArray());
    draw();
  });
  map.on("mousemove", (event) => {
    if (points?.length) draw(event.lngLat.toArray());
  });
  const toggle = () => (points ? stop() : begin());
  button.addEventListener("click", toggle);
  return { toggle, stop: () => points && stop(), active: () => points !== null };
}
