// Lines of latitude and longitude as a ground without a basemap, labelled at the edges.

import { byId, el } from "./dom.js";

const STEPS = [90, 45, 30, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002];
const APART = 110; // pixels between two lines, at least
const METRE = 180 / 20037508.342789244; // degrees at the equator, where images without a place lie

export function start(map, pixels) {
  const labels = byId("graticule-labels");
  const draw = () => {
    const bounds = map.getBounds();
    const [west, east] = [Math.max(-180, bounds.getWest()), Math.min(180, bounds.getEast())];
    const [south, north] = [Math.max(-85, bounds.getSouth()), Math.min(85, bounds.getNorth())];
    const unit = pixels() ? METRE : 1;
    const span = (east - west) / unit;
    const step = pixels() ? 10 ** Math.floor(Math.log10(span / 2)) : STEPS.findLast((s) => span / s <= map.getCanvas().clientWidth / APART) ?? 90;
    const lines = [];
    const texts = [];
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const text = (v, [plus, minus]) =>
      pixels() ? `${Math.round(plus === "N" ? -v : v)} px` : `${Math.abs(v).toFixed(decimals)}°${v === 0 ? "" : v > 0 ? plus : minus}`;
    for (let i = Math.ceil(west / unit / step); i <= east / unit / step && lines.length < 200; i += 1) {
      const lng = i * step * unit;
      lines.push([[lng, south], [lng, north]]);
      texts.push({ kind: "across", at: map.project([lng, south]).x, text: text(i * step, ["E", "W"]) });
    }
    for (let i = Math.ceil(south / unit / step); i <= north / unit / step && lines.length < 400; i += 1) {
      const lat = i * step * unit;
      lines.push([[west, lat], [east, lat]]);
      texts.push({ kind: "down", at: map.project([west, lat]).y, text: text(i * step, ["N", "S"]) });
    }
    map.getSource("graticule").setData({
      type: "Feature", properties: {}, geometry: { type: "MultiLineString", coordinates: lines },
    });
    labels.replaceChildren(
      ...texts.map(({ kind, at, text: said }) => {
        const node = el("span", { class: kind }, said);
        node.style[kind === "across" ? "left" : "top"] = `${Math.round(at)}px`;
        return node;
      }),
    );
  };
  map.on("moveend", draw);
  map.on("movestart", () => labels.replaceChildren());
  map.on("resize", draw);
  draw();
  return draw;
}
