// Numbers as people read them, by the same rules as the report.

export function number(value, digits = 3) {
  if (!Number.isFinite(value)) return "not known";
  return new Intl.NumberFormat("en", { maximumSignificantDigits: digits }).format(value);
}

export function area(value, unit) {
  if (!Number.isFinite(value)) return number(value);
  if (unit === "px") return `${number(value)} px`;
  if (Math.abs(value) >= 1e6) return `${number(value / 1e6)} km²`;
  if (Math.abs(value) >= 1e4) return `${number(value / 1e4)} ha`;
  return `${number(value)} m²`;
}

export function length(value, unit) {
  if (unit === "px") return `${number(value)} px`;
  return value >= 1000 ? `${number(value / 1000)} km` : `${number(value)} m`;
}

export function percent(share) {
  if (!Number.isFinite(share)) return "not known";
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  return `${number(100 * share)} %`;
}

export function bytes(value) {
  if (value >= 1e9) return `${number(value / 1e9)} GB`;
  if (value >= 1e6) return `${number(value / 1e6)} MB`;
  return `${number(Math.max(1, value / 1e3))} kB`;
}

export function day(iso) {
  if (!iso) return "date not stated";
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return String(iso);
  return new Intl.DateTimeFormat("en-GB", {
    day: "numeric", month: "long", year: "numeric", timeZone: "UTC",
  }).format(date);
}

export function isoDay(days) {
  return new Date(days * 86400000).toISOString().slice(0, 10);
}

export function place(lng, lat, digits = 5) {
  const ns = lat >= 0 ? "N" : "S";
  const ew = lng >= 0 ? "E" : "W";
  return `${Math.abs(lat).toFixed(digits)}° ${ns}, ${Math.abs(lng).toFixed(digits)}° ${ew}`;
}
