// Tiles of values, coloured here: the server sends codes (256 red + green), the slider decides what is drawn.

const NOTHING = 65535;
const KEPT = 96; // tiles of 512 x 512 codes: 50 MB
const HATCH = 9; // pixels from one line of the hatching to the next

const decoded = new Map();

/** The codes of a tile. They are kept while they are on their way too: the slider asks again at each step. */
function codesOf(url) {
  const known = decoded.get(url) ?? load(url);
  decoded.delete(url);
  decoded.set(url, known);
  known.catch(() => decoded.delete(url));
  while (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return known;
}

async function load(url) {
  const answer = await fetch(url, { credentials: "same-origin" });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`tile: ${answer.status}`);
  const options = { premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(await answer.blob(), options);
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(picture, 0, 0);
  const { data } = context.getImageData(0, 0, picture.width, picture.height);
  const codes = new Uint16Array(data.length / 4);
  for (let i = 0; i < codes.length; i += 1) {
    codes[i] = data[4 * i + 3] === 255 ? (data[4 * i] << 8) | data[4 * i + 1] : NOTHING;
  }
  return { codes, width: picture.width, height: picture.height };
}

const rgba = ([r, g, b], a) => ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
const parse = (colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));

/** A colour for each of `count` codes between the stops of a legend. */
export function ramp(legend, count) {
  const stops = legend.map((entry) => parse(entry.colour));
  return Array.from({ length: count }, (_, code) => {
    const at = (code / Math.max(count - 1, 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((v, i) => Math.round(v + (stops[low + 1][i] - v) * (at - low)));
  });
}

/**
 * How codes are drawn: `plain` and `hatched` are RGBA words by code. Hatching tells change from the ground
 * where colours do not.
 */
export const paints = {
  atLeast(level, count, colour) {
    const rgb = parse(colour);
    const dark = rgb.map((v) => Math.round(0.35 * v));
    const table = (fill, alpha) =>
      Uint32Array.from({ length: count }, (_, code) => (code >= level ? rgba(fill, alpha) : 0));
    return { plain: table(rgb, 120), hatched: table(dark, 200) };
  },
  ramp(colours, from) {
    const table = Uint32Array.from(colours, (c, code) => (code >= from ? rgba(c, 235) : 0));
    return { plain: table, hatched: table };
  },
  until(level, colours) {
    const table = Uint32Array.from(colours, (c, code) => (code <= level ? rgba(c, 240) : 0));
    return { plain: table, hatched: table };
  },
};

function draw({ codes, width, height }, { plain, hatched }) {
  const image = new ImageData(width, height);
  const words = new Uint32Array(image.data.buffer);
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      const code = codes[i];
      if (code === NOTHING) continue;
      words[i] = ((x + y) % HATCH < 2 ? hatched : plain)[code];
    }
  }
  return createImageBitmap(image);
}

const current = new Map(); // layer -> { url, paint }

export function setPaint(layer, url, paint) {
  current.set(layer, { url, paint });
}

/** `codes://LAYER/z/x/y?n`: the tile of a layer with the paint of the moment. */
export function addTo(maplibre) {
  maplibre.addProtocol("codes", async (request) => {
    const [, layer, z, x, y] = request.url.match(/^codes:\/\/([^/]+)\/(\d+)\/(\d+)\/(\d+)/);
    const { url, paint } = current.get(layer);
    const address = url.replace("{z}", z).replace("{x}", x).replace("{y}", y);
    const found = await codesOf(address);
    return { data: found ? await draw(found, paint) : await createImageBitmap(new ImageData(1, 1)) };
  });
}
