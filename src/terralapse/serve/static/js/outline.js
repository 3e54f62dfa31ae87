// Drawing the outline of an object anew: points clicked on the map, or put at its middle with a button.

const ID = "redraw";

/** `start(done)` begins; `done` is told the ring in degrees, closed, or null when it was given up. */
export function start(map) {
  let points = null;
  let finished = null;
  let moved = null;

  const data = () => {
    const ring = points.length > 2 ? [...points, points[0]] : points;
    const shapes = [{ type: "MultiPoint", coordinates: points }];
    if (points.length > 1) shapes.push({ type: "LineString", coordinates: ring });
    return { type: "FeatureCollection", features: shapes.map((geometry) => ({ type: "Feature", properties: {}, geometry })) };
  };
  const draw = () => {
    map.getSource(ID).setData(points.length ? data() : { type: "FeatureCollection", features: [] });
    moved?.(points.length);
  };
  function end(ring) {
    if (!points) return;
    points = null;
    map.getCanvas().classList.remove("crosshair");
    for (const id of [`${ID}-points`, `${ID}-line`, `${ID}-casing`]) if (map.getLayer(id)) map.removeLayer(id);
    if (map.getSource(ID)) map.removeSource(ID);
    const tell = finished;
    finished = moved = null;
    tell(ring);
  }
  map.on("click", (event) => {
    if (!points) return;
    points.push(event.lngLat.toArray());
    draw();
  });
  return {
    active: () => points !== null,
    begin(done, onMove) {
      if (points) end(null);
      points = [];
      [finished, moved] = [done, onMove];
      map.getCanvas().classList.add("crosshair");
      map.addSource(ID, { type: "geojson", data: { type: "FeatureCollection", features: [] } });
      const line = (id, colour, width) => map.addLayer({ id, type: "line", source: ID, paint: { "line-color": colour, "line-width": width } });
      line(`${ID}-casing`, "#ffffff", 5);
      line(`${ID}-line`, "#111111", 2.5);
      map.addLayer({ id: `${ID}-points`, type: "circle", source: ID, paint: { "circle-color": "#fff", "circle-stroke-color": "#111", "circle-stroke-width": 2, "circle-radius": 4 } });
      onMove(0);
    },
    atMiddle() {
      points?.push(map.getCenter().toArray());
      draw();
    },
    undo() {
      points?.pop();
      draw();
    },
    finish: () => end(points && points.length > 2 ? [...points, points[0]] : null),
    stop: () => end(null),
  };
}
