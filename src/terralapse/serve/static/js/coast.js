// The coast as a ground without a basemap. Its lines leave out what is smaller than some ten kilometres, so they are
// seen from afar only: near a result they would cross it where no coast is.

const FILE = new URL("../vendor/natural-earth-110m/coastline.json", import.meta.url).href;
const NEAREST = 8; // the zoom from which on it is not drawn

/** `placed()` says whether what is shown has a place on the earth. Returns what to call when that changes. */
export function start(map, colour, placed) {
  let asked = false;
  map.addSource("coast", { type: "geojson", data: { type: "FeatureCollection", features: [] } });
  map.addLayer({
    id: "coast",
    type: "line",
    source: "coast",
    maxzoom: NEAREST,
    layout: { "line-join": "round" },
    paint: { "line-color": colour, "line-width": 1.2, "line-opacity": ["interpolate", ["linear"], ["zoom"], NEAREST - 2, 1, NEAREST, 0] },
  });
  const ask = () => {
    if (asked || !placed() || map.getZoom() >= NEAREST) return;
    asked = true;
    map.getSource("coast").setData(FILE);
  };
  map.on("zoom", ask);
  return () => {
    map.setLayoutProperty("coast", "visibility", placed() ? "visible" : "none");
    ask();
  };
}
