// The map: background, layers of the result, polygons.

import * as maplibre from "../vendor/maplibre-gl-6.17.0/maplibre-gl.mjs";
import * as codes from "./codes.js";
import { change, state } from "./state.js";
import { marks } from "./swipe.js";

const NO_FEATURES = { type: "FeatureCollection", features: [] };
codes.addTo(maplibre);

export const token = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Each kind of line has a program of its own, which takes a tenth of a second to make where there is no graphics
// card; what has changed does not wait for them.
let lines = false;

/** From here on lines are drawn as well. */
export function drawLines(map) {
  lines = true;
  map.setLayoutProperty("graticule", "visibility", "visible");
  if (map.getLayer("r:frame")) map.setLayoutProperty("r:frame", "visibility", "visible");
}

export function create(container, basemap) {
  const map = new maplibre.Map({
    container,
    style: { version: 8, sources: {}, layers: [] }, // the ground is the colour of the page below
    attributionControl: false,
    renderWorldCopies: false,
    maxPitch: 0,
    dragRotate: false,
    pitchWithRotate: false,
    fadeDuration: 0,
    center: [0, 0],
    zoom: 1,
  });
  map.touchZoomRotate.disableRotation();
  map.keyboard.disableRotation();
  map.addControl(new maplibre.NavigationControl({ showCompass: false }), "top-right");
  map.addControl(new maplibre.ScaleControl({ maxWidth: 120 }), "bottom-right");
  map.getCanvas().setAttribute("aria-label", "Map; arrow keys move it, plus and minus zoom");
  map.on("moveend", () => {
    const { lng, lat } = map.getCenter();
    change({ view: [map.getZoom(), lat, lng] });
  });
  return new Promise((done) => {
    map.once("style.load", () => {
      if (basemap) {
        map.addSource("basemap", { type: "raster", tiles: [basemap], tileSize: 256 });
        map.addLayer({ id: "basemap", type: "raster", source: "basemap" });
      }
      map.addSource("graticule", { type: "geojson", data: NO_FEATURES });
      map.addLayer({ id: "graticule", type: "line", source: "graticule", layout: { visibility: "none" }, paint: { "line-width": 1 } });
      recolour(map);
      done(map);
    });
  });
}

/** Colours of the theme, which a style of the map cannot take from the page by itself. */
export function recolour(map) {
  for (const id of ["graticule", "coast"]) if (map.getLayer(id)) map.setPaintProperty(id, "line-color", token(`--${id}`));
}

const ours = (map) => map.getStyle().layers.filter((l) => l.id.startsWith("r:") || l.id.startsWith("swipe-"));

export function clear(map) {
  for (const layer of ours(map)) map.removeLayer(layer.id);
  for (const id of Object.keys(map.getStyle().sources)) if (id.startsWith("r:")) map.removeSource(id);
}

/** Adds the layers of a result; `paint` of a coloured layer is set before. */
export function addLayers(map, layers) {
  // Tiles are asked for in the order of the sources: what has changed comes first.
  for (const layer of [...layers].reverse()) {
    map.addSource(`r:${layer.name}`, {
      type: "raster",
      tiles: [layer.codes === null ? location.origin + layer.tiles : tilesOf(layer)],
      tileSize: 512,
      bounds: layer.bounds,
      minzoom: Math.max(0, layer.minzoom),
      maxzoom: Math.min(layer.native_zoom, layer.maxzoom),
    });
  }
  for (const layer of layers) {
    if (layer.name === "after") map.addLayer(marks[0]);
    map.addLayer({
      id: `r:${layer.name}`,
      type: "raster",
      source: `r:${layer.name}`,
      layout: { visibility: "none" },
      paint: { "raster-fade-duration": 0, "raster-resampling": layer.kind === "picture" ? "linear" : "nearest" },
    });
    if (layer.name === "after") map.addLayer(marks[1]);
  }
}

/** The extent of the result, which is there when nothing else is drawn. */
export function addFrame(map, [west, south, east, north]) {
  const ring = [[west, south], [east, south], [east, north], [west, north], [west, south]];
  const data = { type: "Feature", properties: {}, geometry: { type: "LineString", coordinates: ring } };
  map.addSource("r:frame", { type: "geojson", data });
  map.addLayer({
    id: "r:frame",
    type: "line",
    source: "r:frame",
    layout: { visibility: lines ? "visible" : "none" },
    paint: { "line-color": token("--dim"), "line-width": 1.2, "line-dasharray": [4, 3] },
  });
}

/** Calls back at the first frame in which all tiles of a layer are there, and says whether there is one. */
export function whenDrawn(map, name, done) {
  const look = () => {
    const there = map.getSource(`r:${name}`) !== undefined;
    if (there && !map.isSourceLoaded(`r:${name}`)) return;
    map.off("render", look);
    done(there);
  };
  map.on("render", look);
}

let round = 0;
const tilesOf = (layer) => `codes://${layer.name}/{z}/{x}/{y}?${round}`;

/** Draws a coloured layer again, with a new paint. */
export function repaint(map, layer, paint) {
  codes.setPaint(layer.name, location.origin + layer.codes, paint);
  round += 1;
  map.getSource(`r:${layer.name}`)?.setTiles([tilesOf(layer)]);
}

export function addPolygons(map, features, native) {
  // Thinner from afar, where outlines would be all that is seen.
  const width = (near) => ["interpolate", ["linear"], ["zoom"], native - 4, near / 3, native - 1, near];
  map.addSource("r:polygons", { type: "geojson", data: { type: "FeatureCollection", features } });
  const line = (id, colour, width, more) =>
    map.addLayer({
      id,
      type: "line",
      source: "r:polygons",
      layout: { "line-join": "round", visibility: "none", ...more?.layout },
      paint: { "line-color": colour, "line-width": width, ...more?.paint },
    });
  map.addLayer({
    id: "r:polygons-hit",
    type: "fill",
    source: "r:polygons",
    layout: { visibility: "none" },
    paint: { "fill-color": "#000", "fill-opacity": 0.01 },
  });
  // Light on dark, so that an outline shows on every ground and without colours.
  line("r:polygons-casing", "#ffffff", width(3));
  line("r:polygons-line", "#111111", width(1.3));
  line("r:picked-casing", "#111111", width(7));
  line("r:picked-line", "#ffe14d", width(4));
  pick(map, []);
}

export function showLayers(map, layers) {
  for (const layer of layers) {
    const opacity = state.layers.get(layer.name);
    map.setLayoutProperty(`r:${layer.name}`, "visibility", opacity === undefined ? "none" : "visible");
    if (opacity !== undefined) map.setPaintProperty(`r:${layer.name}`, "raster-opacity", opacity);
  }
  if (!map.getSource("r:polygons")) return;
  const opacity = state.layers.get("polygons");
  const visibility = opacity === undefined || !lines ? "none" : "visible";
  for (const id of ["hit", "casing", "line"]) map.setLayoutProperty(`r:polygons-${id}`, "visibility", visibility);
  for (const id of ["casing", "line"]) map.setPaintProperty(`r:polygons-${id}`, "line-opacity", opacity ?? 0);
}

/** Only polygons with a pixel of at least this probability. */
export function filterPolygons(map, least) {
  for (const id of ["hit", "casing", "line"]) map.setFilter(`r:polygons-${id}`, [">=", ["get", "max_prob"], least]);
}

export function pick(map, ids) {
  for (const id of ["casing", "line"]) {
    map.setFilter(`r:picked-${id}`, ["in", ["get", "id"], ["literal", ids]]);
    map.setLayoutProperty(`r:picked-${id}`, "visibility", ids.length ? "visible" : "none");
  }
}

export function polygonAt(map, point) {
  if (!map.getLayer("r:polygons-hit") || !state.layers.has("polygons")) return null;
  const found = map.queryRenderedFeatures(point, { layers: ["r:polygons-hit"] });
  // The smallest of those that lie over each other is the one that is meant.
  found.sort((a, b) => b.properties.id - a.properties.id);
  return found.length ? found[0].properties.id : null;
}

export function fly(map, [west, south, east, north], most) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  map.fitBounds([[west, south], [east, north]], { padding: 48, maxZoom: most, duration: still ? 0 : 900 });
}
